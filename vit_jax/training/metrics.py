"""Metrics of a run: `metrics.jsonl`, TensorBoard if it is installed, and the progress line."""

import contextlib
import functools
import itertools
import json
import math
import numbers
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax

from vit_jax.atomic_io import add_path_to_errors, open_to_append, to_json, write_atomically
from vit_jax.checkpoints.layout import DAMAGED
from vit_jax.distributed import multihost
from vit_jax.distributed.progress import Progress, format_duration
from vit_jax.errors import listed
from vit_jax.training.attempts import Clock

FILE = "metrics.jsonl"
SHOWN = ("loss", "top1", "teacher_entropy", "kl")  # In the progress line.
OnLog = Callable[[pathlib.Path, int, dict], bool | None]  # Of a folder, a step and metrics.


def read(folder: pathlib.Path) -> list[dict]:
    """Returns the records of a run, one per step, oldest first; skips lines that cannot be read."""
    return _parse(folder).records


class _Parsed(NamedTuple):
    """Content of a `metrics.jsonl`, with the numbers of its unreadable and its repeated lines."""

    records: list[dict]
    unreadable: list[int]
    repeated: list[int]


def _parse(folder: pathlib.Path) -> _Parsed:
    path = folder / FILE
    lines = (
        path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        if path.is_file()
        else [""]
    )
    records: dict[int, dict] = {}
    unreadable, repeated = [], []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step = record["step"]
            if type(step) is not int or step < 0:
                raise ValueError(step)
        except (ValueError, KeyError, TypeError, RecursionError):
            if line.strip() and number < len(lines):  # A kill can cut the last line short.
                unreadable.append(number)
            continue
        if step in records:
            repeated.append(number)
        values = {name: _number(value) for name, value in record.items()}
        records[step] = records.get(step, {}) | values
    return _Parsed([records[step] for step in sorted(records)], unreadable, repeated)


def _number(value: object) -> float | None:
    """Returns a finite number unchanged, and None for anything else."""
    return value if isinstance(value, int | float) and -math.inf < value < math.inf else None


def last_values(records: list[dict]) -> dict:
    """Returns the latest value of every metric."""
    values: dict = {}
    for record in records:
        values.update(record)
    return values


class Digest(NamedTuple):
    """Number and CRC-32 of the lines of some records; step and size of the last record."""

    lines: int = 0
    crc32: int = 0
    step: int = 0
    values: int = 0

    def add(self, record: dict) -> "Digest":
        crc32 = zlib.crc32(_line(record).encode(), self.crc32)
        return Digest(self.lines + 1, crc32, record["step"], len(record))

    def repeated(self, records: list[dict]) -> "Digest":
        """Returns the digest of the same part of other records: the last one may have grown."""
        found = Digest()
        for record in records if self.lines else ():
            if record["step"] == self.step:
                record = dict(itertools.islice(record.items(), self.values))
            if record["step"] <= self.step:
                found = found.add(record)
        return found


