"""What a run has written into its folder so far, finished or not."""

import dataclasses
import pathlib
import typing
from collections.abc import Callable

from vit_jax.checkpoints import checkpoint, workdir
from vit_jax.config.schema import Config
from vit_jax.errors import CheckpointError, ConfigError, InUseError
from vit_jax.tables import results as results_lib
from vit_jax.training import build, metrics, sweep_runs

PAGE = "report.html"  # In a run's folder.
BOOKS = ("start", "data", "train", "eval", "save")  # What a clock's seconds are booked as.
State = typing.Literal["finished", "running", "stopped"]


@dataclasses.dataclass(frozen=True)
class Record:
    """One run."""

    folder: pathlib.Path
    name: str  # Of the stage or the sweep's run; '' for a run that is alone.
    config: Config
    summary: dict | None  # Of a finished run.
    history: list[dict]  # The lines of `metrics.jsonl`.
    state: State
    meta: dict  # What its newest checkpoint tells of it; {} without one.
    total_steps: int | None  # None where that needs data that are not known.

    @property
    def title(self) -> str:
        folder = self.folder.resolve()
        is_part = (folder.parent / workdir.CONFIG).is_file()
        return f"{folder.parent.name}/{folder.name}" if is_part else folder.name

    @property
    def has_page(self) -> bool:
        """Whether there is one, and none of the results is younger."""
        page, results = self.folder / PAGE, self.folder / workdir.SUMMARY
        if not (page.exists() and results.exists()):
            return False
        return page.stat().st_mtime >= results.stat().st_mtime

    @property
    def step(self) -> int:
        """The last one that was logged."""
        return self.history[-1]["step"] if self.history else 0

    @property
    def scores(self) -> dict:
        """The last value of every metric; of a finished run those it is judged by."""
        return self.summary["metrics"] if self.summary else metrics.last_values(self.history)

    @property
    def seconds(self) -> dict[str, float]:
        """What the time went into, until the end or the newest checkpoint."""
        seconds = (self.summary or self.meta).get("seconds", {})
        return {book: seconds[book] for book in BOOKS if seconds.get(book)}

    def headline(self) -> tuple[str, float] | None:
        """The name and value of the score that matters most, or None before the first."""
        for name in ("val/top1", "dev/top1", "val/loss", "dev/loss", "train/loss"):
            if self.scores.get(name) is not None:
                return name, self.scores[name]
        return None


def find(folder: pathlib.Path, passed_over: Callable[[str], None] = lambda _: None) -> list[Record]:
    """The runs in a folder: itself, its stages, all runs of its sweeps, and whole workdirs.

    Args:
      passed_over: told why of what looks like a run and cannot be read.

    Raises ConfigError where there are none.
    """
    if folder.name in ("", ".."):  # A page and its commands say what it is called.
        folder = folder.resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder.")
    inside = results_lib.places(folder, with_grids=True)[1:]
    named = {folder: "", **{place: str(place.relative_to(folder)) for place in inside}}
    found = []
    for place, name in named.items():
        try:
            found += filter(None, [_read(place, name)])
        except ConfigError as error:  # Or weights in Hugging Face's form.
            if not name:
                raise
            passed_over(str(error))
    if not found:
        raise ConfigError(f"{folder}: no run in it; a run's folder holds {workdir.CONFIG}.")
    return found


def _read(folder: pathlib.Path, name: str) -> Record | None:
    """The run in a folder; None where there is none."""
    values = workdir.read_json(folder / workdir.CONFIG)
    if values is None or values.get("stages"):
        return None
    config = workdir.read_config(folder)[""]
    if sweep_runs.is_sweep(config):
        return None
    summary = workdir.read_summary(folder)
    meta, num_examples = _newest(folder)
    total = summary["step"] if summary else config.steps
    if total is None and num_examples:
        total = build.num_steps(config, num_examples)
    history = metrics.read(folder)
    if config.data.dev is not None:  # What was scored is a part of the training split.
        history = [_as_dev(record) for record in history]
        summary = summary and summary | {"metrics": _as_dev(summary["metrics"])}
    return Record(folder, name, config, summary, history, _state(folder, summary), meta, total)


def _as_dev(values: dict) -> dict:
    return {name.replace("val/", "dev/", 1): value for name, value in values.items()}


def _state(folder: pathlib.Path, summary: dict | None) -> State:
    try:
        workdir.check_not_in_use(folder)
    except InUseError:
        return "running"
    return "finished" if summary else "stopped"


def _newest(folder: pathlib.Path) -> tuple[dict, int | None]:
    """What the newest checkpoint tells of the run, and the number of training examples."""
    try:
        step = checkpoint.find_step_folder(folder / checkpoint.FOLDER)
        data = checkpoint.read_item(step, "data")
        return checkpoint.read_item(step, "meta"), data.get("num_examples")
    except CheckpointError:  # None yet, or a damaged one: the rest is to be seen all the same.
        return {}, None
