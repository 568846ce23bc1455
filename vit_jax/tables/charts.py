"""Figures 2, 3 and 5, drawn from the numbers of the paper's tables and from finished runs."""

import pathlib
import statistics
from collections.abc import Sequence

from vit_jax.figures import style
from vit_jax.tables import paper, paper_tables, results, vtab

AVG_5 = ("imagenet", "cifar10", "cifar100", "pets", "flowers")  # Columns of Table 6 in Avg-5.
FAMILIES = ("ViT", "Hybrid", "ResNet (BiT)")
MARKERS = dict(zip(FAMILIES, "os^"))
BIT = "BiT-L (ResNet152x4)"
BIT_L = paper.TABLE_2[BIT][0][0]
OUR_MARKER = {"color": style.COLOURS[1], "edgecolor": "black", "zorder": 3}


def figure2_rows(folders: Sequence[str] = ()) -> list[dict]:
    """Returns the bars of Figure 2 for the paper's models: VTAB-1k by task group, from Table 9."""
    accuracies = {
        title: {task: [value] for task, value in row.items()}
        for title, row in vtab.PAPER_ACCURACIES.items()
    }
    if folders:
        accuracies["ours"] = vtab.read_accuracies(folders)
    return [
        {"model": model, "group": mean["mean"], "top1": mean["ours"]}
        for model, tasks in accuracies.items()
        for mean in vtab.mean_rows(tasks)
    ]


def figure3_rows(folders: Sequence[str] = ()) -> list[dict]:
    """Returns the points of Figure 3: ImageNet accuracy by pre-training data, from Table 5.

    Of the BiT models, which the figure shows as a band, the paper prints one number, in Table 2.
    """
    rows = [
        {"model": model, "pre-trained on": data, "top1": value, "of": "paper"}
        for data, tasks in paper.TABLE_5.items()
        for model, value in zip(paper.MODELS_5, tasks["ImageNet"], strict=True)
        if value is not None
    ]
    rows.append({"model": BIT, "pre-trained on": "JFT-300M", "top1": BIT_L, "of": "paper"})
    if folders:
        runs = results.read_finished_runs(folders)
        for cell in paper_tables.compare_with_paper("table5", runs):
            if cell["task"] == "ImageNet":
                row = {"model": cell["model"], "pre-trained on": cell["pre-trained on"]}
                rows.append(row | {"top1": cell["ours"], "of": "ours"})
    return rows


def figure5_rows(folders: Sequence[str] = ()) -> list[dict]:
    """Returns the points of Figure 5: accuracy by exaFLOPs of pre-training, from Table 6."""
    rows = [
        {
            "model": row.title,
            "family": family(row.title),
            "exaFLOPs": float(row.exaflops),
            "ImageNet": row.imagenet,
            "Avg-5": statistics.fmean(getattr(row, name) for name in AVG_5),
            "of": "paper",
        }
        for row in paper.TABLE_6
    ]
    points: dict[tuple, dict] = {}  # (model, exaFLOPs) -> task -> scores.
    for run in results.read_finished_runs(folders) if folders else ():
        scores = points.setdefault((run.model, (run.pretraining or run).exaflops), {})
        top1 = run.metric("val/top1")
        if run.dataset is not None and top1 is not None and run.is_scored_on_held_out_data:
            scores.setdefault(run.dataset, []).append(100 * top1)
    for (model, cost), scores in points.items():
        means = {task: statistics.fmean(values) for task, values in scores.items()}
        five = [means.get(task) for task in paper.TASKS_7]
        row = {"model": model, "family": family(model), "exaFLOPs": cost}
        row["ImageNet"] = means.get("ImageNet")
        row["Avg-5"] = None if None in five else statistics.fmean(five)
        if row["ImageNet"] is not None or row["Avg-5"] is not None:
            rows.append(row | {"of": "ours"})
    return rows


def family(title: str) -> str:
    """Returns the family of a model in FAMILIES from the paper's name of it."""
    if title.startswith("ViT"):
        return "ViT"
    return "Hybrid" if "ViT" in title else "ResNet (BiT)"


def plot_figure2(rows: list[dict], folder: str) -> None:
    """Writes a bar chart with a panel per task group and a bar per model."""
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
        style.save_figure(figure, pathlib.Path(folder), "figure2")


def plot_figure3(rows: list[dict], folder: str) -> None:
    """Writes a plot with a line per model over the pre-training data sets."""
    datasets = list(paper.TABLE_5)
    with style.theme():
        figure = style.make_figure(5.0, 3.6)
        panel = figure.subplots()
        for colour, model in zip(style.COLOURS, paper.MODELS_5):
            line = [row for row in rows if row["model"] == model and row["of"] == "paper"]
            x = [datasets.index(row["pre-trained on"]) for row in line]
            panel.plot(x, [row["top1"] for row in line], "o-", color=colour, label=model)
        panel.scatter(
            [datasets.index("JFT-300M")], [BIT_L], 45, color="grey", marker="D", label=BIT
        )
        ours = [row for row in rows if row["of"] == "ours"]
        if ours:
            x = [datasets.index(row["pre-trained on"]) for row in ours]
            panel.scatter(x, [row["top1"] for row in ours], 60, label="ours", **OUR_MARKER)
        panel.set_xticks(range(len(datasets)), datasets)
        panel.set(xlabel="pre-training data", ylabel="ImageNet top-1 (%)")
        panel.legend(fontsize="small")
        panel.grid(alpha=0.4)
        style.save_figure(figure, pathlib.Path(folder), "figure3")


def plot_figure5(rows: list[dict], folder: str) -> None:
    """Writes a plot with two panels, Avg-5 and ImageNet accuracy over pre-training compute."""
    with style.theme():
        figure = style.make_figure(9.5, 3.8)
        for panel, name in zip(figure.subplots(1, 2), ("Avg-5", "ImageNet")):
            for colour, kind in zip((style.COLOURS[0], *style.COLOURS[2:]), FAMILIES):
                points = [row for row in rows if (row["family"], row["of"]) == (kind, "paper")]
                x, y = ([row[key] for row in points] for key in ("exaFLOPs", name))
                panel.scatter(x, y, 40, color=colour, marker=MARKERS[kind], label=kind)
            ours = [row for row in rows if row["of"] == "ours" and row[name] is not None]
            if ours:
                x, y = ([row[key] for row in ours] for key in ("exaFLOPs", name))
                panel.scatter(x, y, 60, marker="*", label="ours", **OUR_MARKER)
            panel.set_xscale("log")
            panel.set(title=name, xlabel="total pre-training compute (exaFLOPs)")
            panel.grid(alpha=0.4, which="both")
        figure.axes[0].set_ylabel("transfer accuracy (%)")
        figure.axes[0].legend(fontsize="small")
        style.save_figure(figure, pathlib.Path(folder), "figure5")


CHARTS = {  # Figure -> function that returns its rows, function that plots them.
    "figure2": (figure2_rows, plot_figure2),
    "figure3": (figure3_rows, plot_figure3),
    "figure5": (figure5_rows, plot_figure5),
}
