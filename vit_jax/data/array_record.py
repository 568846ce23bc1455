"""Data sets that TFDS, or our own verb `prepare`, has prepared; read without TensorFlow."""

import dataclasses
import functools
import operator
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.data import manifest
from vit_jax.data.decode import Encoded
from vit_jax.errors import DataError, nearest

OWN_LABEL = "original_label"  # ImageNet's, in TFDS's imagenet2012_real.


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A prepared TFDS split, images still encoded, read without TensorFlow."""

    records: Sequence
    image_key: str
    label_of: Callable[[dict], int]  # A record's label.
    classes: tuple[str, ...]
    title: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        image = Encoded(record[self.image_key], self.name(index))
        return {"image": image, "label": int(self.label_of(record))}

    def fingerprint(self) -> int:
        return zlib.crc32(f"{self.title} {len(self)} {self.classes}".encode())

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return np.array(self.of_all(self.label_of), np.int64)

    def of_all(self, function: Callable[[dict], object]) -> list:
        """`function` of every record: all are read, as TFDS keeps no lists; images stay encoded."""
        found = []
        for start in range(0, len(self), 1024):  # In threads, so many at a time.
            places = range(start, min(start + 1024, len(self)))
            found += map(function, self.records.__getitems__(places))
        return found

    def name(self, index: int) -> str:
        return f"{self.title}#{index}"


@dataclasses.dataclass(frozen=True)
class LabelSetsSource(TfdsSource):
    """A TFDS split whose images have several right labels each, or none, as ReaL's have.

    Where they have one of their own as well, it is the record's label; else that is the first of
    its set, or 0, and means nothing.
    """

    set_of: Callable[[dict], Sequence[int]]  # A record's labels.
    has_own_labels: bool

    @functools.cached_property
    def label_sets(self) -> list[tuple[int, ...]]:
        return [tuple(map(int, labels)) for labels in self.of_all(self.set_of)]


@dataclasses.dataclass(frozen=True)
class PreparedSource(TfdsSource):
    """A split of a folder that `prepare` wrote; labels and names come from its manifest."""

    folder: str
    spans: tuple[tuple[int, int], ...]  # First row of the manifest, and the one past the last.

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """The index after the last of each span."""
        return np.cumsum([last - first for first, last in self.spans])

    @property
    def labels(self) -> np.ndarray:
        labels = manifest.rows(self.folder)["label"]
        parts = [labels[first:last] for first, last in self.spans]
        return np.concatenate([labels[:0], *parts]).astype(np.int64)

    def fingerprint(self) -> int:
        digest = manifest.about(pathlib.Path(self.folder))["manifest"]
        return zlib.crc32(f"{digest} {self.spans}".encode())

    def name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self._ends, index, side="right"))
        _, last = self.spans[which]
        return manifest.record(self.folder, last - int(self._ends[which]) + index)["path"]


def open_prepared(dir: str, split: str, val_fraction: float) -> PreparedSource:
    """A split, or a slice as TFDS writes it, of a folder that `prepare` wrote.

    Without a split `val`, 'train' and 'val' share its `train`: records stand in an order drawn
    by their names, so that its first ones are as good for 'val' as any.
    """
    import tensorflow_datasets as tfds

    folder = pathlib.Path(dir)
    if not dir or not folder.is_dir():
        unfinished = pathlib.Path(f"{dir.rstrip('/')}.partial").is_dir() if dir else False
        words = "`prepare` has not finished it; run it again" if unfinished else "no such folder"
        raise DataError(f"data.dir={dir or '(empty)'}: {words}.")
    if manifest.about(folder) is None:
        raise DataError(
            f"data.dir={dir}: `prepare` did not write this folder; data.source=folder reads "
            "class folders, data.source=tfds reads TFDS's folder of data sets."
        )
    try:
        builder = tfds.builder_from_directory(dir)
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    except Exception as error:
        raise DataError(f"data.dir={dir}: damaged ({_in_brief(error)}).") from error
    if "train" in sizes and "val" not in sizes and split in ("train", "val") and val_fraction:
        cut = max(1, round(sizes["train"] * val_fraction))
        split = f"train[{cut}:]" if split == "train" else f"train[:{cut}]"
    _refuse_unknown(split, sizes, f"data.dir={dir}")
    image_key, label_key, names, _ = _keys(builder, f"data.dir={dir}")
    records = read_split(builder, split, f"data.dir={dir}")
    label_of, spans = operator.itemgetter(label_key), _spans(builder, split)
    return PreparedSource(records, image_key, label_of, names, f"{dir}/{split}", dir, spans)


def _spans(builder, split: str) -> tuple[tuple[int, int], ...]:
    """Rows of the manifest that a split is made of; raises DataError where a shard is missing."""
    first_row, row = {}, 0
    for name in sorted(builder.info.splits):
        info = builder.info.splits[name]
        for path, length in zip(info.filepaths, info.shard_lengths):
            first_row[os.fspath(path)] = row
            row += length
    spans = []
    for part in builder.info.splits[split].file_instructions:
        if not os.path.isfile(part.filename):
            raise DataError(f"{part.filename}: this file of the data set is missing.")
        first = first_row[os.fspath(part.filename)] + part.skip
        spans.append((first, first + part.take))
    return tuple(spans)


def open_tfds(dataset: str, split: str, dir: str) -> TfdsSource:
    """A TFDS split that was prepared as ArrayRecord; no TensorFlow is imported.

    A LabelSetsSource where the labels that TFDS supervises with are a sequence for each image.
    """
    if not dataset:
        raise DataError("data.source=tfds needs data.dataset, such as cifar10.")
    title = f"data.dataset={dataset}"
    builder, how = open_builder(dataset, dir, title)
    _refuse_unknown(split, builder.info.splits, title)
    image_key, label_key, names, are_sets = _keys(builder, title)
    records = read_split(builder, split, title, how)
    place, of = f"{builder.info.full_name}/{split}", operator.itemgetter(label_key)
    if are_sets:
        has_own = OWN_LABEL in builder.info.features
        first = functools.partial(_first_label, label_key)
        label_of = operator.itemgetter(OWN_LABEL) if has_own else first
        return LabelSetsSource(records, image_key, label_of, names, place, of, has_own)
    return TfdsSource(records, image_key, of, names, place)


def _first_label(key: str, record: dict) -> int:
    return next(iter(record[key]), 0)


def open_builder(dataset: str, dir: str, title: str) -> tuple:
    """TFDS's builder of a data set that is prepared, and how one prepares it.

    Raises DataError that begins with `title`.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=dir or None)
    except tfds.core.DatasetNotFoundError as error:
        hint = nearest(dataset, tfds.list_builders(with_community_datasets=False))
        raise DataError(f"{title}: not a TFDS data set.{hint}") from error
    except Exception as error:  # TFDS raises its own and its builders' errors alike.
        raise DataError(f"{title}: TFDS cannot open it ({_in_brief(error)}).") from error
    how = (
        f"prepare it once with `pip install 'vit-jax[tf]'` and `python -c \"import "
        f"tensorflow_datasets as tfds; tfds.builder('{dataset}', data_dir={dir or None!r}, "
        f"file_format='array_record').download_and_prepare()\"`."
    )
    if not builder.data_path.exists():
        raise DataError(f"{title} is not under {builder.data_path}; {how}")
    return builder, how


