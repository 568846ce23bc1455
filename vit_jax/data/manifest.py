"""Files beside the shards of a prepared data set.

manifest.jsonl   one line per image, in the order of the shards, split after split
manifest.npy     start and label of each of these lines
left_out.jsonl   one line per image that was left out, with the reason
duplicates.jsonl one line per group of equal images: path, split and class of each
classes.csv      numbers of images per class and split, and of those left out
prepared.json    arguments of `prepare`, and the SHA-256 of manifest.jsonl
"""

import array
import contextlib
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from vit_jax.atomic_io import json_object, open_atomically

LINES, INDEX, LEFT_OUT = "manifest.jsonl", "manifest.npy", "left_out.jsonl"
COPIES, CLASSES, INFO = "duplicates.jsonl", "classes.csv", "prepared.json"
ROW = np.dtype([("start", "<i8"), ("label", "<i4")])


def write(folder: pathlib.Path, lines: Iterable[tuple[bytes, dict]]) -> str:
    """Writes the manifest, its index and the images left out; returns the manifest's SHA-256.

    Args:
      lines: a line of JSON and its record per image; a record with a 'reason' was left out.
    """
    starts, labels = array.array("q"), array.array("i")  # Small, for millions of images.
    checksum, position = hashlib.sha256(), 0
    with (
        open_atomically(folder / LINES) as kept,
        open_atomically(folder / LEFT_OUT) as left_out,
    ):
        for line, record in lines:
            if "reason" in record:
                left_out.write(line)
                continue
            starts.append(position)
            labels.append(record["label"])
            position += kept.write(line)
            checksum.update(line)
    rows = np.empty(len(starts), ROW)
    rows["start"], rows["label"] = starts, labels
    with open_atomically(folder / INDEX, rows.nbytes) as file:
        np.save(file, rows)
    return checksum.hexdigest()


@functools.lru_cache(maxsize=32)
def rows(folder: str) -> np.ndarray:
    """Returns N of ROW, one per image of all splits, as a memory map."""
    return np.load(pathlib.Path(folder, INDEX), mmap_mode="r")


@functools.lru_cache(maxsize=32)
def _open_lines(folder: str) -> int:
    return os.open(pathlib.Path(folder, LINES), os.O_RDONLY)


def record(folder: str, row: int) -> dict:
    """Returns path, split, class, label, size, sha256, width and height of an image."""
    starts, lines = rows(folder)["start"], _open_lines(folder)
    start = int(starts[row])
    end = int(starts[row + 1]) if row + 1 < len(starts) else os.fstat(lines).st_size
    return json.loads(os.pread(lines, end - start, start))  # Threads share the descriptor.


def read_info(folder: pathlib.Path) -> dict | None:
    """Returns the contents of `prepared.json`; None if it is missing or unreadable."""
    with contextlib.suppress(OSError, ValueError):
        return json_object((folder / INFO).read_bytes())
    return None
