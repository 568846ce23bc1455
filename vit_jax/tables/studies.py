"""The paper's figures that print no numbers, drawn from runs and measurements of ours.

Figures 4, 8 and 9 show linear few-shot accuracy (section 4.1), which runs measure by
`config.fewshot`; a run without it is judged by its accuracy on `val`.
"""

import collections
import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence

from vit_jax import config as config_lib
from vit_jax.checkpoints import workdir
from vit_jax.errors import ConfigError
from vit_jax.figures import style
from vit_jax.models import titles
from vit_jax.tables import benchmarks, results
from vit_jax.tables.results import Run
from vit_jax.training import metrics

# What runs of one point may differ in.
FREE = (
    *("seed", "init.path", "init.stage", "keep_last", "keep_every"),
    *config_lib.FREE_ON_RESUME,
)
NO_NUMBERS = "the paper prints no numbers of it"


def figure4(folders: Sequence[str]) -> list[dict]:
    """Figure 4: few-shot accuracy after pre-training on subsets, by model and examples."""
    found = _read("figure4", folders)
    cells: dict[tuple, list[Run]] = collections.defaultdict(list)
    for run in found:
        cells[run.model, _examples(run)].append(run)
    for group in cells.values():
        _refuse_mixture(group)
    return [
        {"model": model, "examples": examples} | _summary(group)
        for (model, examples), group in sorted(cells.items(), key=lambda cell: cell[0][::-1])
    ]


def _examples(run: Run) -> int:
    count = run.summary.get("num_examples", {}).get("train")
    if not count:
        raise ConfigError(f"{run.folder}: its {workdir.SUMMARY} has no number of examples.")
    return count


def _summary(group: Sequence[Run]) -> dict:
    """What runs of one cell scored, and what they cost."""
    (name, _), scores = group[0].judged, [100 * run.judged[1] for run in group]
    return {
        "score": name,
        "ours": statistics.fmean(scores),
        "std": statistics.stdev(scores) if len(scores) > 1 else None,
        "runs": len(scores),
        "exaFLOPs": statistics.fmean(run.exaflops for run in group),
    }


def _refuse_mixture(group: Sequence[Run]) -> None:
    """Raises ConfigError for runs of one point that differ in more than their seed."""
    first, *others = (config_lib.to_dict({"": run.config}) for run in group)
    for run, other in zip(group[1:], others, strict=True):
        fields = config_lib.differing_fields(first, other)
        fields = [f for f in fields if f not in FREE and f.partition(".")[0] not in FREE]
        fields += [] if _beginning(run) == _beginning(group[0]) else ["init"]
        if fields:
            raise ConfigError(
                f"{group[0].folder} and {run.folder} would be seeds of one point; they differ in "
                f"{', '.join(fields)}."
            )


def _beginning(run: Run) -> tuple | str:
    """What a run began with: each seed may have had a copy of its own."""
    if run.before is None:
        return run.config.init.path or run.config.init.stage
    return run.before.model, run.before.data, run.before.summary["step"]


def _read(figure: str, folders: Sequence[str]) -> list[Run]:
    """The runs of the folders that are judged by the same score as the first."""
    if not folders:
        raise ConfigError(f"tables {figure} needs a WORKDIR: {NO_NUMBERS}.")
    found = [run for run in results.read(folders) if run.judged is not None]
    if not found:
        raise ConfigError(f"{folders[0]}: no run in it has a few-shot score or an accuracy.")
    names = {run.judged[0] for run in found}
    if len(names) > 1:
        raise ConfigError(
            f"tables {figure}: these runs have several scores: {', '.join(sorted(names))}."
        )
    return found


SCALES = {  # What Figure 8 scales -> the field of a run's shape.
    "depth": "num_layers",
    "width": "hidden_size",
    "MLP width": "mlp_size",
    "patch": "patch",
}


