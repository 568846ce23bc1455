"""Table 9: finished runs on VTAB-1k beside the paper's, with the means of its groups."""

import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence

from vit_jax.checkpoints import workdir
from vit_jax.data.vtab import GROUPS, TASKS
from vit_jax.errors import ConfigError
from vit_jax.markdown import markdown
from vit_jax.tables.paper import TABLE_9
from vit_jax.tables.results import places

PROTOCOL = {  # Of config.data.
    "source": "vtab",
    "split": "train800val200",
    "val_split": "test",
    "dev": None,
}
PAPER = {title: dict(zip(TASKS, row, strict=True)) for title, row in TABLE_9.items()}


def published() -> list[dict]:
    """Table 9 as the paper prints it, with its means."""
    rows = [
        {
            "group": group,
            "task": task.name,
            **{title: row[task.name] for title, row in PAPER.items()},
        }
        for group, tasks in GROUPS.items()
        for task in tasks
    ]
    mean = {title: statistics.fmean(row.values()) for title, row in PAPER.items()}
    return [*rows, {"group": "all", "task": "mean", **mean}]


def of_workdirs(folders: Sequence[str], as_json: bool = False) -> str:
    """The accuracies found in the folders, then their means; Markdown or JSON."""
    found = accuracies(folders)
    tables = {"tasks": by_task(found), "means": means(found)}
    if as_json:
        return json.dumps(tables, indent=2)
    return "\n\n".join(markdown(_told(rows)) for rows in tables.values())


def accuracies(folders: Iterable[str]) -> dict[str, list[float]]:
    """Task -> top-1 on its test split in percent, of each finished run by the protocol.

    A run is a folder or one in it, as a config with stages writes them; of a sweep, the runs for
    its seeds count, each for itself. Raises ConfigError for a folder without such a run.
    """
    found: dict[str, list[float]] = {}
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder.")
        scored = list(filter(None, map(_scored, places(folder))))
        if not scored:
            raise ConfigError(
                f"{folder} has no finished run of data.source=vtab with "
                f"data.split={PROTOCOL['split']} and data.val_split={PROTOCOL['val_split']}."
            )
        for task, top1 in scored:
            found.setdefault(task, []).append(100 * top1)
    return found


def _scored(run: pathlib.Path) -> tuple[str, float] | None:
    """The task of a run's folder and its accuracy; None where it is no such run, or unfinished."""
    data = (workdir.read_json(run / workdir.CONFIG) or {}).get("data")
    summary = workdir.read_summary(run)
    if summary is None or not isinstance(data, dict):  # Of a sweep there is none.
        return None
    if any(data.get(name) != value for name, value in PROTOCOL.items()):
        return None
    top1 = summary["metrics"].get("val/top1")
    return None if top1 is None else (data["dataset"], top1)


def by_task(found: Mapping[str, Sequence[float]]) -> list[dict]:
    """A row for each of the 19 tasks: how many runs, their mean or None, and the paper's."""
    rows = []
    for group, tasks in GROUPS.items():
        for task in tasks:
            runs = found.get(task.name, ())
            row = {"group": group, "task": task.name, "runs": len(runs)}
            row |= {"ours": statistics.mean(runs) if runs else None}
            rows.append(row | {title: paper[task.name] for title, paper in PAPER.items()})
    return rows


def means(found: Mapping[str, Sequence[float]]) -> list[dict]:
    """A row for each group that there are tasks of, and for all; the paper's of the same tasks.

    The last is called VTAB-1k only where all 19 are there.
    """
    columns = {"ours": {task: statistics.mean(runs) for task, runs in found.items()}} | PAPER
    parts = {group: [task.name for task in tasks] for group, tasks in GROUPS.items()}
    parts["VTAB-1k" if len(found) == len(TASKS) else "all present"] = list(TASKS)
    rows = []
    for name, tasks in parts.items():
        present = [task for task in tasks if task in found]
        if present:
            row = {"mean": name, "tasks": f"{len(present)} of {len(tasks)}"}
            for title, column in columns.items():
                row[title] = statistics.mean(column[task] for task in present)
            rows.append(row)
    return rows


def _told(rows: Sequence[dict]) -> list[dict]:
    return [{key: "-" if value is None else value for key, value in row.items()} for row in rows]
