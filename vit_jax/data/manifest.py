"""The files beside the shards of a prepared data set: what is in it, and what is not.

manifest.jsonl   a line per image, in the order of the shards, split after split
manifest.npy     where each of those lines begins, and its label
left_out.jsonl   a line per image that was left out, with the reason
classes.csv      images of each class by split, and how many were left out
prepared.json    what was prepared, and the SHA-256 of manifest.jsonl
"""

import array
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

LINES, INDEX, LEFT_OUT = "manifest.jsonl", "manifest.npy", "left_out.jsonl"
CLASSES, ABOUT = "classes.csv", "prepared.json"
ROW = np.dtype([("start", "<i8"), ("label", "<i4")])


def write(folder: pathlib.Path, lines: Iterable[tuple[bytes, dict]]) -> str:
    """Writes manifest, index and what was left out; returns the manifest's SHA-256.

    Args:
      lines: a line of JSON and its record per image; a record with a 'reason' was left out.
    """
    starts, labels = array.array("q"), array.array("i")  # Of millions.
    total, place = hashlib.sha256(), 0
    with open(folder / LINES, "wb") as kept, open(folder / LEFT_OUT, "wb") as left_out:
        for line, record in lines:
            if "reason" in record:
                left_out.write(line)
                continue
            starts.append(place)
            labels.append(record["label"])
            place += kept.write(line)
            total.update(line)
        for file in (kept, left_out):
            file.flush()
            os.fsync(file.fileno())
    rows = np.empty(len(starts), ROW)
    rows["start"], rows["label"] = starts, labels
    np.save(folder / INDEX, rows)
    return total.hexdigest()


@functools.lru_cache(maxsize=32)
def rows(folder: str) -> np.ndarray:
    """N of ROW, one per image of all splits; on disk until it is looked at."""
    return np.load(pathlib.Path(folder, INDEX), mmap_mode="r")


@functools.lru_cache(maxsize=32)
def _open_lines(folder: str) -> int:
    return os.open(pathlib.Path(folder, LINES), os.O_RDONLY)


def record(folder: str, row: int) -> dict:
    """The manifest's line of one image: path, split, class, label, size, sha256, width, height."""
    starts, lines = rows(folder)["start"], _open_lines(folder)
    start = int(starts[row])
    end = int(starts[row + 1]) if row + 1 < len(starts) else os.fstat(lines).st_size
    return json.loads(os.pread(lines, end - start, start))  # Threads share the descriptor.


def about(folder: pathlib.Path) -> dict | None:
    """What `prepared.json` says; None where there is none, or none that can be read."""
    try:
        values = json.loads((folder / ABOUT).read_bytes())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
