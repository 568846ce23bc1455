"""Files that a finished, running or stopped run has written into its workdir."""

import dataclasses
import pathlib
import typing
from collections.abc import Callable

from vit_jax.checkpoints import layout, lock, workdir
from vit_jax.config.schema import Config
from vit_jax.errors import CheckpointError, ConfigError, InUseError
from vit_jax.tables import results as results_lib
from vit_jax.training import attempts as attempts_lib
from vit_jax.training import build, metrics

REPORT_FILE = "report.html"  # In a run's folder.
# The first of these metrics that was logged is the score of a run.
MAIN_SCORES = ("val/top1", "dev/top1", "probe/knn", "val/loss", "dev/loss", "train/loss")
State = typing.Literal["finished", "running", "stopped"]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run as its workdir describes it.

    Attributes:
      folder: the run's workdir.
      name: path of a stage or a sweep run below the given workdir; '' for the workdir itself.
      config: resolved config.
      summary: contents of `summary.json`, None if the run is not finished.
      history: lines of `metrics.jsonl`.
      state: 'finished', 'running' or 'stopped'.
      meta: metadata of the newest checkpoint, {} if there is none.
      total_steps: steps to train for; None if it depends on data that are not available.
      num_examples: number of training examples; None before the first checkpoint.
      attempts: the processes that have trained the run; [] if an older version has.
    """

    folder: pathlib.Path
    name: str
    config: Config
    summary: dict | None
    history: list[dict]
    state: State
    meta: dict
    total_steps: int | None
    num_examples: int | None
    attempts: list[attempts_lib.Attempt] = dataclasses.field(default_factory=list)

    @property
    def title(self) -> str:
        """Name of the folder; for a stage or a sweep run, with that of the workdir."""
        folder = self.folder.resolve()
        is_part = (folder.parent / workdir.CONFIG).is_file()
        return f"{folder.parent.name}/{folder.name}" if is_part else folder.name

    @property
    def has_current_page(self) -> bool:
        """True if the run is finished and its page is not older than its summary."""
        page, summary = self.folder / REPORT_FILE, self.folder / workdir.SUMMARY
        if not (page.exists() and summary.exists()):
            return False
        return page.stat().st_mtime >= summary.stat().st_mtime

    @property
    def step(self) -> int:
        """The last logged step."""
        return self.history[-1]["step"] if self.history else 0

    @property
    def metrics(self) -> dict:
        """Metrics of the summary, or the last logged value of each metric."""
        return self.summary["metrics"] if self.summary else metrics.last_values(self.history)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by time category, up to the end or the newest checkpoint."""
        seconds = (self.summary or self.meta).get("seconds", {})
        return {name: seconds[name] for name in attempts_lib.ACTIVITIES if seconds.get(name)}

    def main_score(self) -> tuple[str, float] | None:
        """Returns name and value of the most important metric; None if none was logged."""
        for name in MAIN_SCORES:
            if self.metrics.get(name) is not None:
                return name, self.metrics[name]
        return None


def is_accuracy(metric: str) -> bool:
    """Returns True for a metric that is the fraction of correct predictions."""
    return metric.endswith("/top1") or metric in ("probe/knn", "probe/linear")


def read_run_records(
    folder: pathlib.Path, on_skip: Callable[[str], None] = lambda _: None
) -> list[RunRecord]:
    """Reads the runs in a folder: itself, its stages, all runs of its sweeps, and workdirs in it.

    Args:
      on_skip: called with the reason if a folder below looks like a run but cannot be read.

    Raises:
      ConfigError: the folder does not exist, cannot be read or contains no run.
    """
    if folder.name in ("", ".."):  # Pages and the commands in them need the folder's name.
        folder = folder.resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder.")
    below = results_lib.run_folders(folder, with_grids=True)[1:]
    names = {folder: "", **{path: str(path.relative_to(folder)) for path in below}}
    runs = []
    for path, name in names.items():
        try:
            runs += filter(None, [_read_run_record(path, name)])
        except ConfigError as error:  # Such as the config.json of Hugging Face weights.
            if not name:
                raise
            on_skip(str(error))
    if not runs:
        raise ConfigError(f"{folder}: no run in it; a run's folder contains {workdir.CONFIG}.")
    return runs


def _read_run_record(folder: pathlib.Path, name: str) -> RunRecord | None:
    """Reads the run in a folder; returns None for folders of stages or of a sweep."""
    values = workdir.read_json(folder / workdir.CONFIG)
    if values is None or values.get("stages"):
        return None
    config = workdir.read_config(folder)[""]
    if config.sweep.has_several_runs:
        return None
    summary = workdir.read_summary(folder)
    meta, num_examples = _read_newest_checkpoint(folder)
    total_steps = summary["step"] if summary else config.steps
    if total_steps is None and num_examples:
        total_steps = build.num_steps(config, num_examples)
    history = metrics.read(folder)
    if config.data.dev is not None:  # The scored images are a part of the training split.
        history = [_rename_val_to_dev(line) for line in history]
        summary = summary and summary | {"metrics": _rename_val_to_dev(summary["metrics"])}
    state = _run_state(folder, summary)
    if num_examples is None and summary:
        num_examples = summary.get("num_examples", {}).get("train")
    attempts = attempts_lib.read(folder)
    return RunRecord(
        folder, name, config, summary, history, state, meta, total_steps, num_examples, attempts
    )


def _rename_val_to_dev(values: dict) -> dict:
    return {name.replace("val/", "dev/", 1): value for name, value in values.items()}


def _run_state(folder: pathlib.Path, summary: dict | None) -> State:
    try:
        lock.check_not_in_use(folder)
    except InUseError:
        return "running"
    return "finished" if summary else "stopped"


def _read_newest_checkpoint(folder: pathlib.Path) -> tuple[dict, int | None]:
    """Returns metadata of the newest checkpoint, and the number of training examples."""
    try:
        step = layout.find_step_folder(folder / layout.FOLDER)
        data = layout.read_item(step, "data")
        return layout.read_item(step, "meta"), data.get("num_examples")
    except CheckpointError:  # None yet, or damaged; the page shows everything else.
        return {}, None
