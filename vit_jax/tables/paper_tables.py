"""The paper's tables as it prints them, and the cells of them that runs of ours belong to."""

import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from vit_jax.models.registry import PARAMETERS
from vit_jax.tables import paper
from vit_jax.tables.results import LINEAR, Run

Key = tuple  # What names a cell: such as pre-training, task and model.


class Cells(NamedTuple):
    """A table's cells: what their keys are made of, their values, and those of a run."""

    columns: tuple[str, ...]
    values: dict[Key, float]
    of_run: Callable[[Run], Iterator[tuple[Key, float | None]]]  # Keys, and scores in percent.


def table1() -> list[dict]:
    """Table 1, with parameters as counted here: of patches of 16 pixels, and of 14 for Huge."""
    names = ("vit_b16", "vit_l16", "vit_h14")
    rows = []
    for (title, row), name in zip(paper.TABLE_1.items(), names, strict=True):
        layers, hidden, mlp, heads, millions = row
        counted = round(PARAMETERS[name] / 1e6, 2)
        rows.append(
            {
                "Model": title,
                "Layers": layers,
                "Hidden size D": hidden,
                "MLP size": mlp,
                "Heads": heads,
                "Params": f"{millions}M",
                "counted (B/16, L/16, H/14)": f"{counted}M",
            }
        )
    return rows


def table2() -> list[dict]:
    """Table 2: mean and deviation over three fine-tuning runs."""
    names = (*paper.TASKS_2, "TPUv3-core-days")
    columns = {title: dict(zip(names, row)) for title, row in paper.TABLE_2.items()}
    return [
        {"": name, **{title: _mean(column[name]) for title, column in columns.items()}}
        for name in names
    ]


def _mean(cell) -> str:
    if cell is None:
        return "-"
    if not isinstance(cell, tuple):
        return f"{cell:,}"
    mean, deviation = cell
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def table3() -> list[dict]:
    """Table 3: pre-training."""
    names = ("Models", "Dataset", "Epochs", "Base LR", "LR decay", "Weight decay", "Dropout")
    rows = [dict(zip(names, row, strict=True)) for row in paper.TABLE_3]
    return [row | {"Base LR": f"{row['Base LR']:.0e}".replace("e-0", "e-")} for row in rows]


def table4() -> list[dict]:
    """Table 4: fine-tuning."""
    return [
        {
            "Dataset": title,
            "Steps": f"{steps:,}",
            "Base LR": ", ".join(f"{rate:g}" for rate in rates),
            "Held out of train": "its own 200" if share is None else f"{share:.0%}",
        }
        for title, (steps, rates, share) in paper.TABLE_4.items()
    ]


def table5() -> list[dict]:
    """Table 5, which Figure 3 draws."""
    return [
        {
            "Pre-trained on": data,
            "Task": task,
            **{m: _or_dash(x) for m, x in zip(paper.MODELS_5, row, strict=True)},
        }
        for data, tasks in paper.TABLE_5.items()
        for task, row in tasks.items()
    ]


def table7() -> list[dict]:
    """Table 7, with its averages."""
    columns = {", ".join(key): [*row, statistics.fmean(row)] for key, row in paper.TABLE_7.items()}
    return [
        {"Dataset": task, **{title: _or_dash(column[i]) for title, column in columns.items()}}
        for i, task in enumerate((*paper.TASKS_7, "Average"))
    ]


def table8() -> list[dict]:
    """Table 8: linear 5-shot ImageNet."""
    return [
        {"Position embedding": kind}
        | {place: _or_dash(x, 3) for place, x in zip(paper.PLACES_8, row, strict=True)}
        for kind, row in paper.TABLE_8.items()
    ]


