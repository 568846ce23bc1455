"""The paper's figures that are drawn from its tables, with runs of ours among them."""

import pathlib
import statistics
from collections.abc import Sequence

from vit_jax.figures import style
from vit_jax.tables import paper, paper_tables, results, vtab

FIVE = ("imagenet", "cifar10", "cifar100", "pets", "flowers")  # Of Table 6: the mean is Avg-5.
FAMILIES = ("ViT", "Hybrid", "ResNet (BiT)")
MARKS = dict(zip(FAMILIES, "os^"))
BIT = "BiT-L (ResNet152x4)"
BIT_L = paper.TABLE_2[BIT][0][0]
OURS = {"color": style.COLOURS[1], "edgecolor": "black", "zorder": 3}


def figure2(folders: Sequence[str] = ()) -> list[dict]:
    """Figure 2's bars of the paper's own models: VTAB-1k by group, from Table 9."""
    rows = []
    for title, row in vtab.PAPER.items():
        means = vtab.means({task: [value] for task, value in row.items()})
        rows += [{"model": title, "group": each["mean"], "top1": each["ours"]} for each in means]
    if folders:
        found = vtab.means(vtab.accuracies(folders))
        rows += [{"model": "ours", "group": each["mean"], "top1": each["ours"]} for each in found]
    return rows


def figure3(folders: Sequence[str] = ()) -> list[dict]:
    """Figure 3: ImageNet accuracy after pre-training on more and more data, from Table 5.

    Of the band of BiT models the paper prints one number, in Table 2.
    """
    rows = [
        {"model": model, "pre-trained on": data, "top1": value, "of": "paper"}
        for data, tasks in paper.TABLE_5.items()
        for model, value in zip(paper.MODELS_5, tasks["ImageNet"], strict=True)
        if value is not None
    ]
    rows.append({"model": BIT, "pre-trained on": "JFT-300M", "top1": BIT_L, "of": "paper"})
    for each in paper_tables.beside("table5", results.read(folders)) if folders else ():
        if each["task"] == "ImageNet":
            row = {"model": each["model"], "pre-trained on": each["pre-trained on"]}
            rows.append(row | {"top1": each["ours"], "of": "ours"})
    return rows


def figure5(folders: Sequence[str] = ()) -> list[dict]:
    """Figure 5: accuracy against the exaFLOPs of pre-training, from Table 6."""
    rows = [
        {
            "model": row.title,
            "family": family(row.title),
            "exaFLOPs": float(row.exaflops),
            "ImageNet": row.imagenet,
            "Avg-5": statistics.fmean(getattr(row, name) for name in FIVE),
            "of": "paper",
        }
        for row in paper.TABLE_6
    ]
    found: dict[tuple, dict] = {}
    for run in results.read(folders) if folders else ():
        spent = (run.before or run).exaflops
        scores = found.setdefault((run.model, spent), {})
        if run.data is not None and run.metric("val/top1") is not None and run.is_tested:
            scores.setdefault(run.data, []).append(100 * run.metric("val/top1"))
    for (model, spent), scores in found.items():
        means = {task: statistics.fmean(values) for task, values in scores.items()}
        five = [means.get(task) for task in paper.TASKS_7]
        row = {"model": model, "family": family(model), "exaFLOPs": spent}
        row["ImageNet"] = means.get("ImageNet")
        row["Avg-5"] = None if None in five else statistics.fmean(five)
        if row["ImageNet"] is not None or row["Avg-5"] is not None:
            rows.append(row | {"of": "ours"})
    return rows


def family(title: str) -> str:
    """ViT, hybrid or ResNet, by the paper's name of a model."""
    if title.startswith("ViT"):
        return "ViT"
    return "Hybrid" if "ViT" in title else "ResNet (BiT)"


def plot2(rows: list[dict], folder: str) -> None:
    """Bars by group, one for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    with style.theme():
        figure = style.make_figure(2.2 * len(groups), 3.2)
        panels = figure.subplots(1, len(groups), squeeze=False)[0]
        for panel, group in zip(panels, groups, strict=True):
            values = {row["model"]: row["top1"] for row in rows if row["group"] == group}
            for i, (model, value) in enumerate(values.items()):
                panel.bar(i, value, color=style.COLOURS[models.index(model)], label=model)
                panel.text(i, value, f"{value:.1f}", ha="center", va="bottom", fontsize="small")
            panel.set(title=group, xticks=[])
            panel.set_ylim(min(values.values()) - 5, max(values.values()) + 3)
        panels[0].set_ylabel("accuracy (%)")
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, fontsize="small")
        style.save(figure, pathlib.Path(folder), "figure2")


def plot3(rows: list[dict], folder: str) -> None:
    """A line for each model over the sets it was pre-trained on."""
    sets = list(paper.TABLE_5)
    with style.theme():
        figure = style.make_figure(5.0, 3.6)
        panel = figure.subplots()
        for colour, model in zip(style.COLOURS, paper.MODELS_5):
            course = [row for row in rows if row["model"] == model and row["of"] == "paper"]
            places = [sets.index(row["pre-trained on"]) for row in course]
            panel.plot(places, [row["top1"] for row in course], "o-", color=colour, label=model)
        panel.scatter([sets.index("JFT-300M")], [BIT_L], 45, color="grey", marker="D", label=BIT)
        ours = [row for row in rows if row["of"] == "ours"]
        if ours:
            places = [sets.index(row["pre-trained on"]) for row in ours]
            panel.scatter(places, [row["top1"] for row in ours], 60, label="ours", **OURS)
        panel.set_xticks(range(len(sets)), sets)
        panel.set(xlabel="pre-training data", ylabel="ImageNet top-1 (%)")
        panel.legend(fontsize="small")
        panel.grid(alpha=0.4)
        style.save(figure, pathlib.Path(folder), "figure3")


def plot5(rows: list[dict], folder: str) -> None:
    """Two panels, Avg-5 and ImageNet, over compute."""
    with style.theme():
        figure = style.make_figure(9.5, 3.8)
        for panel, name in zip(figure.subplots(1, 2), ("Avg-5", "ImageNet")):
            for colour, kind in zip((style.COLOURS[0], *style.COLOURS[2:]), FAMILIES):
                points = [row for row in rows if (row["family"], row["of"]) == (kind, "paper")]
                x, y = ([row[key] for row in points] for key in ("exaFLOPs", name))
                panel.scatter(x, y, 40, color=colour, marker=MARKS[kind], label=kind)
            ours = [row for row in rows if row["of"] == "ours" and row[name] is not None]
            if ours:
                x, y = ([row[key] for row in ours] for key in ("exaFLOPs", name))
                panel.scatter(x, y, 60, marker="*", label="ours", **OURS)
            panel.set_xscale("log")
            panel.set(title=name, xlabel="total pre-training compute (exaFLOPs)")
            panel.grid(alpha=0.4, which="both")
        figure.axes[0].set_ylabel("transfer accuracy (%)")
        figure.axes[0].legend(fontsize="small")
        style.save(figure, pathlib.Path(folder), "figure5")


CHARTS = {
    "figure2": (figure2, plot2),
    "figure3": (figure3, plot3),
    "figure5": (figure5, plot5),
}
