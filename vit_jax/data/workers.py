"""Fills batches with rows, by threads or by processes, in order and in bounded memory.

All workers fill the same batch, each its own rows, so memory does not grow with their number. A
worker process that is killed is started again; a worker without progress is an error.
"""

import atexit
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import mmap
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from multiprocessing import heap

import numpy as np

from vit_jax.config import registry
from vit_jax.data.batch_memory import AHEAD, SLOTS, Layout, copied, lent, shared_memory
from vit_jax.errors import DataError, StalledError

MAX_THREADS = 16  # More threads would wait for the global interpreter lock.
MAX_RESTARTS = 3  # Killed worker processes that are replaced.
POLL = 0.2  # Seconds between two looks at a worker that is waited for.
STOP_TIMEOUT = 2  # Seconds to wait at the end for a worker, which may stand still.
NO_ROW = -1  # Row of a worker that has not begun with a batch.

Failure = tuple[int, Exception]  # Position of a row in its batch, and its exception.


class _Stopped(Exception):
    """Raised instead of waiting any longer, after a signal."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """Rules of waiting for workers.

    Attributes:
      timeout: seconds without progress of a worker that raise StalledError; None waits forever.
      is_stopped: called while a worker is waited for; when it returns True, the batches end.
      report: prints a line about a worker that was started again.
    """

    timeout: float | None = None
    is_stopped: Callable[[], bool] = lambda: False
    report: Callable[[str], None] = print

    def wait(
        self, is_done: Callable[[float], bool], rows, in_work: np.ndarray, worker: str
    ) -> None:
        """Waits until `is_done(seconds)`, which waits for so many seconds, returns True.

        Args:
          in_work: one number, the row that the worker is at.
          worker: name of the worker in errors.
        """
        last, waited = in_work.item(), 0.0
        while not is_done(POLL):
            if self.is_stopped():
                raise _Stopped
            # Polls are counted instead of seconds: a suspended process has not waited.
            waited = waited + POLL if in_work.item() == last else 0.0
            last = in_work.item()
            if self.timeout is not None and waited >= self.timeout:
                raise StalledError(
                    f"a data worker {worker} has made no progress for {self.timeout:g} s "
                    f"{_place(rows, last)}; check the storage of the data, or raise data.timeout."
                )


def batches(
    rows: Sequence[dict], size: int, workers: int, patience: Patience | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every `size` rows as a dictionary of arrays, in order; drops an incomplete batch.

    Args:
      rows: dictionaries with the same names, shapes and dtypes; for processes, picklable. The
        method `name(row)`, if there is one, returns the name of a row for errors.
      workers: number of processes that fill the batches; 0 uses one thread per core.

    An exception of a row is raised instead of its batch. Memory is reused when nothing refers to
    the arrays of a batch any more, so at most AHEAD + HELD batches are in memory, plus copies of
    batches that a caller keeps beyond HELD.

    Raises DataError if a worker process ends by itself, or was killed more than MAX_RESTARTS
    times, and StalledError for a worker without progress.
    """
    count = len(rows) // size
    if not count:
        return
    patience = patience or Patience()
    free = collections.deque(range(SLOTS))
    ahead: collections.deque[int] = collections.deque()
    with contextlib.ExitStack() as stack, contextlib.suppress(_Stopped):
        layout = Layout.of(_first_row(rows, patience), size)
        crew = (
            _Processes(rows, layout, patience, workers)
            if workers
            else _Threads(rows, layout, patience)
        )
        stack.callback(crew.stop)
        for number in range(count):
            while free and len(ahead) < min(AHEAD, count - number):
                slot = free.popleft()
                crew.fill(number + len(ahead), slot)
                ahead.append(slot)
            slot = ahead.popleft()
            failures = crew.wait(slot)
            if failures:
                raise min(failures, key=lambda failure: failure[0])[1]
            is_last_free = len(free) + len(ahead) < AHEAD
            yield copied(crew, slot, free) if is_last_free else lent(crew, slot, free)


