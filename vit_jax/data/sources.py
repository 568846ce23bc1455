"""Data sets by kind: `config.data.source` -> the examples of a split."""

import dataclasses
import functools
import os
import warnings
import zlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from vit_jax.config import registry
from vit_jax.config.schema import Data
from vit_jax.data import packaged, subsets
from vit_jax.data.array_record import open_prepared, open_tfds
from vit_jax.data.bucket_data import fetch_data
from vit_jax.data.csv_lists import open_csv
from vit_jax.data.image_folder import open_folder
from vit_jax.data.mixture import mix
from vit_jax.data.object_store import is_url
from vit_jax.data.unlabeled import open_images
from vit_jax.data.vtab import open_vtab
from vit_jax.errors import DataError, VitJaxError, one_line


class Source(Protocol):
    """Examples of one split by index. Threads share a source, and worker processes unpickle it.

    A source whose images have several right labels also has `label_sets`, N tuples of labels.

    Attributes:
      classes: class names in the order of the labels, the same for all splits; () if the data set
        has no classes, whose labels are -1.
      labels: N int64, without reading images.
    """

    classes: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict:
        """Returns {'image': H W 3 uint8 or decode.Encoded (bytes of a file), 'label': int}.

        Raises IndexError beyond the last example, and decode.UnreadableImage, a DataError in one
        line, if the image cannot be read.
        """

    def name(self, index: int) -> str:
        """Returns the name of an example for messages and tables, such as its path."""

    def fingerprint(self) -> int:
        """Returns a checksum of the examples: a run resumes on data with the same one only."""


class Opener(Protocol):
    """Opens one split of a `config.data` section, without decoding images.

    Raises DataError in one line if the data or the split is missing, or cannot be used.
    `data.val_fraction` is 0 if no split `val` is used, and 1 for a data set that nothing trains on:
    without splits, all of it is `val`.
    """

    def __call__(self, data: Data, split: str, /) -> Source: ...


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """Row of `SOURCES`.

    Attributes:
      open: opens a split.
      named_by: field of config.data that names the data set, 'dir' or 'dataset'; '' if the kind
        is one data set, which config.data.mix and config.fewshot.sets cannot name.
      reads: fields of config.data that `open` reads beside `split` and `image_size`; others have
        no effect.
      dev_splits: splits for training and for scoring that the data set prescribes for the choice
        of hyperparameters: config.data.dev uses them, and config.data.mix is an error.
      has_classes: False if no data set of the kind has classes.
    """

    open: Opener
    named_by: str = "dir"
    reads: tuple[str, ...] = ("dir", "dataset", "val_fraction", "num_classes", "num_examples")
    dev_splits: tuple[str, str] | None = None
    has_classes: bool = True

    @property
    def can_mix(self) -> bool:
        return bool(self.named_by) and self.dev_splits is None

    def select(self, data: Data, name: str) -> Data:
        """Returns the section for another data set of this kind."""
        return dataclasses.replace(data, **{self.named_by: name})

    def title(self, data: Data) -> str:
        """Returns a short name of the data set: last folder, or name without version."""
        if self.named_by == "dir":
            title = data.dir.rstrip("/").rpartition("/")[2]
        else:
            title = data.dataset.partition(":")[0].replace("/", "_") if self.named_by else ""
        return title or data.source.rpartition(":")[2]


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images N H W 3 uint8 in memory (a `Source`)."""

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
    """Noise around one colour per class (a `Source`): fast to compute, and possible to learn."""

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


def open_fake(data: Data, split: str) -> FakeSource:
    """Opens `data.num_examples` images of `data.num_classes` classes."""
    seed = _train_or_val(data, split)
    classes = tuple(f"class {k}" for k in range(data.num_classes))
    return FakeSource(data.num_examples, data.size, classes, seed)


def open_packaged(read: Callable, data: Data, split: str) -> subsets.Subset:
    """Opens images N H W uint8 and labels N of the digits 0 to 9; a fixed fifth is 'val'."""
    is_val = _train_or_val(data, split)
    source = _digits(read)
    order = np.random.default_rng(0).permutation(len(source))
    cut = len(source) // 5
    return subsets.Subset(source, order[:cut] if is_val else order[cut:])


@functools.cache
def _digits(read: Callable) -> ArraySource:
    images, labels = read()
    images = np.repeat(images[..., None], 3, axis=-1)
    return ArraySource(images, labels.astype(np.int64), tuple("0123456789"))


def _train_or_val(data: Data, split: str) -> int:
    """Returns 0 for 'train' and 1 for 'val'."""
    if split not in ("train", "val"):
        raise DataError(f"data.source={data.source} has splits train and val, not {split!r}.")
    return int(split == "val")


SOURCES = registry.Table(
    SourceKind,
    {
        "mnist5k": SourceKind(functools.partial(open_packaged, packaged.mnist5k), "", ()),
        "digits": SourceKind(functools.partial(open_packaged, packaged.digits), "", ()),
        "folder": SourceKind(open_folder, reads=("dir", "val_fraction")),
        "csv": SourceKind(open_csv, reads=("dir", "val_fraction")),
        "images": SourceKind(open_images, reads=("dir", "val_fraction"), has_classes=False),
        "prepared": SourceKind(open_prepared, reads=("dir", "val_fraction")),
        "tfds": SourceKind(open_tfds, "dataset", ("dir", "dataset")),
        "vtab": SourceKind(open_vtab, "dataset", ("dir", "dataset"), ("train800", "val200")),
        "fake": SourceKind(open_fake, "", ("num_classes", "num_examples")),
    },
)


def find_kind(data: Data) -> SourceKind:
    """Returns the kind that `data.source` names; a user's own function is an `Opener`."""
    return registry.find(SOURCES, data.source, "config.data.source")