def _or_dash(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _fine_tuned(run: Run) -> Iterator[tuple[str, float | None]]:
    """Task and accuracy of a run: ReaL's too, where it was evaluated."""
    score = run.metric("val/top1")
    if run.data is not None and score is not None and run.is_tested:
        yield run.data, 100 * score
    if run.real is not None:
        yield "ImageNet ReaL", 100 * run.real


def _cells2() -> Cells:
    values = {
        (title, task): cell[0]
        for title, row in paper.TABLE_2.items()
        for task, cell in zip(paper.TASKS_2, row)
        if cell is not None
    }

    def of_run(run: Run) -> Iterator[tuple[Key, float | None]]:
        for task, score in _fine_tuned(run):  # Its ImageNet column is of averaged weights.
            if run.config.optimizer.ema is not None or not task.startswith("ImageNet"):
                yield (f"{run.model}, {run.pre_training}", task), score

    return Cells(("model", "task"), values, of_run)


def _cells5() -> Cells:
    values = {
        (data, task, model): value
        for data, tasks in paper.TABLE_5.items()
        for task, row in tasks.items()
        for model, value in zip(paper.MODELS_5, row, strict=True)
        if value is not None
    }

    def of_run(run: Run) -> Iterator[tuple[Key, float | None]]:
        if run.config.optimizer.ema is None:
            for task, score in _fine_tuned(run):
                yield (run.pre_training, task, run.model), score

    return Cells(("pre-trained on", "task", "model"), values, of_run)


def _cells6() -> Cells:
    names = ("imagenet", "real", "cifar10", "cifar100", "pets", "flowers")
    tasks = ("ImageNet", "ImageNet ReaL", "CIFAR-10", "CIFAR-100", "Pets", "Flowers")
    values = {
        (row.title, row.epochs, task): getattr(row, name)
        for row in paper.TABLE_6
        for name, task in zip(names, tasks, strict=True)
    }

    def of_run(run: Run) -> Iterator[tuple[Key, float | None]]:
        if run.pre_training == "JFT-300M" and run.before.config.epochs:
            for task, score in _fine_tuned(run):
                yield (run.model, round(run.before.config.epochs), task), score

    return Cells(("model", "epochs", "task"), values, of_run)


def _cells7() -> Cells:
    values = {
        (*key, task): value
        for key, row in paper.TABLE_7.items()
        for task, value in zip(paper.TASKS_7, row, strict=True)
    }
    rules = {"adamw": "Adam", "sgd": "SGD"}

    def of_run(run: Run) -> Iterator[tuple[Key, float | None]]:
        if run.pre_training == "JFT-300M":
            rule = rules.get(run.before.config.optimizer.name)
            model = {"ResNet50x1": "ResNet50"}.get(run.model, run.model)
            for task, score in _fine_tuned(run):
                yield (model, rule, task), score

    return Cells(("model", "optimizer", "task"), values, of_run)


def _cells8() -> Cells:
    values = {
        (kind, place): value
        for kind, row in paper.TABLE_8.items()
        for place, value in zip(paper.PLACES_8, row, strict=True)
        if value is not None
    }

    def of_run(run: Run) -> Iterator[tuple[Key, float | None]]:
        score = run.metric(LINEAR)
        model = run.config.model
        yield (model.pos_embed, model.pos_embed_at), None if score is None else 100 * score

    return Cells(("position embedding", "added at"), values, of_run)


CELLS = {
    "table2": _cells2,
    "table5": _cells5,
    "table6": _cells6,
    "table7": _cells7,
    "table8": _cells8,
}


def beside(name: str, runs: Iterable[Run]) -> list[dict]:
    """A row for each cell of a table that runs belong to, with their mean and the paper's value.

    exaFLOPs and device-days are those of pre-training, where its run is known, or else of the
    runs themselves: means over them, as all else.
    """
    cells = CELLS[name]()
    found: dict[Key, list[tuple[float, Run]]] = {}
    for run in runs:
        for key, score in cells.of_run(run):
            if key in cells.values and score is not None:
                found.setdefault(key, []).append((score, run))
    rows = []
    for key in (key for key in cells.values if key in found):
        scores = [score for score, _ in found[key]]
        spent = [run.before or run for _, run in found[key]]
        rows.append(
            dict(zip(cells.columns, key, strict=True))
            | {
                "paper": cells.values[key],
                "ours": statistics.fmean(scores),
                "std": statistics.stdev(scores) if len(scores) > 1 else None,
                "runs": len(scores),
                "difference": statistics.fmean(scores) - cells.values[key],
                "exaFLOPs": statistics.fmean(run.exaflops for run in spent),
                "device-days": statistics.fmean(run.device_days for run in spent),
            }
        )
    return rows
