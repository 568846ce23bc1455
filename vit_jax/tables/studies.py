"""Figures 4, 8, 9 and 12, drawn from finished runs and measurements of this package.

The paper prints no numbers of these figures. Figures 4, 8 and 9 show linear few-shot accuracy
(section 4.1), which runs measure if `config.fewshot` is set; for other runs, accuracy on `val`.
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
from vit_jax.tables.results import FinishedRun
from vit_jax.training import metrics

# Fields in which runs averaged into one point may differ.
SEED_FIELDS = (
    *("seed", "init.path", "init.stage"),
    *config_lib.FREE_ON_RESUME,
)


def figure4_rows(folders: Sequence[str]) -> list[dict]:
    """Returns the points of Figure 4: few-shot accuracy by model and number of examples."""
    points: dict[tuple, list[FinishedRun]] = collections.defaultdict(list)
    for run in _read_scored_runs("figure4", folders):
        points[run.model, _num_examples(run)].append(run)
    for group in points.values():
        _require_same_config(group)
    return [
        {"model": model, "examples": examples} | _mean_score_and_cost(group)
        for (model, examples), group in sorted(points.items(), key=lambda point: point[0][::-1])
    ]


def _num_examples(run: FinishedRun) -> int:
    count = run.summary.get("num_examples", {}).get("train")
    if not count:
        raise ConfigError(f"{run.folder}: its {workdir.SUMMARY} lacks num_examples.train.")
    return count


def _mean_score_and_cost(group: Sequence[FinishedRun]) -> dict:
    (name, _), scores = group[0].study_score, [100 * run.study_score[1] for run in group]
    return {
        "score": name,
        "ours": statistics.fmean(scores),
        "std": statistics.stdev(scores) if len(scores) > 1 else None,
        "runs": len(scores),
        "exaFLOPs": statistics.fmean(run.exaflops for run in group),
    }


def _require_same_config(group: Sequence[FinishedRun]) -> None:
    """Raises ConfigError if runs of one point differ in more than SEED_FIELDS."""
    first, *others = (config_lib.to_dict({"": run.config}) for run in group)
    for run, other in zip(group[1:], others, strict=True):
        fields = config_lib.differing_fields(first, other)
        fields = [
            f for f in fields if f not in SEED_FIELDS and f.partition(".")[0] not in SEED_FIELDS
        ]
        fields += [] if _initial_weights(run) == _initial_weights(group[0]) else ["init"]
        if fields:
            raise ConfigError(
                f"{group[0].folder} and {run.folder} would be averaged, but differ in "
                f"{', '.join(fields)}; they may differ only in their seed."
            )


def _initial_weights(run: FinishedRun) -> tuple | str:
    """Returns what identifies initial weights; each seed may have its own copy of the same run."""
    if run.pretraining is None:
        return run.config.init.path or run.config.init.stage
    return run.pretraining.model, run.pretraining.dataset, run.pretraining.summary["step"]


def _read_scored_runs(figure: str, folders: Sequence[str]) -> list[FinishedRun]:
    """Reads the runs that have a score; raises ConfigError if they do not have the same one."""
    if not folders:
        raise ConfigError(f"tables {figure} needs a WORKDIR: the paper gives no numbers for it.")
    runs = [run for run in results.read_finished_runs(folders) if run.study_score is not None]
    if not runs:
        raise ConfigError(f"{folders[0]}: no run in it has a few-shot score or an accuracy.")
    names = {run.study_score[0] for run in runs}
    if len(names) > 1:
        raise ConfigError(
            f"tables {figure}: these runs have several scores: {', '.join(sorted(names))}; give "
            "runs with the same score."
        )
    return runs


SCALED_PARTS = {  # Part of the shape that Figure 8 scales -> field of `FinishedRun.shape`.
    "depth": "num_layers",
    "width": "hidden_size",
    "MLP width": "mlp_size",
    "patch": "patch",
}


def figure8_rows(folders: Sequence[str]) -> list[dict]:
    """Returns the points of Figure 8: few-shot accuracy by compute, scaling one part or all.

    The lines meet at the base shape, the one that most other shapes differ from in one part only.
    """
    shapes: dict[tuple, list[FinishedRun]] = collections.defaultdict(list)
    for run in _read_scored_runs("figure8", folders):
        shapes[tuple(_shape(run).values())].append(run)
    base = _base_shape([*shapes])
    base_exaflops = statistics.fmean(run.exaflops for run in shapes[base])
    if not base_exaflops:
        raise ConfigError(f"{shapes[base][0].folder}: its {workdir.SUMMARY} has no FLOPs.")
    rows = []
    for shape, group in shapes.items():
        _require_same_config(group)
        changed = [name for name, a, b in zip(SCALED_PARTS, shape, base) if a != b]
        means = _mean_score_and_cost(group)
        scaled = "all" if len(changed) == len(SCALED_PARTS) else " + ".join(changed) or "centre"
        rows.append(
            {
                "scaled": scaled,
                **dict(zip(SCALED_PARTS, shape)),
                "compute": means["exaFLOPs"] / base_exaflops,
                **means,
            }
        )
    return sorted(rows, key=lambda row: row["compute"])


def _shape(run: FinishedRun) -> dict[str, int]:
    if run.shape is None:
        raise ConfigError(f"{run.folder}: figure8 needs Vision Transformers; this is a ResNet.")
    return {name: getattr(run.shape, field) for name, field in SCALED_PARTS.items()}


def _base_shape(shapes: Sequence[tuple]) -> tuple:
    def num_one_part_away(base: tuple) -> int:
        return sum(sum(a != b for a, b in zip(shape, base)) == 1 for shape in shapes)

    return max(shapes, key=num_one_part_away)


def figure9_rows(folders: Sequence[str]) -> list[dict]:
    """Returns the points of Figure 9: few-shot accuracy by head, learning rate and epoch."""
    scores_by_point: dict[tuple, list[float]] = collections.defaultdict(list)
    lines: dict[tuple, list[FinishedRun]] = collections.defaultdict(list)
    runs = _read_scored_runs("figure9", folders)
    name, _ = runs[0].study_score
    for run in runs:
        lines[run.config.model.pool, run.config.optimizer.lr].append(run)
    for (head, lr), group in lines.items():
        _require_same_config(group)
        for run in group:
            for record in metrics.read(run.folder):
                if record.get(name) is not None:
                    epoch = record["step"] * run.config.batch_size / _num_examples(run)
                    scores_by_point[head, lr, epoch].append(100 * record[name])
    if not scores_by_point:
        raise ConfigError(f"{runs[0].folder}: no {name} in its {metrics.FILE}.")
    return [
        {"head": head, "lr": lr, "epoch": epoch, "score": name}
        | {"ours": statistics.fmean(scores), "runs": len(scores)}
        | {"std": statistics.stdev(scores) if len(scores) > 1 else None}
        for (head, lr, epoch), scores in scores_by_point.items()
    ]


def figure12_rows(files: Sequence[str]) -> list[dict]:
    """Returns the points of Figure 12: speed and largest batch size by image size.

    Args:
      files: files that `benchmark --out` wrote.
    """
    if not files:
        raise ConfigError(
            "tables figure12 needs a FILE that `benchmark --out` wrote: the paper prints no "
            "numbers of it."
        )
    measured = benchmarks.summarize_records(
        record for file in files for record in benchmarks.read_records(file)
    )
    rows = []
    for row in measured:
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
    """Axes of a panel.

    Attributes:
      x, y: columns of the rows to plot.
      lines: columns whose values identify a line.
      x_label, y_label: axis labels.
      log: use a logarithmic x axis.
      ticks: put a tick at every value of x.
    """

    x: str
    y: str
    lines: tuple[str, ...]
    x_label: str
    y_label: str
    log: bool = True
    ticks: bool = False


LINE_STYLES = [
    {"color": color, "marker": marker, "linestyle": "-"}
    for color, marker in zip(style.COLOURS, "os^DvP*")
]


def _plot_panel(panel, rows: Iterable[dict], axes: Axes) -> None:
    lines: dict[str, list[dict]] = collections.defaultdict(list)
    for row in rows:
        lines[", ".join(f"{row[name]}" for name in axes.lines)].append(row)
    for i, (label, points) in enumerate(lines.items()):
        points = sorted(points, key=lambda row: row[axes.x])
        errors = [row.get("std") or 0.0 for row in points]
        x, y = ([row[key] for row in points] for key in (axes.x, axes.y))
        line_style = LINE_STYLES[i % len(LINE_STYLES)]
        panel.errorbar(x, y, errors, label=label, capsize=2 * any(errors), **line_style)
    panel.set(xlabel=axes.x_label, ylabel=axes.y_label)
    if axes.log:
        panel.set_xscale("log")
    if axes.ticks:
        ticks = sorted({row[axes.x] for row in rows})
        panel.set_xticks(ticks, ticks)
        panel.minorticks_off()
    panel.legend(fontsize="small")
    panel.grid(alpha=0.4)


def _save_plot(name: str, panels: Sequence[Axes], rows: list[dict], folder: str) -> None:
    with style.theme():
        figure = style.make_figure(5.2 * len(panels), 3.8)
        for panel, axes in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            _plot_panel(panel, rows, axes)
        style.save_figure(figure, pathlib.Path(folder), name)


def _score_label(rows: list[dict]) -> str:
    """Returns the axis label of a score: 'digits 5-shot (%)' for 'fewshot/digits_5shot'."""
    score = rows[0]["score"].partition("/")[2].replace("_", " ").replace("shot", "-shot")
    return f"{score} (%)"


def plot_figure4(rows: list[dict], folder: str) -> None:
    """Plots accuracy over the number of examples and over compute."""
    y = _score_label(rows)
    data = Axes("examples", "ours", ("model",), "pre-training examples", y, ticks=True)
    compute = Axes("exaFLOPs", "ours", ("examples",), "pre-training compute (exaFLOPs)", y)
    _save_plot("figure4", [data, compute], rows, folder)


def plot_figure8(rows: list[dict], folder: str) -> None:
    """Plots accuracy over compute; the line of each scaled part passes through the base shape."""
    parts = dict.fromkeys(row["scaled"] for row in rows if row["scaled"] != "centre")
    points = [
        row | {"scaled": scaled}
        for scaled in parts
        for row in rows
        if row["scaled"] in (scaled, "centre")
    ]
    axes = Axes("compute", "ours", ("scaled",), "relative compute", _score_label(rows))
    _save_plot("figure8", [axes], points or rows, folder)


def plot_figure9(rows: list[dict], folder: str) -> None:
    """Plots accuracy over epochs, a line per head and learning rate."""
    axes = Axes("epoch", "ours", ("head", "lr"), "epochs", _score_label(rows), log=False)
    _save_plot("figure9", [axes], rows, folder)


def plot_figure12(rows: list[dict], folder: str) -> None:
    """Plots speed over image size and, if measured, the largest batch size that fits."""
    optional = ("contestant", "mode", "dtype")
    lines = ("model", *(name for name in optional if len({row[name] for row in rows}) > 1))
    speed = Axes("image size", "img/s", lines, "image size (pixels)", "images/s", ticks=True)
    batch = dataclasses.replace(speed, y="batch", y_label="largest batch size")
    largest = [row for row in rows if row["is largest"]]
    with style.theme():
        figure = style.make_figure(5.2 * (1 + bool(largest)), 3.8)
        left, *right = figure.subplots(1, 1 + bool(largest), squeeze=False)[0]
        _plot_panel(left, [row for row in rows if not row["is largest"]] or rows, speed)
        for panel in right:
            _plot_panel(panel, largest, batch)
        for panel in figure.axes:
            panel.set_yscale("log")
        style.save_figure(figure, pathlib.Path(folder), "figure12")


# Figure -> function that returns its rows, function that plots them.
STUDIES: dict[str, tuple[Callable, Callable]] = {
    "figure4": (figure4_rows, plot_figure4),
    "figure8": (figure8_rows, plot_figure8),
    "figure9": (figure9_rows, plot_figure9),
    "figure12": (figure12_rows, plot_figure12),
}
