"""Table 9: finished runs on VTAB-1k beside the paper's, with the means of task groups."""

import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence

from vit_jax.atomic_io import to_json
from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.local_copy import open_folder
from vit_jax.data.vtab import GROUPS, TASKS
from vit_jax.errors import ConfigError
from vit_jax.tables.paper import TABLE_9
from vit_jax.tables.results import run_folders
from vit_jax.text import markdown_table

PROTOCOL = {  # Fields of config.data in runs that Table 9 counts.
    "source": "vtab",
    "split": "train800val200",
    "val_split": "test",
    "dev": None,
}
PAPER_ACCURACIES = {title: dict(zip(TASKS, row, strict=True)) for title, row in TABLE_9.items()}


def paper_rows() -> list[dict]:
    """Returns Table 9 as the paper prints it, and a row with the mean over all tasks."""
    rows = [
        {
            "group": group,
            "task": task.name,
            **{title: row[task.name] for title, row in PAPER_ACCURACIES.items()},
        }
        for group, tasks in GROUPS.items()
        for task in tasks
    ]
    mean = {title: statistics.fmean(row.values()) for title, row in PAPER_ACCURACIES.items()}
    return [*rows, {"group": "all", "task": "mean", **mean}]


def format_workdirs(folders: Sequence[str], as_json: bool = False) -> str:
    """Returns accuracies by task and their means over groups, as Markdown or JSON."""
    accuracies = read_accuracies(folders)
    tables = {"tasks": task_rows(accuracies), "means": mean_rows(accuracies)}
    if as_json:
        return to_json(tables, indent=2)
    return "\n\n".join(map(markdown_table, tables.values()))


def read_accuracies(folders: Iterable[str]) -> dict[str, list[float]]:
    """Returns task -> test top-1 in percent of each finished run that follows PROTOCOL.

    Runs are the folders and their `run_folders`; the seeds of a sweep count as separate runs.

    Raises:
      ConfigError: a folder does not exist or contains no such run.
    """
    accuracies: dict[str, list[float]] = {}
    for folder in (open_folder(folder, ConfigError) for folder in folders):
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder.")
        scores = list(filter(None, map(_read_task_and_top1, run_folders(folder))))
        if not scores:
            raise ConfigError(
                f"{folder} has no finished run of data.source=vtab with "
                f"data.split={PROTOCOL['split']} and data.val_split={PROTOCOL['val_split']}."
            )
        for task, top1 in scores:
            accuracies.setdefault(task, []).append(100 * top1)
    return accuracies


def _read_task_and_top1(folder: pathlib.Path) -> tuple[str, float] | None:
    """Returns task and top-1 of a run; None if it is unfinished or does not follow PROTOCOL."""
    data = (workdir.read_json(folder / workdir.CONFIG) or {}).get("data")
    summary = workdir.read_summary(folder)
    if summary is None or not isinstance(data, dict):  # The summary of a sweep is not a run's.
        return None
    if any(data.get(name) != value for name, value in PROTOCOL.items()):
        return None
    top1 = summary["metrics"].get("val/top1")
    return None if top1 is None else (data["dataset"], top1)


def task_rows(accuracies: Mapping[str, Sequence[float]]) -> list[dict]:
    """Returns a row per task: number of runs, their mean or None, and the paper's values."""
    rows = []
    for group, tasks in GROUPS.items():
        for task in tasks:
            runs = accuracies.get(task.name, ())
            row = {"group": group, "task": task.name, "runs": len(runs)}
            row |= {"ours": statistics.mean(runs) if runs else None}
            paper = {title: column[task.name] for title, column in PAPER_ACCURACIES.items()}
            rows.append(row | paper)
    return rows


def mean_rows(accuracies: Mapping[str, Sequence[float]]) -> list[dict]:
    """Returns a row per group with at least one task, and one for all tasks.

    Means of the paper's values are over the same tasks as ours. The last row is called VTAB-1k
    only if all 19 tasks are present.
    """
    ours = {"ours": {task: statistics.mean(runs) for task, runs in accuracies.items()}}
    groups = {group: [task.name for task in tasks] for group, tasks in GROUPS.items()}
    groups["VTAB-1k" if len(accuracies) == len(TASKS) else "all present"] = list(TASKS)
    rows = []
    for name, tasks in groups.items():
        present = [task for task in tasks if task in accuracies]
        if present:
            row = {"mean": name, "tasks": f"{len(present)} of {len(tasks)}"}
            for title, column in (ours | PAPER_ACCURACIES).items():
                row[title] = statistics.mean(column[task] for task in present)
            rows.append(row)
    return rows
