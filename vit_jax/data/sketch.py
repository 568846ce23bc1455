"""Sketch of a data set, which distinguishes a few removed files from other data."""

import os
import zlib

import numpy as np

from vit_jax.data.image_folder import FolderSource
from vit_jax.data.unlabeled import UnlabeledSource

NUM_BUCKETS = 256


def make_sketch(source) -> list[list[int]] | None:
    """Returns number and sum of the checksums of the images in each bucket.

    A CRC-32 of class and file name is the checksum of an image, and selects its bucket. Returns
    None for data sets that are not image files, of which none can be removed.
    """
    if not isinstance(source, FolderSource | UnlabeledSource):
        return None
    sketch = np.zeros((NUM_BUCKETS, 2), np.int64)
    for file, label in zip(source.files, source.labels):
        title = source.classes[label] if source.classes else ""
        checksum = zlib.crc32(os.fsencode(f"{title}\0{file}"))
        sketch[checksum % NUM_BUCKETS] += (1, checksum)
    return sketch.tolist()


def count_removed(old: list[list[int]] | None, new: list[list[int]] | None) -> int | None:
    """Returns the number of images that the new data lacks; None if it differs in anything else.

    An image that was added, renamed or moved to another class changes a bucket that has not
    become smaller, unless it shares the bucket with a removed one.
    """
    if old is None or new is None:
        return None
    difference = np.subtract(old, new)
    changed = difference[difference.any(axis=1), 0]
    return int(changed.sum()) if (changed > 0).all() else None