def _refuse_unknown(split: str, known, title: str) -> None:
    if any(part.partition("[")[0] not in known for part in split.split("+")):
        raise DataError(f"{title} has splits {sorted(known)}, not {split!r}.")


def _keys(builder, title: str) -> tuple[str, str, tuple[str, ...], bool]:
    """The keys of image and label, the class names, and whether each label is a sequence."""
    import tensorflow_datasets as tfds

    image_key, label_key = builder.info.supervised_keys or ("image", "label")
    features = dict(builder.info.features)
    names = getattr(features.get(label_key), "names", None)  # A sequence has its elements' names.
    if names is None or image_key not in features:
        raise DataError(
            f"{title} has no image with a class label; its features are {sorted(features)}."
        )
    are_sets = isinstance(features[label_key], tfds.features.Sequence)
    return image_key, label_key, tuple(names), are_sets


def read_split(builder, split: str, title: str, how: str = "") -> Sequence[dict]:
    """Random access to the records of a split or slice, with all images still encoded."""
    import tensorflow_datasets as tfds

    images = [key for key, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]
    try:
        decoders = {key: tfds.decode.SkipDecoding() for key in images}
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:  # Files of a format without random access.
        raise DataError(f"{title} cannot be read ({_in_brief(error)}); {how}") from error
    except Exception as error:  # A slice that makes no sense, or damaged files.
        place = title.partition("=")[2]
        raise DataError(
            f"data.split={split} of {place} cannot be read ({_in_brief(error)})."
        ) from error


def _in_brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
