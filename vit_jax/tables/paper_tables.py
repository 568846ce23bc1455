"""The paper's tables as printed, and the cells of these tables that finished runs belong to."""

import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from vit_jax.models.registry import PARAMETERS
from vit_jax.tables import paper
from vit_jax.tables.results import IMAGENET_5SHOT, FinishedRun

CellKey = tuple  # Identifies a cell, such as (pre-training data, task, model).


class TableCells(NamedTuple):
    """Cells of a table.

    Attributes:
      columns: names of the parts of a key.
      values: the paper's value of each cell, in percent.
      run_scores: function that yields the cells a run belongs to, and its scores in percent.
    """

    columns: tuple[str, ...]
    values: dict[CellKey, float]
    run_scores: Callable[[FinishedRun], Iterator[tuple[CellKey, float | None]]]


def table1() -> list[dict]:
    """Returns Table 1, with the parameters of our models: patch size 16, and 14 for Huge."""
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
    """Returns Table 2: mean and standard deviation of three fine-tuning runs."""
    names = (*paper.TASKS_2, "TPUv3-core-days")
    columns = {title: dict(zip(names, row)) for title, row in paper.TABLE_2.items()}
    return [
        {"": name, **{title: _mean_and_std(column[name]) for title, column in columns.items()}}
        for name in names
    ]


def _mean_and_std(cell) -> str:
    if cell is None:
        return "-"
    if not isinstance(cell, tuple):
        return f"{cell:,}"
    mean, deviation = cell
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def table3() -> list[dict]:
    """Returns Table 3: hyperparameters of pre-training."""
    names = ("Models", "Dataset", "Epochs", "Base LR", "LR decay", "Weight decay", "Dropout")
    rows = [dict(zip(names, row, strict=True)) for row in paper.TABLE_3]
    return [row | {"Base LR": f"{row['Base LR']:.0e}".replace("e-0", "e-")} for row in rows]


def table4() -> list[dict]:
    """Returns Table 4: hyperparameters of fine-tuning."""
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
    """Returns Table 5: fine-tuning accuracy by pre-training data (Figure 3)."""
    return [
        {
            "Pre-trained on": data,
            "Task": task,
            **{m: _format_value(x) for m, x in zip(paper.MODELS_5, row, strict=True)},
        }
        for data, tasks in paper.TABLE_5.items()
        for task, row in tasks.items()
    ]


def table7() -> list[dict]:
    """Returns Table 7: ResNets pre-trained with Adam and SGD, and the averages over tasks."""
    columns = {", ".join(key): [*row, statistics.fmean(row)] for key, row in paper.TABLE_7.items()}
    return [
        {"Dataset": task, **{title: _format_value(column[i]) for title, column in columns.items()}}
        for i, task in enumerate((*paper.TASKS_7, "Average"))
    ]


def table8() -> list[dict]:
    """Returns Table 8: linear 5-shot ImageNet accuracy by position embedding."""
    return [
        {"Position embedding": kind}
        | {
            added_at: _format_value(x, 3)
            for added_at, x in zip(paper.POS_EMBED_AT_8, row, strict=True)
        }
        for kind, row in paper.TABLE_8.items()
    ]


