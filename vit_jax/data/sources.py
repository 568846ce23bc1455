"""Data sets by kind: `config.data.source` -> the examples of a split."""

import csv
import dataclasses
import functools
import io
import os
import pathlib
import warnings
import zlib
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from vit_jax.config import registry
from vit_jax.config.schema import Data
from vit_jax.data import packaged, subsets
from vit_jax.data.array_record import open_prepared, open_tfds
from vit_jax.data.image_folder import FolderSource, folder_source, open_folder, share_files
from vit_jax.data.labels import same_form
from vit_jax.data.mixture import mix
from vit_jax.data.vtab import open_vtab
from vit_jax.errors import DataError, nearest


class Source(Protocol):
    """Examples of one split by index. Threads share a source, and worker processes unpickle it.

    A source whose images have several right labels also has `label_sets`, N tuples of labels.

    Attributes:
      classes: class names in the order of the labels, the same for all splits.
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
    `data.val_fraction` is 0 if no split `val` is used.
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
    """

    open: Opener
    named_by: str = "dir"
    reads: tuple[str, ...] = ("dir", "dataset", "val_fraction", "num_classes", "num_examples")
    dev_splits: tuple[str, str] | None = None

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
    size = data.image_size
    size = (size, size) if isinstance(size, int) else size
    classes = tuple(f"class {k}" for k in range(data.num_classes))
    return FakeSource(data.num_examples, size, classes, seed)


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


def open_csv(data: Data, split: str) -> FolderSource:
    """Opens images in lists: `data.dir` is a CSV file, or a folder of `train.csv`, `val.csv`, ...

    A list is UTF-8 text with the columns `path`, relative to the list, and `label`, a class name.
    Without `val.csv`, the splits 'train' and 'val' share the images of `train.csv` as those of a
    folder. Classes are those of training, sorted: numbers by value, before other names.
    """
    where = pathlib.Path(data.dir)
    lists = {path.stem: path for path in where.glob("*.csv")} if data.dir else {}
    lists = {"train": where} if where.is_file() else lists
    train_list = lists.get("train", lists.get(split))  # Only for evaluation if not `train.csv`.
    if train_list is None:
        raise DataError(
            f"data.dir={data.dir or '(empty)'}: expected a CSV file, or a folder with train.csv."
        )
    files = _read_list(train_list)
    classes = sorted(files, key=_class_order)
    if len(classes) < 2:
        raise DataError(f"{train_list}: classes {classes}; expected at least two.")
    files = {title: files[title] for title in classes}
    if split in lists and lists[split] != train_list:
        files = _read_list(lists[split], classes)
    elif train_list == lists.get("train") and "val" not in lists and split in ("train", "val"):
        files = share_files(files, split, data.val_fraction)
    elif split not in lists:
        raise DataError(f"{where}: no list {split}.csv for split {split!r}.")
    if not any(files.values()):
        raise DataError(f"{where}: split {split!r} has no images.")
    return folder_source(train_list.parent, files)


def _class_order(title: str) -> tuple:
    return (0, int(title), title) if title.isdecimal() else (1, 0, title)


def _read_list(file: pathlib.Path, classes: Iterable[str] = ()) -> dict[str, list[str]]:
    """Returns the image paths of each class in a CSV list, in its order.

    Args:
      classes: allowed class names; any if empty.

    Raises DataError with file and line.
    """
    files: dict[str, list[str]] = {title: [] for title in classes}
    lines: dict[str, int] = {}  # Path -> its line.
    text = io.StringIO(_read_text(file), newline="")
    reader = csv.reader(text, skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for name in ("path", "label"):
            if header.count(name) != 1:
                raise DataError(
                    f"{file}, line 1: the header {','.join(header)[:80]!r} has "
                    f"{header.count(name)} columns named {name!r}; expected path,label."
                )
        for row in reader:
            if not row:  # An empty line.
                continue
            where = f"{file}, line {reader.line_num}"
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} columns; the header has {len(header)}.")
            path = row[header.index("path")].strip()
            title = same_form(row[header.index("label")].strip())
            if not path or not title:
                raise DataError(f"{where}: the {'label' if path else 'path'} is empty.")
            if classes and title not in files:
                raise DataError(
                    f"{where}: class {title!r} is not among the {len(files)} classes of training."
                    f"{nearest(title, files)}"
                )
            first_line = lines.setdefault(os.path.normpath(path), reader.line_num)
            if first_line != reader.line_num:
                raise DataError(f"{where}: path {path!r} is also in line {first_line}.")
            if not (file.parent / path).is_file():
                raise DataError(f"{where}: no such file: {file.parent / path}.")
            files.setdefault(title, []).append(path)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not valid CSV ({error}).") from error
    return files


def _read_text(file: pathlib.Path) -> str:
    """Returns the text of a UTF-8 file, with or without a byte order mark."""
    try:
        data = file.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}, line {line}: not UTF-8 ({error.reason}).") from error


SOURCES = registry.Table(
    SourceKind,
    {
        "mnist5k": SourceKind(functools.partial(open_packaged, packaged.mnist5k), "", ()),
        "digits": SourceKind(functools.partial(open_packaged, packaged.digits), "", ()),
        "folder": SourceKind(open_folder, reads=("dir", "val_fraction")),
        "csv": SourceKind(open_csv, reads=("dir", "val_fraction")),
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
    return find_kind(data).open(data, split)


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
    return source, open_split(data, data.val_split) if data.val_split else None


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
