"""Metrics of a run: `metrics.jsonl`, TensorBoard if it is installed, and the progress line."""

import contextlib
import json
import math
import numbers
import os
import pathlib
import time

from vit_jax.atomic_io import add_path_to_errors, open_to_append, write_atomically
from vit_jax.distributed import multihost
from vit_jax.distributed.progress import Progress, format_duration

FILE = "metrics.jsonl"


def read(folder: pathlib.Path) -> list[dict]:
    """Returns all records of a run, oldest first, up to the first incomplete line."""
    path = folder / FILE
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                break
        except (ValueError, KeyError, TypeError):
            break
        records.append({name: _number(value) for name, value in record.items()})
    return records


def _number(value: object) -> float | None:
    """Returns a finite number unchanged, and None for anything else."""
    return value if isinstance(value, int | float) and -math.inf < value < math.inf else None


def last_values(records: list[dict]) -> dict:
    """Returns the latest value of every metric."""
    values: dict = {}
    for record in records:
        values.update(record)
    return values


class MetricWriter:
    """Writes one JSON object per step, with all metrics of the step in one line."""

    def __init__(self, folder: pathlib.Path, restored_step: int = 0):
        """Removes lines beyond the restored step, because those steps will run again.

        The line of the restored step is opened again, for an evaluation that is still missing.
        """
        kept = [record for record in read(folder) if record["step"] <= restored_step]
        self._path = folder / FILE
        self._open_record = kept[-1] if kept and kept[-1]["step"] == restored_step else {}
        self._was_on_disk, self._is_changed = True, False
        self._put(kept)
        self._board = _tensorboard(folder, restored_step)

    def _put(self, records: list[dict]) -> None:
        """Replaces the file by one with these records."""
        write_atomically(self._path, "".join(json.dumps(record) + "\n" for record in records))
        self._file = open_to_append(self._path)

    def has(self, step: int, section: str) -> bool:
        """Returns True if the open record is of this step and has a value `section/...`."""
        is_open = self._open_record.get("step") == step
        return is_open and any(name.startswith(f"{section}/") for name in self._open_record)

    def write(self, step: int, values: dict) -> None:
        """Adds metrics to the record of a step; a later step closes the earlier record."""
        if self._open_record and self._open_record["step"] != step:
            self.flush()
        if not self._open_record:
            self._open_record, self._was_on_disk = {"step": step}, False
        self._is_changed = True
        self._open_record.update({name: _plain(value) for name, value in values.items()})

    def sync(self) -> None:
        """Waits until everything written so far is on disk."""
        self.flush()
        os.fsync(self._file.fileno())

    def flush(self) -> None:
        """Writes the open record."""
        if self._open_record and self._is_changed:
            if self._was_on_disk:  # Replace the line of the restored step.
                self._file.close()
                self._put([*read(self._path.parent)[:-1], self._open_record])
            else:
                with add_path_to_errors(self._path):
                    self._file.write(json.dumps(self._open_record) + "\n")
                    self._file.flush()
            self._show_on_board()
        self._open_record, self._is_changed = {}, False

    def _show_on_board(self) -> None:
        if self._board is None:
            return
        for name, value in self._open_record.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, self._open_record["step"])
        self._board.flush()

    def close(self) -> None:
        """Writes the open record and closes the file."""
        try:
            self.flush()
        finally:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _plain(value):
    """Returns a Python number, or None for NaN and infinity, which JSON lacks."""
    value = int(value) if isinstance(value, numbers.Integral) else float(value)
    return value if math.isfinite(value) else None


def _tensorboard(folder: pathlib.Path, restored_step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=restored_step + 1)


class Clock:
    """Seconds spent by activity; every moment belongs to one of them."""

    def __init__(self):
        self.seconds = dict.fromkeys(("start", "data", "train", "eval", "save"), 0.0)
        self._last = time.perf_counter()

    def lap(self, name: str) -> float:
        """Adds the time since the last lap to an activity, and returns it."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        self.seconds[name] += passed
        return passed


class TrainingLog:
    """Output of a training loop by process 0: records of steps, and the progress line."""

    def __init__(self, folder: pathlib.Path, name: str, total_steps: int, batch_size: int):
        """Every line starts with `name`, the name of the stage."""
        self.clock = Clock()
        self._folder, self._name, self._progress = folder, name, Progress()
        self._total_steps, self._batch_size = total_steps, batch_size
        self._writer: MetricWriter | None = None
        self._waited = 0.0

    def open(self, step: int) -> None:
        """Opens the records at `step` and removes those beyond it."""
        if multihost.is_process_0():
            self._writer = MetricWriter(self._folder, step)
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

    def log(self, step: int, values: dict) -> None:
        """Records the metrics of a training step, and how the time since the last record was spent.

        `train/data_wait` is the fraction of the time in which the loop waited for a batch,
        `train/device` the fraction in which it waited for the oldest step in flight, and
        `train/host` the rest: Python code that dispatches batches and steps. They sum to 1.
        Devices work at the same time as the host: a small `device` means that the host or the
        data is the bottleneck, not that the devices are idle.
        """
        busy, data, device = (b - a for a, b in zip(self._before, self._seconds()))
        speed = (step - self._step) * self._batch_size / busy if busy else 0.0
        self.start_interval(step)
        shares = {"data_wait": data, "device": device, "host": busy - data - device}
        shares = {name: seconds / busy if busy else 0.0 for name, seconds in shares.items()}
        record = values | {"img_per_sec": speed} | shares
        self.write(step, {f"train/{name}": value for name, value in record.items()})
        left = (self._total_steps - step) * self._batch_size / speed if speed else 0
        top1 = f"top1 {values['top1']:.4f}  " if "top1" in values else ""
        fractions = (f"{name.replace('_', ' ')} {share:.0%}  " for name, share in shares.items())
        self._show(
            f"step {step}/{self._total_steps}  loss {values['loss']:.4f}  {top1}"
            f"{speed:,.0f} img/s  {''.join(fractions)}eta {format_duration(left)}"
        )

    def write(self, step: int, values: dict) -> None:
        """Adds metrics to the record of a step."""
        if self._writer is not None:
            self._writer.write(step, values)

    def has(self, step: int, section: str) -> bool:
        """Returns True if the open record is of this step and has a value `section/...`."""
        return multihost.broadcast_from_process_0("record", lambda: self._writer.has(step, section))

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
