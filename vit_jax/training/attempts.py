"""Attempts of a run: where the time of each of its processes went, in `attempts.jsonl`.

A run that is killed and resumed has several attempts. The file has a line for each. That of the
running attempt is replaced in place at the end of an activity, such as a training step, at most
every HEARTBEAT seconds. After a `kill -9`, the activity that it interrupted counts as `down`.

Goodput is the time of the training steps that count, divided by the time from the start of the
first attempt to the end of the last. The categories follow ml-goodput-measurement
(github.com/AI-Hypercomputer/ml-goodput-measurement), in which the rest is called badput: the first
step of an attempt counts as long as an average step, and what exceeds this is compilation.
"""

import contextlib
import dataclasses
import pathlib
import signal
import time
from collections.abc import Iterator, Sequence

from vit_jax.atomic_io import json_object, open_to_append, to_json, write_atomically
from vit_jax.checkpoints import layout, workdir
from vit_jax.distributed import multihost
from vit_jax.errors import ConfigError, Interrupted

FILE = "attempts.jsonl"
ACTIVITIES = ("start", "compile", "data", "train", "eval", "save")
FIRST_STEP = "first_step"  # Activity that is booked as `compile` and counted apart as well.
# `train` are the steps that count, `lost` those that a later attempt repeated, `down` the time
# without a process.
PARTS = ("train", "start", "compile", "data", "save", "eval", "lost", "down")
LATEST = 1e11  # Unix time in the year 5138; a larger number was not written by a run.
HEARTBEAT = 1.0  # Seconds between two writes of the line of a running attempt.


@dataclasses.dataclass
class Attempt:
    """One process that has trained a run.

    Attributes:
      process: Unix time at which the process started; the same for all stages that it trains.
      started: Unix time from which on this attempt counts.
      resumed_step: step of the checkpoint that was restored, 0 for none.
      train_before: seconds of training in that checkpoint.
      step: last finished step.
      first_step: seconds of the first step, which `seconds` has under `compile`.
      seconds: seconds by activity.
      end: `finished`, or the name of the signal or the error; '' while it runs and after a kill.
    """

    process: float
    started: float
    resumed_step: int = 0
    train_before: float = 0.0
    step: int = 0
    first_step: float = 0.0
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(ACTIVITIES, 0.0)
    )
    end: str = ""

    @property
    def ended(self) -> float:
        """Unix time up to which the activities of the attempt are known."""
        return self.started + sum(self.seconds.values())


class Launch:
    """Time of this process that belongs to no attempt yet: since its start, or its last stage."""

    def __init__(self, started: float | None = None):
        """`started` is the Unix time at which the process started; None for now."""
        self.process = self.since = time.time() if started is None else started


class Clock:
    """Seconds spent by activity; every moment since the start belongs to one of them.

    Attributes:
      seconds: seconds of the run up to now, without those after the restored checkpoint in earlier
        attempts.
      attempt: this process.
      earlier: the attempts before it.
    """

    def __init__(
        self,
        launch: Launch | None = None,
        path: pathlib.Path | None = None,
        earlier: Sequence[Attempt] = (),
    ):
        """Starts at the time of the launch, and writes the attempt to the file `path`, if any."""
        launch = launch or Launch()
        # Clocks of two hosts may differ.
        started = max(launch.since, earlier[-1].ended) if earlier else launch.since
        self.attempt, self.earlier = Attempt(launch.process, started), list(earlier)
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._last = time.perf_counter() - max(0.0, time.time() - started)
        self._line = path and _LastLine(path, map(_to_line, self.earlier))
        self._written = 0.0  # Value of the counter at the last write.
        self.lap("start")

    def lap(self, activity: str) -> float:
        """Adds the time since the last lap to an activity, and returns it."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        if activity == FIRST_STEP:
            self.attempt.first_step += passed
            activity = "compile"
        self.seconds[activity] += passed
        self.attempt.seconds[activity] += passed
        if self._line and now - self._written >= HEARTBEAT:
            self._line.write(_to_line(self.attempt))
            self._written = now
        return passed

    def resume(self, step: int, seconds: dict[str, float]) -> None:
        """Adds the seconds of the restored checkpoint to those of this process."""
        for activity in ACTIVITIES:
            self.seconds[activity] += seconds.get(activity, 0.0)
        self.attempt.resumed_step = self.attempt.step = step
        self.attempt.train_before = self.seconds["train"]

    def goodput(self) -> dict:
        """Returns the goodput of the run up to now, see `goodput_of`."""
        return goodput_of([*self.earlier, self.attempt])

    def close(self, end: str) -> None:
        """Writes the last line of the attempt; `end` is its reason."""
        self.lap("save")  # The rest: waiting for the writers of checkpoints.
        self.attempt.end = end
        if self._line:
            self._line.write(_to_line(self.attempt))
            self._line.close()


class _LastLine:
    """The last line of a file, which is replaced in place."""

    def __init__(self, path: pathlib.Path, lines_before: Iterator[str]):
        before = "".join(lines_before).encode()
        write_atomically(path, before)
        self._file = open_to_append(path, "r+b", buffering=0)
        self._position, self._width = len(before), 0

    def write(self, line: str) -> None:
        """Writes the line; blanks cover the end of a longer one before it.

        A full disk does not end the run here: its checkpoints and metrics do.
        """
        text = line.rstrip("\n").encode()
        self._width = max(self._width, len(text))
        with contextlib.suppress(OSError):
            self._file.seek(self._position)
            self._file.write(text.ljust(self._width) + b"\n")

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def recorded(folder: pathlib.Path, launch: Launch, *, is_new: bool = False) -> Iterator[Clock]:
    """Yields the clock of an attempt at the run of a folder, which process 0 records.

    Args:
      folder: the workdir of the run, which this process has locked.
      launch: the time of this process before the attempt; afterwards, it starts at the end.
      is_new: the attempts in the folder belong to another run, and are dropped.
    """
    path = folder / FILE if multihost.is_process_0() else None
    clock = Clock(launch, path, read(folder) if path and not is_new else ())
    end = "finished"
    try:
        yield clock
    except BaseException as error:
        end = _end_of(error)
        raise
    finally:
        clock.close(end)
        launch.since = clock.attempt.ended


def is_other_run(folder: pathlib.Path, config: dict) -> bool:
    """Returns True if the last run in a folder had another config, and saved no checkpoint."""
    if layout.list_steps(folder / layout.FOLDER):
        return False
    try:
        before = workdir.read_json(folder / workdir.CONFIG)
    except ConfigError:  # Damaged.
        return True
    return before is not None and bool(workdir.fixed_differences(before, config))


def read(folder: pathlib.Path) -> list[Attempt]:
    """Returns the attempts of a run, oldest first; skips lines that cannot be read."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return list(filter(None, map(_from_line, lines)))


