"""Random-access records: `source[i]` is {'image': pixels or an encoded file, 'label': int}.

Pixels are H W 3 uint8; a file's bytes are an `images.Encoded`, which the recipes decode.

A source also has `classes`, the names in label order, equal for all its splits; `labels`;
`name(i)`, what a person calls record i; and `fingerprint()`, a number that other records would
hardly share. One whose images have sets of right labels has them as `label_sets`, too.
"""

import dataclasses
import functools
import zlib

import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data import packaged, subsets
from vit_jax.data.array_record import open_prepared, open_tfds
from vit_jax.data.image_folder import open_folder
from vit_jax.data.labels import relabelled
from vit_jax.data.mixture import mix
from vit_jax.data.vtab import open_vtab
from vit_jax.errors import DataError

__all__ = ["make_source", "open_both", "open_split", "open_training", "relabelled"]

PACKAGED = {"mnist5k": packaged.mnist5k, "digits": packaged.digits}


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


def open_split(data: Data, split: str):
    """The records of one split of a `config.data` section."""
    return make_source(
        data.source,
        split,
        dir=data.dir,
        dataset=data.dataset,
        # Nothing is held out for a split that nobody looks at.
        val_fraction=data.val_fraction if data.val_split == "val" else 0.0,
        num_classes=data.num_classes,
        num_examples=data.num_examples,
        image_size=data.image_size,
    )


def open_training(data: Data):
    """The records trained on."""
    return open_both(data)[0] if data.dev is not None else _draw(data)


def open_both(data: Data) -> tuple:
    """The records trained on, and those scored meanwhile: of `dev`, of `val_split`, or None.

    VTAB's tasks have a part of their own for choosing, whatever share `dev` names.
    """
    if data.dev is not None and data.source == "vtab":
        return open_split(data, "train800"), open_split(data, "val200")
    drawn = _draw(data)
    if data.dev is not None:
        return subsets.hold_out(drawn, data.dev, data.subset_seed)
    return drawn, open_split(data, data.val_split) if data.val_split else None


def _draw(data: Data):
    """`data.split`, or the mixture of `data.mix`, and the draw from it."""
    if data.mix:
        key = "dataset" if data.source == "tfds" else "dir"
        sets = [dataclasses.replace(data, **{key: name}) for name, _ in data.mix]
        sources = [open_split(each, data.split) for each in sets]
        source = mix(sources, shares=[share for _, share in data.mix])
    else:
        source = open_split(data, data.split)
    return subsets.draw(
        source,
        per_class=data.per_class,
        fraction=data.fraction,
        count=data.count,
        seed=data.subset_seed,
    )


def make_source(
    source: str,
    split: str,
    *,
    dir: str = Data.dir,
    dataset: str = Data.dataset,
    val_fraction: float = Data.val_fraction,
    num_classes: int = Data.num_classes,
    num_examples: int = Data.num_examples,
    image_size: int | tuple[int, int] = Data.image_size,
):
    """The records of one split.

    Args:
      source: 'mnist5k', 'digits', 'folder', 'prepared', 'tfds', 'vtab' or 'fake'.
      split: 'train' or 'val'; a folder has those its data came with, TFDS and VTAB their own.
      dir, dataset: where a folder lies; TFDS's data folder and the name in it, or VTAB's task.
      val_fraction: share of a folder or prepared set without `val` that is kept for 'val'.
      num_classes, num_examples, image_size: of the fake source.

    Raises DataError, in one line, where there is no such split or it cannot be used.
    """
    if source == "folder":
        return open_folder(dir, split, val_fraction)
    if source == "prepared":
        return open_prepared(dir, split, val_fraction)
    if source == "tfds":
        return open_tfds(dataset, split, dir)
    if source == "vtab":
        return open_vtab(dataset, split, dir)
    if split not in ("train", "val"):
        raise DataError(f"data.source={source} has splits train and val, not {split!r}.")
    if source == "fake":
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        classes = tuple(f"class {k}" for k in range(num_classes))
        return FakeSource(num_examples, size, classes, seed=("train", "val").index(split))
    return _packaged_split(source, split)


def _packaged_split(name: str, split: str) -> subsets.Subset:
    """A fifth for 'val', drawn once and for all."""
    source = _packaged(name)
    order = np.random.default_rng(0).permutation(len(source))
    cut = len(source) // 5
    return subsets.Subset(source, order[cut:] if split == "train" else order[:cut])


@functools.cache
def _packaged(name: str) -> ArraySource:
    images, labels = PACKAGED[name]()
    images = np.repeat(images[..., None], 3, axis=-1)
    return ArraySource(images, labels.astype(np.int64), tuple("0123456789"))
