"""Fills batches with rows, by threads or by processes, in order and in bounded memory.

All workers fill the same batch, each its own rows, so memory does not grow with their number.
"""

import atexit
import collections
import contextlib
import dataclasses
import math
import mmap
import multiprocessing
import os
import signal
import traceback
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import heap

import numpy as np

from vit_jax.config import registry
from vit_jax.errors import DataError

AHEAD = 2  # Batches that are being filled or are ready.
HELD = 3  # Batches that a caller may keep at a time without a copy.
MAX_THREADS = 16  # More threads would wait for the global interpreter lock.
PAGE = 4096  # Bytes; arrays aligned to 64 bytes need no copy to a CPU device.

Failure = tuple[int, Exception]  # Position of a row in its batch, and its exception.


def batches(rows: Sequence[dict], size: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields every `size` rows as a dictionary of arrays, in order; drops an incomplete batch.

    Args:
      rows: dictionaries with the same names, shapes and dtypes; for processes, picklable.
      workers: number of processes that fill the batches; 0 uses one thread per core.

    An exception of a row is raised instead of its batch. Memory is reused when nothing refers to
    the arrays of a batch any more, so at most AHEAD + HELD batches are in memory, plus copies of
    batches that a caller keeps beyond HELD.
    """
    count = len(rows) // size
    if not count:
        return
    layout = Layout.of(rows[0], size)
    crew = _Processes(rows, layout, workers) if workers else _Threads(rows, layout)
    free = collections.deque(range(AHEAD + HELD))
    ahead: collections.deque[int] = collections.deque()
    try:
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
            yield _copied(crew, slot, free) if is_last_free else _lent(crew, slot, free)
    finally:
        crew.stop()


@dataclasses.dataclass(frozen=True)
class Layout:
    """Memory layout of the arrays of a batch."""

    size: int  # Rows.
    columns: dict[str, tuple[int, tuple[int, ...], np.dtype]]  # Offset in bytes, shape, dtype.
    num_bytes: int

    @classmethod
    def of(cls, row: dict, size: int) -> "Layout":
        columns, end = {}, 0
        for name, value in row.items():
            array = np.asarray(value)
            columns[name] = (end, (size, *array.shape), array.dtype)
            end += -(-size * array.nbytes // PAGE) * PAGE
        return cls(size, columns, end)

    def slot(self, memory, number: int) -> np.ndarray:
        """Returns the bytes of batch number `number`."""
        return np.frombuffer(memory, np.uint8, self.num_bytes, number * self.num_bytes)

    def arrays(self, slot: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of a batch; they keep `slot` alive."""
        return {
            name: slot[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            for name, (start, shape, dtype) in self.columns.items()
        }


def _lent(crew, slot: int, free: collections.deque) -> dict[str, np.ndarray]:
    """Returns the arrays of a slot, which is free again when nothing refers to them."""
    memory = crew.layout.slot(crew.memory, slot)
    weakref.finalize(memory, free.append, slot).atexit = False
    # Labels and ids are small copies: keeping them does not keep the images.
    return {
        name: array.copy() if array.ndim == 1 else array
        for name, array in crew.layout.arrays(memory).items()
    }


def _copied(crew, slot: int, free: collections.deque) -> dict[str, np.ndarray]:
    arrays = crew.layout.arrays(crew.layout.slot(crew.memory, slot))
    free.append(slot)
    return {name: array.copy() for name, array in arrays.items()}


def _fill(rows, first: int, arrays: dict[str, np.ndarray], positions: range) -> Failure | None:
    """Writes some rows of the batch that starts at row `first`; returns the first failure."""
    for position in positions:
        try:
            for name, value in rows[first + position].items():
                arrays[name][position] = value
        except Exception as error:
            return position, error
    return None


def _keep_freed_memory() -> None:
    """Makes glibc keep the memory of an image for the next one.

    glibc returns freed memory to the system above a threshold, which is twice the largest block
    that was freed so far, up to 64 MB.
    """
    np.empty(1 << 24, np.uint8)


class _Threads:
    """Threads of this process, one per core."""

    def __init__(self, rows, layout: Layout):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.rows, self.layout, self.num_threads = rows, layout, min(cores or 1, MAX_THREADS)
        self.memory = mmap.mmap(-1, layout.num_bytes * (AHEAD + HELD))
        self.pool = ThreadPoolExecutor(self.num_threads)
        _keep_freed_memory()
        self.tasks: dict[int, list[Future]] = {}

    def fill(self, number: int, slot: int) -> None:
        arrays = self.layout.arrays(self.layout.slot(self.memory, slot))
        parts = _split_positions(self.layout.size, self.num_threads)
        first = number * self.layout.size
        self.tasks[slot] = [
            self.pool.submit(_fill, self.rows, first, arrays, part) for part in parts
        ]

    def wait(self, slot: int) -> list[Failure]:
        return [found for task in self.tasks.pop(slot) if (found := task.result()) is not None]

    def stop(self) -> None:
        self.pool.shutdown(cancel_futures=True)


def _split_positions(size: int, count: int) -> list[range]:
    """Returns the row positions of a batch, distributed over the workers."""
    return [range(first, size, count) for first in range(min(size, count))]


class _Processes:
    """Worker processes, which end with this process in any case."""

    def __init__(self, rows, layout: Layout, num_workers: int):
        self.layout = layout
        context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork.
        arena = _shared_memory(layout.num_bytes * (AHEAD + HELD))
        self.memory = arena.buffer
        self.workers: list[tuple] = []
        atexit.register(self.stop)  # For an iterator that is not closed.
        try:
            for part in _split_positions(layout.size, num_workers):
                self._start(context, (rows, layout, arena, part))
        except BaseException:
            self.stop()
            raise

    def _start(self, context, arguments: tuple) -> None:
        ours, theirs = context.Pipe()
        arguments = (theirs, registry.trusted_names(), *arguments)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()  # The pipe now ends when either process ends.
        self.workers.append((process, ours))

    def fill(self, number: int, slot: int) -> None:
        for _, pipe in self.workers:
            with contextlib.suppress(OSError):  # `wait` reports a worker that has ended.
                pipe.send((number, slot))

    def wait(self, slot: int) -> list[Failure]:
        return [found for worker in self.workers if (found := self._answer(*worker)) is not None]

    def _answer(self, process, pipe) -> Failure | None:
        try:
            return pipe.recv()
        except (EOFError, OSError) as error:
            process.join()
            raise DataError(
                f"a data worker process ended unexpectedly with exit code {process.exitcode}."
            ) from error

    def stop(self) -> None:
        atexit.unregister(self.stop)
        for process, pipe in self.workers:
            process.kill()  # It has no state to save.
            process.join()
            pipe.close()


def _shared_memory(num_bytes: int) -> heap.Arena:
    """Returns shared memory without a name, which is freed with the last process that uses it.

    A named block would remain after a killed process, and containers limit those to 64 MB.
    """
    if not hasattr(os, "memfd_create"):
        return heap.Arena(num_bytes)  # A temporary file, deleted already.
    file = os.memfd_create("batches")
    os.ftruncate(file, num_bytes)
    arena = heap.Arena(num_bytes, file)
    weakref.finalize(arena, os.close, file)
    return arena


def _work(pipe, trusted, rows, layout: Layout, arena: heap.Arena, positions: range) -> None:
    """Fills the worker's positions of one batch after the other until the pipe ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Sent to the process group; the parent handles it.
    _keep_freed_memory()
    registry.trust(trusted)
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, slot = pipe.recv()
            arrays = layout.arrays(layout.slot(arena.buffer, slot))
            failure = _fill(rows, number * layout.size, arrays, positions)
            pipe.send(failure and _portable(*failure))


def _portable(position: int, error: Exception) -> Failure:
    """Returns a failure that can be pickled; a bug is reported with its traceback."""
    if isinstance(error, DataError):
        return position, error
    return position, RuntimeError(
        "in a data worker:\n" + "".join(traceback.format_exception(error))
    )