class MetricWriter:
    """Writes one JSON object per step, with all metrics of the step in one line.

    Attributes:
      notes: descriptions of what was lost or changed in the file of the earlier run.
    """

    def __init__(self, folder: pathlib.Path, restored_step: int = 0, recorded: dict | None = None):
        """Removes lines beyond the restored step, because those steps will run again.

        The line of the restored step is opened again, for an evaluation that is still missing.

        Args:
          recorded: the `digest` when the checkpoint of the restored step was saved.
        """
        parsed = _parse(folder)
        kept = [record for record in parsed.records if record["step"] <= restored_step]
        self._path = folder / FILE
        self._open_record = kept[-1] if kept and kept[-1]["step"] == restored_step else {}
        closed = kept[:-1] if self._open_record else kept
        self._closed = functools.reduce(Digest.add, closed, Digest())
        self._is_on_disk, self._is_changed = True, False
        self._on_board = set(self._open_record)  # Names in the open record that are shown.
        self.notes = self._describe_damage(parsed, recorded)
        if restored_step == 0 and len(parsed.records) > len(kept):
            last = parsed.records[-1]["step"]
            self.notes.append(
                f"{self._path}: no checkpoint was found, so the records up to step {last} are "
                "removed; the run starts from the beginning."
            )
        self._put(kept)
        # Imported with the first record, when the devices have work: it takes 0.3 seconds.
        self._open_board = functools.cache(lambda: _tensorboard(folder, restored_step))

    def _describe_damage(self, parsed: _Parsed, recorded: dict | None) -> list[str]:
        """Returns notes about unreadable, repeated, missing and changed lines."""
        notes = []
        if parsed.unreadable:
            copy = self._path.parent / DAMAGED / FILE
            copy.parent.mkdir(exist_ok=True)
            write_atomically(copy, self._path.read_bytes())
            notes.append(
                f"line {listed(parsed.unreadable, 8, ', ')} cannot be read; a copy is in {copy}"
            )
        if parsed.repeated:
            notes.append(
                f"line {listed(parsed.repeated, 8, ', ')} repeats an earlier step; both are merged"
            )
        before = Digest(**recorded or {})
        found = before.repeated(parsed.records)
        if found.lines != before.lines:
            notes.append(f"{found.lines} of {before.lines} lines up to step {before.step} remain")
        elif found != before:
            notes.append(f"lines up to step {before.step} were changed after that step was saved")
        return [f"{self._path}: {note}." for note in notes]

    def digest(self) -> Digest:
        """Returns the digest of all records so far."""
        return self._closed.add(self._open_record) if self._open_record else self._closed

    def _put(self, records: list[dict]) -> None:
        """Replaces the file by one with these records."""
        write_atomically(self._path, "".join(map(_line, records)))
        self._file = open_to_append(self._path)

    def values(self, step: int, section: str) -> dict:
        """Returns the values `section/...` of the open record, by name, if it is of this step."""
        record = self._open_record if self._open_record.get("step") == step else {}
        prefix = f"{section}/"
        return {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)}

    def write(self, step: int, values: dict) -> None:
        """Adds metrics to the record of a step; a later step closes the earlier record."""
        if self._open_record and self._open_record["step"] != step:
            self.flush()
        if not self._open_record:
            self._open_record, self._is_on_disk, self._on_board = {"step": step}, False, set()
        self._is_changed = True
        self._open_record.update({name: _plain(value) for name, value in values.items()})

    def sync(self) -> None:
        """Waits until everything written so far is on disk; the record stays open."""
        self._write_open_record()
        os.fsync(self._file.fileno())

    def flush(self) -> None:
        """Writes and closes the open record."""
        self._write_open_record()
        if self._open_record:
            self._closed = self._closed.add(self._open_record)
        self._open_record = {}

    def _write_open_record(self) -> None:
        if not self._is_changed:
            return
        if self._is_on_disk:  # Replace its line, which is the last one.
            self._file.close()
            self._put([*read(self._path.parent)[:-1], self._open_record])
        else:
            with add_path_to_errors(self._path):
                self._file.write(_line(self._open_record))
                self._file.flush()
        self._is_on_disk, self._is_changed = True, False
        self._show_on_board()

    def _show_on_board(self) -> None:
        if (board := self._open_board()) is None:
            return
        for name, value in self._open_record.items():
            if name != "step" and name not in self._on_board and value is not None:
                board.add_scalar(name, value, self._open_record["step"])
        self._on_board.update(self._open_record)
        board.flush()

    def close(self) -> None:
        """Writes the open record and closes the file."""
        try:
            self.flush()
        finally:
            self._file.close()
        if (board := self._open_board()) is not None:
            board.close()


def _plain(value):
    """Returns a Python number, or None for NaN and infinity, which JSON lacks."""
    value = int(value) if isinstance(value, numbers.Integral) else float(value)
    return value if math.isfinite(value) else None


def _line(record: dict) -> str:
    return to_json(record) + "\n"


def _tensorboard(folder: pathlib.Path, restored_step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=restored_step + 1)