def _fill(
    rows, first: int, arrays: dict[str, np.ndarray], positions: range, in_work: np.ndarray
) -> Failure | None:
    """Writes some rows of the batch that starts at row `first`; returns the first failure.

    Args:
      in_work: one number, which becomes that of the row that is being written.
    """
    for position in positions:
        in_work[...] = first + position
        try:
            for name, value in rows[first + position].items():
                arrays[name][position] = value
        except Exception as error:
            return position, error
    return None


def _split_positions(size: int, count: int) -> list[range]:
    """Returns the row positions of a batch, distributed over the workers."""
    return [range(first, size, count) for first in range(min(size, count))]


def _place(rows, row: int) -> str:
    """Returns the name of the row that a worker is at, for errors."""
    if row == NO_ROW:
        return "before its first row"
    return f"at example {rows.name(row)}" if hasattr(rows, "name") else f"at row {row}"


def _keep_freed_memory() -> None:
    """Makes glibc keep the memory of an image for the next one.

    glibc returns freed memory to the system above a threshold, which is twice the largest block
    that was freed so far, up to 64 MB.
    """
    np.empty(1 << 24, np.uint8)


def _run(task: Future, function: Callable, *args) -> None:
    """Sets the result or the exception of a task."""
    try:
        task.set_result(function(*args))
    except BaseException as error:
        task.set_exception(error)


def _is_done(task: Future, seconds: float) -> bool:
    return bool(concurrent.futures.wait([task], seconds).done)


def _first_row(rows, patience: Patience) -> dict:
    task: Future = Future()
    threading.Thread(target=_run, args=(task, rows.__getitem__, 0), daemon=True).start()
    patience.wait(functools.partial(_is_done, task), rows, np.zeros(1, int), "thread")
    return task.result()


class _Threads:
    """Threads of this process, one per core.

    They are daemon threads, because Python would wait at its exit for a thread without progress.
    """

    def __init__(self, rows, layout: Layout, patience: Patience):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.rows, self.layout, self.patience = rows, layout, patience
        self.parts = _split_positions(layout.size, min(cores or 1, MAX_THREADS))
        self.memory = mmap.mmap(-1, layout.memory_size(len(self.parts)))
        self.in_work = layout.rows_in_work(self.memory, len(self.parts))
        self.tasks: dict[int, list[Future]] = {}
        self.queue: queue.SimpleQueue = queue.SimpleQueue()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in self.parts]
        _keep_freed_memory()
        for thread in self.threads:
            thread.start()

    def _work(self) -> None:
        for task, *args in iter(self.queue.get, None):
            if task.set_running_or_notify_cancel():
                _run(task, _fill, *args)

    def fill(self, number: int, slot: int) -> None:
        arrays = self.layout.arrays(self.layout.slot(self.memory, slot))
        self.in_work[slot] = NO_ROW
        self.tasks[slot] = [Future() for _ in self.parts]
        for k, (task, part) in enumerate(zip(self.tasks[slot], self.parts)):
            first, in_work = number * self.layout.size, self.in_work[slot, k : k + 1]
            self.queue.put((task, self.rows, first, arrays, part, in_work))

    def wait(self, slot: int) -> list[Failure]:
        tasks = self.tasks.pop(slot)
        for k, task in enumerate(tasks):
            in_work = self.in_work[slot, k : k + 1]
            self.patience.wait(functools.partial(_is_done, task), self.rows, in_work, "thread")
        return [found for task in tasks if (found := task.result()) is not None]

    def stop(self) -> None:
        for task in itertools.chain(*self.tasks.values()):
            task.cancel()
        for _ in self.threads:
            self.queue.put(None)
        end = time.monotonic() + STOP_TIMEOUT
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))


