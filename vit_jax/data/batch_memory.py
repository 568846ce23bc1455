"""Memory of batches: its layout, and when it can be reused."""

import collections
import dataclasses
import math
import os
import weakref
from multiprocessing import heap

import numpy as np

AHEAD = 2  # Batches that are being filled or are ready.
HELD = 3  # Batches that a caller may keep at a time without a copy.
SLOTS = AHEAD + HELD
PAGE = 4096  # Bytes; arrays aligned to 64 bytes need no copy to a CPU device.


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

    def memory_size(self, num_workers: int) -> int:
        """Returns the bytes of all slots, and of the row that each worker is at in each slot."""
        return self.num_bytes * SLOTS + 8 * SLOTS * num_workers

    def slot(self, memory, number: int) -> np.ndarray:
        """Returns the bytes of batch number `number`."""
        return np.frombuffer(memory, np.uint8, self.num_bytes, number * self.num_bytes)

    def rows_in_work(self, memory, num_workers: int) -> np.ndarray:
        """Returns the row that each worker is at, SLOTS W; the workers write it."""
        rows = np.frombuffer(memory, np.int64, SLOTS * num_workers, SLOTS * self.num_bytes)
        return rows.reshape(SLOTS, num_workers)

    def arrays(self, slot: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of a batch; they keep `slot` alive."""
        return {
            name: slot[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            for name, (start, shape, dtype) in self.columns.items()
        }


def lent(crew, slot: int, free: collections.deque) -> dict[str, np.ndarray]:
    """Returns the arrays of a slot, which is free again when nothing refers to them."""
    memory = crew.layout.slot(crew.memory, slot)
    weakref.finalize(memory, free.append, slot).atexit = False
    # Labels and ids are small copies: keeping them does not keep the images.
    return {
        name: array.copy() if array.ndim == 1 else array
        for name, array in crew.layout.arrays(memory).items()
    }


def copied(crew, slot: int, free: collections.deque) -> dict[str, np.ndarray]:
    """Returns copies of the arrays of a slot, which is free again at once."""
    arrays = crew.layout.arrays(crew.layout.slot(crew.memory, slot))
    free.append(slot)
    return {name: array.copy() for name, array in arrays.items()}


def shared_memory(num_bytes: int) -> heap.Arena:
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