def figure8(folders: Sequence[str]) -> list[dict]:
    """Figure 8: few-shot accuracy against compute where one part of the shape is scaled, or all.

    The lines cross at the shape that most of the others differ from in one part alone.
    """
    found = _read("figure8", folders)
    shapes: dict[tuple, list[Run]] = collections.defaultdict(list)
    for run in found:
        shapes[tuple(_shape(run).values())].append(run)
    centre = _crossing([*shapes])
    base = statistics.fmean(run.exaflops for run in shapes[centre])
    if not base:
        raise ConfigError(f"{shapes[centre][0].folder}: its summary counts no FLOPs.")
    rows = []
    for shape, group in shapes.items():
        _refuse_mixture(group)
        changed = [name for name, a, b in zip(SCALES, shape, centre) if a != b]
        told = _summary(group)
        rows.append(
            {
                "scaled": "all" if len(changed) == len(SCALES) else " + ".join(changed) or "centre",
                **dict(zip(SCALES, shape)),
                "compute": told["exaFLOPs"] / base,
                **told,
            }
        )
    return sorted(rows, key=lambda row: row["compute"])


def _shape(run: Run) -> dict[str, int]:
    if run.shape is None:
        raise ConfigError(f"{run.folder}: a ResNet has no shape of Figure 8.")
    return {name: getattr(run.shape, field) for name, field in SCALES.items()}


def _crossing(shapes: Sequence[tuple]) -> tuple:
    def num_near(centre: tuple) -> int:
        return sum(sum(a != b for a, b in zip(shape, centre)) == 1 for shape in shapes)

    return max(shapes, key=num_near)


def figure9(folders: Sequence[str]) -> list[dict]:
    """Figure 9: few-shot accuracy over the epochs of pre-training, by head and learning rate."""
    cells: dict[tuple, list[float]] = collections.defaultdict(list)
    lines: dict[tuple, list[Run]] = collections.defaultdict(list)
    found = _read("figure9", folders)
    name = found[0].judged[0]
    for run in found:
        lines[run.config.model.pool, run.config.optimizer.lr].append(run)
    for (head, lr), group in lines.items():
        _refuse_mixture(group)
        for run in group:
            for record in metrics.read(run.folder):
                if record.get(name) is not None:
                    epoch = record["step"] * run.config.batch_size / _examples(run)
                    cells[head, lr, epoch].append(100 * record[name])
    if not cells:
        raise ConfigError(f"{found[0].folder}: no {name} in its {metrics.FILE}.")
    return [
        {"head": head, "lr": lr, "epoch": epoch, "score": name}
        | {"ours": statistics.fmean(scores), "runs": len(scores)}
        | {"std": statistics.stdev(scores) if len(scores) > 1 else None}
        for (head, lr, epoch), scores in cells.items()
    ]


def figure12(files: Sequence[str]) -> list[dict]:
    """Figure 12: speed over input sizes, and the largest batches; from `benchmark --out` files."""
    if not files:
        raise ConfigError(
            f"tables figure12 needs a FILE that `benchmark --out` wrote: {NO_NUMBERS}."
        )
    found = benchmarks.summaries(record for file in files for record in benchmarks.read(file))
    rows = []
    for row in found:
        size = row["image_size"]
        rows.append(
            {
                "model": titles.model_title(row["model"]),
                "contestant": row["contestant"],
                "mode": row["mode"],
                "dtype": row["dtype"],
                "image size": size if isinstance(size, int) else max(size),
                "batch": row["batch"],
                "is largest": "largest_batch" in row["options"],
                "img/s": row["img/s"],
            }
        )
    return sorted(rows, key=lambda row: (row["model"], row["contestant"], row["image size"]))


@dataclasses.dataclass(frozen=True)
class Axes:
    """A panel: what it draws over what, a line for each value of some columns."""

    x: str
    y: str
    lines: tuple[str, ...]
    x_label: str
    y_label: str
    log: bool = True
    ticks: bool = False  # At every x, as it is.