def open_split(data: Data, split: str) -> Source:
    """Opens one split of a `config.data` section.

    Raises DataError in one line if the data or the split is missing, or cannot be used.
    """
    if data.val_split != "val":  # No examples are held out for a split that is not used.
        data = dataclasses.replace(data, val_fraction=0.0)
    try:
        return find_kind(data).open(_fetched(data), split)
    except Exception as error:  # A user-defined function can raise anything.
        if isinstance(error, VitJaxError) or not registry.is_user_defined(data.source):
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise DataError(f"data.source={data.source!r} cannot open {split!r}: {reason}") from error


def _fetched(data: Data) -> Data:
    """Returns the section with the local copy of a `dir` in a bucket.

    A user-defined opener receives the URL. Raises DataError for a kind that reads local files only.
    """
    if not is_url(data.dir) or data.source not in SOURCES:
        return data
    if SOURCES[data.source].named_by != "dir":
        raise DataError(
            f"data.dir={data.dir}: data.source={data.source} reads a folder on a disk; copy the "
            "data set, or mount the bucket."
        )
    return dataclasses.replace(data, dir=fetch_data(data.dir))


def check_classes(source: Source, data: Data, purpose: str) -> None:
    """Raises DataError for a data set without classes.

    Args:
      purpose: what needs classes.
    """
    if source.classes:
        return
    labelled = ", ".join(name for name, kind in SOURCES.items() if kind.has_classes)
    raise DataError(
        f"data.source={data.source} has no classes, which {purpose} needs; use a data.source with "
        f"classes ({labelled}). Tasks such as task.name='mae' and the command `features` need none."
    )


def open_training(data: Data) -> Source:
    """Opens the training examples."""
    return open_both(data)[0] if data.dev is not None else _open_subset(data)


def open_both(data: Data) -> tuple[Source, Source | None]:
    """Opens the training examples and those scored during training: `dev`, `val_split` or None."""
    kind = find_kind(data)
    if data.dev is not None and kind.dev_splits:
        train, dev = kind.dev_splits
        return open_split(data, train), open_split(data, dev)
    source = _open_subset(data)
    if data.dev is not None:
        return subsets.split_off_dev(source, data)
    if not data.val_split:
        return source, None
    scored = data if trains_on(data, data) else dataclasses.replace(data, val_fraction=1.0)
    return source, open_split(scored, data.val_split)


def trains_on(training: Data, data: Data) -> bool:
    """Returns True if the data set of `data` is one that `training` trains on.

    If not, no examples of it are held out: `val_fraction` is 1 to score it.
    """
    kind = find_kind(data)
    if training.source != data.source:
        return False
    if not kind.named_by:
        return True
    names = [name for name, _ in training.mix] or [getattr(training, kind.named_by)]
    name = getattr(data, kind.named_by)
    return name in names or (
        kind.named_by == "dir" and os.path.realpath(name) in map(os.path.realpath, names)
    )


def _open_subset(data: Data) -> Source:
    """Opens `data.split`, or the mixture `data.mix`, and draws the subset of it."""
    if not data.mix:
        return subsets.draw_subset(open_split(data, data.split), data)
    kind = find_kind(data)
    sources = [open_split(kind.select(data, name), data.split) for name, _ in data.mix]
    return subsets.draw_subset(mix(sources, shares=[share for _, share in data.mix]), data)


def make_source(source: str, split: str, **fields) -> Source:
    """`open_split(Data(source=source, **fields), split)`; this name is deprecated."""
    warnings.warn("use open_split(Data(source=...), split)", DeprecationWarning, stacklevel=2)
    return open_split(Data(source=source, **fields), split)