class _Processes:
    """Worker processes, which end with this process in any case."""

    def __init__(self, rows, layout: Layout, patience: Patience, num_workers: int):
        self.rows, self.layout, self.patience = rows, layout, patience
        self.parts = _split_positions(layout.size, num_workers)
        self.context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork.
        self.arena = shared_memory(layout.memory_size(len(self.parts)))
        self.memory = self.arena.buffer
        self.in_work = layout.rows_in_work(self.memory, len(self.parts))
        self.unanswered: collections.deque[tuple[int, int]] = collections.deque()
        self.num_restarts = 0
        self.workers: list[tuple] = []
        atexit.register(self.stop)  # For an iterator that is not closed.
        try:
            for k in range(len(self.parts)):
                self.workers.append(self._start(k))
        except BaseException:
            self.stop()
            raise

    def _start(self, k: int) -> tuple:
        """Returns the process of worker number `k`, and the pipe to it."""
        ours, theirs = self.context.Pipe()
        arguments = (self.rows, self.layout, self.arena, self.parts, k)
        process = self.context.Process(
            target=_work, args=(theirs, registry.trusted_names(), *arguments), daemon=True
        )
        process.start()
        theirs.close()  # The pipe now ends when either process ends.
        return process, ours

    def fill(self, number: int, slot: int) -> None:
        self.in_work[slot] = NO_ROW
        self.unanswered.append((number, slot))
        for _, pipe in self.workers:
            self._send(pipe, (number, slot))

    def _send(self, pipe, batch: tuple[int, int]) -> None:
        with contextlib.suppress(OSError):  # `wait` replaces a worker that has ended.
            pipe.send(batch)

    def wait(self, slot: int) -> list[Failure]:
        answers = [self._answer(k, slot) for k in range(len(self.workers))]
        self.unanswered.popleft()
        return [answer for answer in answers if answer is not None]

    def _answer(self, k: int, slot: int) -> Failure | None:
        """Returns the answer of a worker for the oldest unanswered batch, after restarts of it."""
        in_work = self.in_work[slot, k : k + 1]
        while True:
            process, pipe = self.workers[k]
            self.patience.wait(pipe.poll, self.rows, in_work, f"process ({process.pid})")
            try:
                return pipe.recv()
            except (EOFError, OSError) as error:
                self._restart(k, in_work.item(), error)

    def _restart(self, k: int, row: int, error: Exception) -> None:
        """Replaces a worker that was killed; it fills the same rows of the same batches."""
        process, pipe = self.workers[k]
        pipe.close()
        process.join(STOP_TIMEOUT)
        if self.patience.is_stopped():
            raise _Stopped  # The signal has ended the worker, too.
        code = process.exitcode
        ended = f"a data worker process ended unexpectedly with exit code {code}"
        if code is None or code >= 0 or self.num_restarts == MAX_RESTARTS:
            times = f", after {MAX_RESTARTS} restarts of workers" if self.num_restarts else ""
            raise DataError(
                f"{ended} {_place(self.rows, row)}{times}. Exit code -9 can mean out of memory: "
                "use fewer data.workers."
            ) from error
        self.num_restarts += 1
        self.patience.report(f"{ended}; restarted ({self.num_restarts} of {MAX_RESTARTS})")
        self.in_work[:, k] = NO_ROW
        self.workers[k] = self._start(k)
        for batch in self.unanswered:
            self._send(self.workers[k][1], batch)

    def stop(self) -> None:
        atexit.unregister(self.stop)
        for process, pipe in self.workers:
            process.kill()  # It has no state to save.
            process.join(STOP_TIMEOUT)
            pipe.close()


def _work(pipe, trusted, rows, layout: Layout, arena: heap.Arena, parts: list[range], k: int):
    """Fills part `k` of one batch after the other until the pipe ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # Sent to the process group; the parent handles it.
    _keep_freed_memory()
    registry.trust(trusted)
    in_work = layout.rows_in_work(arena.buffer, len(parts))
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, slot = pipe.recv()
            arrays = layout.arrays(layout.slot(arena.buffer, slot))
            first = number * layout.size
            failure = _fill(rows, first, arrays, parts[k], in_work[slot, k : k + 1])
            pipe.send(failure and _portable(*failure))


def _portable(position: int, error: Exception) -> Failure:
    """Returns a failure that can be pickled; a bug is reported with its traceback."""
    if isinstance(error, DataError):
        return position, error
    return position, RuntimeError(
        "in a data worker:\n" + "".join(traceback.format_exception(error))
    )