def _end_of(error: BaseException) -> str:
    """Returns the name of the signal or the error that ends an attempt."""
    if isinstance(error, Interrupted):
        return signal.Signals(error.exit_code - 128).name
    return type(error).__name__


def _to_line(attempt: Attempt) -> str:
    values = dataclasses.asdict(attempt)
    values["seconds"] = {name: round(value, 3) for name, value in attempt.seconds.items()}
    for name in ("process", "started", "train_before", "first_step"):
        values[name] = round(values[name], 3)
    return to_json(values) + "\n"


def _from_line(line: str) -> Attempt | None:
    """Returns the attempt of a line, or None if the line was not written by a run."""
    try:
        attempt = Attempt(**json_object(line))
        seconds = {name: float(attempt.seconds[name]) for name in ACTIVITIES}
        numbers = (attempt.process, attempt.started, attempt.train_before, attempt.first_step)
        steps = (attempt.resumed_step, attempt.step)
        is_valid = all(0 <= number < LATEST for number in (*numbers, *seconds.values())) and all(
            type(step) is int and step >= 0 for step in steps
        )
    except (ValueError, TypeError, KeyError):
        return None
    return dataclasses.replace(attempt, seconds=seconds, end=str(attempt.end)) if is_valid else None


def parts_of(attempts: Sequence[Attempt]) -> list[dict[str, float]]:
    """Returns the seconds of each attempt by the names of PARTS.

    `down` is the time from the end of an attempt, or from its last heartbeat, to the next one.
    """
    rows, num_kept, train_kept = [], float("inf"), float("inf")
    starts = [*(attempt.started for attempt in attempts[1:]), None]
    for attempt, next_start in zip(reversed(attempts), reversed(starts)):
        row = dict.fromkeys(PARTS, 0.0) | attempt.seconds
        num_later = attempt.step - attempt.resumed_step - 1
        average = row["train"] / num_later if num_later > 0 else 0.0
        first_step = min(attempt.first_step, average)
        trained = row["train"] + first_step
        kept = min(max(train_kept - attempt.train_before, 0.0), row["train"])
        kept += first_step if num_kept > attempt.resumed_step else 0.0
        row |= {"compile": row["compile"] - first_step, "train": kept, "lost": trained - kept}
        row["down"] = 0.0 if next_start is None else max(0.0, next_start - attempt.ended)
        rows.insert(0, row)
        # An attempt may resume from a checkpoint before those of several attempts (--fallback).
        num_kept = min(num_kept, attempt.resumed_step)
        train_kept = min(train_kept, attempt.train_before)
    return rows


def goodput_of(*stages: Sequence[Attempt]) -> dict:
    """Returns the goodput of a run, or of the stages of one run.

    The result has `fraction`, the goodput; `fraction_up`, the same without `down`; `wall`, the
    seconds from the start of the first attempt to the end of the last; `seconds` by the names of
    PARTS, which add up to `wall`; and `attempts`, the number of processes.
    """
    attempts = [attempt for stage in stages for attempt in stage]
    rows = [row for stage in stages for row in parts_of(stage)]
    seconds = {part: sum(row[part] for row in rows) for part in PARTS}
    start = min(attempt.started for attempt in attempts)
    wall = max(attempt.ended for attempt in attempts) - start
    if len(stages) > 1:  # Between two stages, too.
        seconds["down"] = max(0.0, wall - sum(seconds.values()) + seconds["down"])
    up = wall - seconds["down"]
    return {
        "fraction": seconds["train"] / wall if wall else 0.0,
        "fraction_up": seconds["train"] / up if up else 0.0,
        "wall": wall,
        "seconds": seconds,
        "attempts": len({attempt.process for attempt in attempts}),
    }
