"""Near-duplicates of images that training must not have seen.

The paper's pre-training sets are "de-duplicated with respect to the test sets of the downstream
tasks following Kolesnikov et al." (section 4.1). Here two images are near-duplicates if

  1. their difference hashes (64 signs of the steps between neighbours on a 9x8 grey copy)
     differ at no more than 4 of the places where both images have a step worth the name, and
  2. their 16x16 grey copies differ nowhere by more than an eighth of the range of greys in
     them, at most 16 of 255 levels and at least 2.

Of 400 crops of two photos, encoded again as JPEG and resized by 0.5, 1 and 1.7, all are found at
qualities 50 and 90, and 95 to 100 % at quality 20; no crop is taken for another of the 400, no
digit for another of 5,000 in MNIST or of 1,797 scanned ones. Copies that were mirrored, cropped
or recoloured are not found.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from PIL import Image

MAX_BITS = 4
MAX_LEVELS, MIN_LEVELS = 16, 2
LEVELS_OF_RANGE = 1 / 8  # Plain images, such as skies, are alike without being copies.
MIN_STEP = 4  # Grey levels; on plain areas, smaller steps change sign with every encoding.


@dataclasses.dataclass(frozen=True)
class Signature:
    """What is left of an image to know it again by."""

    signs: np.uint64  # Of steps from left to right.
    steps: np.uint64  # Bits where the step is above MIN_STEP.
    grey: np.ndarray  # 256 uint8, of 16x16 pixels.


def signature(image: np.ndarray) -> Signature:
    """The signature of an image H W 3 uint8."""
    grey = Image.fromarray(image).convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BILINEAR), np.int16)
    steps = np.diff(small, axis=1)
    thumbnail = np.asarray(grey.resize((16, 16), Image.Resampling.BILINEAR))
    return Signature(_bits(steps > 0), _bits(abs(steps) > MIN_STEP), thumbnail.ravel())


def _bits(places: np.ndarray) -> np.uint64:
    return np.packbits(places).view(np.uint64)[0]


@dataclasses.dataclass(frozen=True)
class Index:
    """Signatures of many images, by name."""

    signs: np.ndarray  # N uint64.
    steps: np.ndarray  # N uint64.
    greys: np.ndarray  # N 256 uint8.
    names: np.ndarray  # N strings.

    def find(self, image: np.ndarray) -> str | None:
        """The name of the first near-duplicate of an image, or None."""
        wanted = signature(image)
        differing = (self.signs ^ wanted.signs) & self.steps & wanted.steps
        close = np.flatnonzero(np.bitwise_count(differing) <= MAX_BITS)
        levels = np.abs(self.greys[close].astype(np.int16) - wanted.grey).max(axis=1, initial=0)
        limit = LEVELS_OF_RANGE * int(np.ptp(wanted.grey))
        found = close[levels <= np.clip(limit, MIN_LEVELS, MAX_LEVELS)]
        return str(self.names[found[0]]) if len(found) else None

    def save(self, file: BinaryIO) -> None:
        """As an .npz."""
        np.savez(file, **vars(self))


def build_index(signatures: Iterable[tuple[str, Signature]]) -> Index:
    """An index of named signatures."""
    named = sorted(signatures, key=lambda pair: pair[0])
    return Index(
        np.array([one.signs for _, one in named], np.uint64),
        np.array([one.steps for _, one in named], np.uint64),
        np.array([one.grey for _, one in named], np.uint8).reshape(-1, 256),
        np.array([name for name, _ in named], np.str_),
    )


def load_index(path: pathlib.Path) -> Index:
    """The index that `Index.save` wrote."""
    with np.load(path) as arrays:
        return Index(**arrays)