def _format_value(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _task_scores(run: FinishedRun) -> Iterator[tuple[str, float | None]]:
    """Yields task and accuracy of a run in percent, and ImageNet ReaL if it was evaluated."""
    score = run.metric("val/top1")
    if run.dataset is not None and score is not None and run.is_scored_on_held_out_data:
        yield run.dataset, 100 * score
    if run.real_top1 is not None:
        yield "ImageNet ReaL", 100 * run.real_top1


def _table2_cells() -> TableCells:
    values = {
        (title, task): cell[0]
        for title, row in paper.TABLE_2.items()
        for task, cell in zip(paper.TASKS_2, row)
        if cell is not None
    }

    def run_scores(run: FinishedRun) -> Iterator[tuple[CellKey, float | None]]:
        for task, score in _task_scores(run):  # ImageNet: averaged weights only.
            if run.config.optimizer.ema is not None or not task.startswith("ImageNet"):
                yield (f"{run.model}, {run.pretraining_dataset}", task), score

    return TableCells(("model", "task"), values, run_scores)


def _table5_cells() -> TableCells:
    values = {
        (data, task, model): value
        for data, tasks in paper.TABLE_5.items()
        for task, row in tasks.items()
        for model, value in zip(paper.MODELS_5, row, strict=True)
        if value is not None
    }

    def run_scores(run: FinishedRun) -> Iterator[tuple[CellKey, float | None]]:
        if run.config.optimizer.ema is None:
            for task, score in _task_scores(run):
                yield (run.pretraining_dataset, task, run.model), score

    return TableCells(("pre-trained on", "task", "model"), values, run_scores)


def _table6_cells() -> TableCells:
    names = ("imagenet", "real", "cifar10", "cifar100", "pets", "flowers")
    tasks = ("ImageNet", "ImageNet ReaL", "CIFAR-10", "CIFAR-100", "Pets", "Flowers")
    values = {
        (row.title, row.epochs, task): getattr(row, name)
        for row in paper.TABLE_6
        for name, task in zip(names, tasks, strict=True)
    }

    def run_scores(run: FinishedRun) -> Iterator[tuple[CellKey, float | None]]:
        if run.pretraining_dataset == "JFT-300M" and run.pretraining.config.epochs:
            for task, score in _task_scores(run):
                yield (run.model, round(run.pretraining.config.epochs), task), score

    return TableCells(("model", "epochs", "task"), values, run_scores)


def _table7_cells() -> TableCells:
    values = {
        (*key, task): value
        for key, row in paper.TABLE_7.items()
        for task, value in zip(paper.TASKS_7, row, strict=True)
    }
    optimizers = {"adamw": "Adam", "sgd": "SGD"}

    def run_scores(run: FinishedRun) -> Iterator[tuple[CellKey, float | None]]:
        if run.pretraining_dataset == "JFT-300M":
            optimizer = optimizers.get(run.pretraining.config.optimizer.name)
            model = {"ResNet50x1": "ResNet50"}.get(run.model, run.model)
            for task, score in _task_scores(run):
                yield (model, optimizer, task), score

    return TableCells(("model", "optimizer", "task"), values, run_scores)


def _table8_cells() -> TableCells:
    values = {
        (kind, added_at): value
        for kind, row in paper.TABLE_8.items()
        for added_at, value in zip(paper.POS_EMBED_AT_8, row, strict=True)
        if value is not None
    }

    def run_scores(run: FinishedRun) -> Iterator[tuple[CellKey, float | None]]:
        score = run.metric(IMAGENET_5SHOT)
        model = run.config.model
        yield (model.pos_embed, model.pos_embed_at), None if score is None else 100 * score

    return TableCells(("position embedding", "added at"), values, run_scores)


CELLS = {  # Tables that finished runs can belong to.
    "table2": _table2_cells,
    "table5": _table5_cells,
    "table6": _table6_cells,
    "table7": _table7_cells,
    "table8": _table8_cells,
}


def compare_with_paper(name: str, runs: Iterable[FinishedRun]) -> list[dict]:
    """Returns a row per cell of a table with at least one run.

    A row has the paper's value and mean and standard deviation of the runs' scores. exaFLOPs and
    device-days are means of the pre-training cost if the pre-training run is known, else of the
    cost of the runs themselves.
    """
    cells = CELLS[name]()
    runs_by_cell: dict[CellKey, list[tuple[float, FinishedRun]]] = {}
    for run in runs:
        for key, score in cells.run_scores(run):
            if key in cells.values and score is not None:
                runs_by_cell.setdefault(key, []).append((score, run))
    rows = []
    for key in (key for key in cells.values if key in runs_by_cell):
        scores = [score for score, _ in runs_by_cell[key]]
        costs = [run.pretraining or run for _, run in runs_by_cell[key]]
        rows.append(
            dict(zip(cells.columns, key, strict=True))
            | {
                "paper": cells.values[key],
                "ours": statistics.fmean(scores),
                "std": statistics.stdev(scores) if len(scores) > 1 else None,
                "runs": len(scores),
                "difference": statistics.fmean(scores) - cells.values[key],
                "exaFLOPs": statistics.fmean(run.exaflops for run in costs),
                "device-days": statistics.fmean(run.device_days for run in costs),
            }
        )
    return rows