def _draw(panel, rows: Iterable[dict], axes: Axes) -> None:
    groups: dict[str, list[dict]] = collections.defaultdict(list)
    for row in rows:
        groups[", ".join(f"{row[name]}" for name in axes.lines)].append(row)
    for i, (label, group) in enumerate(groups.items()):
        group = sorted(group, key=lambda row: row[axes.x])
        errors = [row.get("std") or 0.0 for row in group]
        x, y = ([row[key] for row in group] for key in (axes.x, axes.y))
        look = STYLES[i % len(STYLES)]
        panel.errorbar(x, y, errors, label=label, capsize=2 * any(errors), **look)
    panel.set(xlabel=axes.x_label, ylabel=axes.y_label)
    if axes.log:
        panel.set_xscale("log")
    if axes.ticks:
        places = sorted({row[axes.x] for row in rows})
        panel.set_xticks(places, places)
        panel.minorticks_off()
    panel.legend(fontsize="small")
    panel.grid(alpha=0.4)


STYLES = [{"color": c, "marker": m, "linestyle": "-"} for c, m in zip(style.COLOURS, "os^DvP*")]


def _plot(name: str, panels: Sequence[Axes], rows: list[dict], folder: str) -> None:
    with style.theme():
        figure = style.make_figure(5.2 * len(panels), 3.8)
        for panel, axes in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            _draw(panel, rows, axes)
        style.save(figure, pathlib.Path(folder), name)


def _accuracy(rows: list[dict]) -> str:
    """'fewshot/digits_5shot' as an axis says it."""
    words = rows[0]["score"].partition("/")[2].replace("_", " ").replace("shot", "-shot")
    return f"{words} (%)"


def plot4(rows: list[dict], folder: str) -> None:
    """Accuracy over examples, a line for each model, and over compute, one for each share."""
    y = _accuracy(rows)
    data = Axes("examples", "ours", ("model",), "pre-training examples", y, ticks=True)
    compute = Axes("exaFLOPs", "ours", ("examples",), "pre-training compute (exaFLOPs)", y)
    _plot("figure4", [data, compute], rows, folder)


def plot8(rows: list[dict], folder: str) -> None:
    """Accuracy over compute, a line for each part that is scaled; all go through the centre."""
    lines = dict.fromkeys(row["scaled"] for row in rows if row["scaled"] != "centre")
    drawn = [
        row | {"scaled": scaled}
        for scaled in lines
        for row in rows
        if row["scaled"] in (scaled, "centre")
    ]
    axes = Axes("compute", "ours", ("scaled",), "relative compute", _accuracy(rows))
    _plot("figure8", [axes], drawn or rows, folder)


def plot9(rows: list[dict], folder: str) -> None:
    """Accuracy over epochs, a line for each head and learning rate."""
    axes = Axes("epoch", "ours", ("head", "lr"), "epochs", _accuracy(rows), log=False)
    _plot("figure9", [axes], rows, folder)


def plot12(rows: list[dict], folder: str) -> None:
    """Speed over input sizes, and largest batches where they were searched for."""
    kinds = ("contestant", "mode", "dtype")
    lines = ("model", *(kind for kind in kinds if len({row[kind] for row in rows}) > 1))
    speed = Axes("image size", "img/s", lines, "input size (px)", "images a second", ticks=True)
    batch = dataclasses.replace(speed, y="batch", y_label="largest batch")
    largest = [row for row in rows if row["is largest"]]
    with style.theme():
        figure = style.make_figure(5.2 * (1 + bool(largest)), 3.8)
        left, *right = figure.subplots(1, 1 + bool(largest), squeeze=False)[0]
        _draw(left, [row for row in rows if not row["is largest"]] or rows, speed)
        for panel in right:
            _draw(panel, largest, batch)
        for panel in figure.axes:
            panel.set_yscale("log")
        style.save(figure, pathlib.Path(folder), "figure12")


STUDIES: dict[str, tuple[Callable, Callable]] = {
    "figure4": (figure4, plot4),
    "figure8": (figure8, plot8),
    "figure9": (figure9, plot9),
    "figure12": (figure12, plot12),
}