class TrainingLog:
    """Output of a training loop by process 0: records of steps, and the progress line."""

    def __init__(
        self,
        folder: pathlib.Path,
        name: str,
        total_steps: int,
        batch_size: int,
        warnings_of: Callable[[int, dict], Iterable[str]] = lambda step, values: (),
        on_log: OnLog | None = None,
        clock: Clock | None = None,
    ):
        """Lines start with `name`; `warnings_of(step, values)` returns warnings about metrics."""
        self.clock, self._warnings_of = clock or Clock(), warnings_of
        self._on_log, self.is_save_requested = on_log, False  # See `run.train`.
        self._folder, self._name, self._progress = folder, name, Progress()
        self._total_steps, self._batch_size = total_steps, batch_size
        self._writer: MetricWriter | None = None
        self._waited = 0.0

    def open(self, step: int, recorded: dict | None = None) -> None:
        """Opens the records at `step` and removes those beyond it.

        Args:
          recorded: the `digest` when the checkpoint of this step was saved.
        """
        if multihost.is_process_0():
            self._writer = MetricWriter(self._folder, step, recorded)
            list(map(self.say, self._writer.notes))
            for record in read(self._folder):  # Warnings about them were printed before.
                list(self._warnings_of(record["step"], record))
        self.start_interval(step)

    def start_interval(self, step: int) -> None:
        """Starts to measure speed."""
        self._step, self._before = step, self._seconds()

    def _seconds(self) -> tuple[float, float, float]:
        """Returns seconds so far: in total, waiting for data, and waiting for devices."""
        data, train = (self.clock.seconds[name] for name in ("data", "train"))
        return data + train, data, self._waited

    @contextlib.contextmanager
    def waiting(self, book: str = "train"):
        """Returns a context in which the host waits for devices.

        The clock adds the wait, and the time before it, to `book`; only time of training counts
        for the speed.
        """
        self.clock.lap(book)
        yield
        waited = self.clock.lap(book)
        self._waited += waited if book == "train" else 0.0

    def dispatched(self, step: int, output: jax.Array, book: str) -> None:
        """Adds the time of the call that started a step to `book`.

        A CPU may finish the step before the call returns: `output` is then ready, and the call was
        a wait for the device.
        """
        is_finished = output.is_ready()
        if is_finished:
            self.clock.attempt.step = step
        seconds = self.clock.lap(book)
        self._waited += seconds if book == "train" and is_finished else 0.0

    def log(self, step: int, values: dict, is_timed: bool = True) -> None:
        """Records the metrics of a training step, and how the time since the last record was spent.

        A step with `is_timed` False, the first one, was compiled: it has no speed.

        `train/data_wait` is the fraction of the time in which the loop waited for a batch,
        `train/device` the fraction in which it waited for a step in flight, and
        `train/host` the rest: Python code that dispatches batches and steps. They sum to 1.
        Devices work at the same time as the host: a small `device` means that the host or the
        data is the bottleneck, not that the devices are idle.
        """
        busy, data, device = (b - a for a, b in zip(self._before, self._seconds()))
        num_images = (step - self._step) * self._batch_size
        self.start_interval(step)
        shown = (f"  {name} {values[name]:.4f}" for name in SHOWN if name in values)
        line = f"step {step}/{self._total_steps}{''.join(shown)}"
        shares = {"data_wait": data, "device": device, "host": busy - data - device}
        shares = {name: seconds / busy if busy else 0.0 for name, seconds in shares.items()}
        values = values | shares
        if is_timed and busy and num_images:
            values["img_per_sec"] = speed = num_images / busy
            left = (self._total_steps - step) * self._batch_size / speed
            line += f"  {speed:,.0f} img/s"
            for name, share in shares.items():
                line += f"  {name.replace('_', ' ')} {share:.0%}"
            line += f"  eta {format_duration(left)}"
        self.write(step, {f"train/{name}": value for name, value in values.items()})
        self._show(line)

    def write(self, step: int, values: dict) -> None:
        """Adds metrics to the record of a step, and prints the warnings about them."""
        if self._writer is not None:
            self._writer.write(step, values)
        for line in self._warnings_of(step, values):
            self.say(line)
        self.is_save_requested |= bool(self._on_log and self._on_log(self._folder, step, values))

    def values(self, step: int, section: str) -> dict:
        """Returns the values `section/...` of the open record, by name, if it is of this step."""
        return multihost.broadcast_from_process_0(
            "record", lambda: self._writer.values(step, section)
        )

    def has(self, step: int, section: str) -> bool:
        """Returns True if the open record is of this step and has a value `section/...`."""
        return bool(self.values(step, section))

    def digest(self) -> dict | None:
        """Returns the digest of the records so far, by which a resumed run detects damage."""
        return self._writer and self._writer.digest()._asdict()

    def flush(self) -> None:
        """Writes the open record."""
        if self._writer is not None:
            self._writer.flush()

    def sync(self) -> None:
        """Waits until everything written so far is on disk."""
        if self._writer is not None:
            self._writer.sync()

    def close(self) -> None:
        """Writes the open record and closes the file."""
        if self._writer is not None:
            self._writer.close()

    def say(self, line: str) -> None:
        """Prints a line that the progress line does not replace."""
        if multihost.is_process_0():
            self._progress.print_line(self._line(line))

    def _show(self, line: str) -> None:
        if multihost.is_process_0():
            self._progress.show(self._line(line))

    def _line(self, text: str) -> str:
        return f"{self._name}  {text}".strip()
