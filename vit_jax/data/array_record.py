"""ArrayRecord data sets, prepared by TFDS or by the verb `prepare`, read without TensorFlow."""

import dataclasses
import functools
import json
import operator
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.config import registry
from vit_jax.config.schema import Data
from vit_jax.data import class_folders, manifest
from vit_jax.data.decode import Encoded
from vit_jax.data.listing import describe_missing
from vit_jax.errors import DataError, nearest, one_line

CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # In features.json.
SINGLE_LABEL = "original_label"  # Label of ImageNet in TFDS's imagenet2012_real.


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split that TFDS prepared; images are not decoded (a `Source`)."""

    records: Sequence
    image_key: str
    label_of: Callable[[dict], int]  # Label of a record.
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
        return np.array(self.map_records(self.label_of), np.int64)

    def map_records(self, function: Callable[[dict], object]) -> list:
        """Returns `function` of every record, which reads them all without decoding images."""
        values = []
        for start in range(0, len(self), 1024):  # Threads read the records of one slice.
            indices = range(start, min(start + 1024, len(self)))
            values += map(function, self.records.__getitems__(indices))
        return values

    def name(self, index: int) -> str:
        return f"{self.title}#{index}"


@dataclasses.dataclass(frozen=True)
class LabelSetsSource(TfdsSource):
    """A TFDS split whose images have any number of right labels each, such as ReaL.

    If images also have a single label, it is the label of the record; else the label of the
    record has no meaning: it is the first of the set, or 0.
    """

    set_of: Callable[[dict], Sequence[int]]  # Labels of a record.
    has_own_labels: bool

    @functools.cached_property
    def label_sets(self) -> list[tuple[int, ...]]:
        return [tuple(map(int, labels)) for labels in self.map_records(self.set_of)]


@dataclasses.dataclass(frozen=True)
class PreparedSource(TfdsSource):
    """A split of a folder that `prepare` wrote; labels and names are read from its manifest."""

    folder: str
    spans: tuple[tuple[int, int], ...]  # Rows of the manifest: (first, last + 1).
    splits: dict[str, int]  # Images of all splits.
    notes: tuple[str, ...]  # Lines for the start of a run.

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """Index after the last example of each span."""
        return np.cumsum([last - first for first, last in self.spans])

    @property
    def labels(self) -> np.ndarray:
        labels = manifest.rows(self.folder)["label"]
        parts = [labels[first:last] for first, last in self.spans]
        return np.concatenate([labels[:0], *parts]).astype(np.int64)

    def fingerprint(self) -> int:
        digest = manifest.read_info(pathlib.Path(self.folder))["manifest"]
        return zlib.crc32(f"{digest} {self.spans}".encode())

    def name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self._ends, index, side="right"))
        _, last = self.spans[which]
        return manifest.record(self.folder, last - int(self._ends[which]) + index)["path"]


def open_prepared(data: Data, split: str) -> PreparedSource:
    """Opens a split, or a slice such as `train[:98%]`, of the folder `data.dir`.

    Without a split `val`, the first `data.val_fraction` of `train` is 'val' and the rest 'train';
    `prepare` writes records in random order. A fraction of 1 is for a set that is only scored: it
    is all of `train`, if there is no other split.
    """
    import tensorflow_datasets as tfds

    dir, val_fraction = data.dir, data.val_fraction
    folder = pathlib.Path(dir)
    if not dir or not folder.is_dir():
        unfinished = pathlib.Path(f"{dir.rstrip('/')}.partial").is_dir() if dir else False
        problem = "`prepare` has not finished it; run it again" if unfinished else None
        raise DataError(f"data.dir={dir or '(empty)'}: {problem or describe_missing(dir)}.")
    if manifest.read_info(folder) is None:
        raise DataError(
            f"data.dir={dir}: `prepare` did not write this folder; use data.source=folder for "
            "class folders, or data.source=tfds for the data folder of TFDS."
        )
    require_trusted_features(folder)
    try:
        builder = tfds.builder_from_directory(dir)
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    except Exception as error:
        raise DataError(f"data.dir={dir}: damaged ({one_line(error)}).") from error
    notes: tuple[str, ...] = ()
    if class_folders.holds_out(split, sizes, val_fraction):
        cut = max(1, round(sizes["train"] * val_fraction))
        notes = class_folders.held_out_notes(split, val_fraction)
        split = f"train[{cut}:]" if split == "train" else f"train[:{cut}]"
    split = class_folders.find_split(split, sizes) or split
    _check_split(split, sizes, f"data.dir={dir}")
    image_key, label_key, names, _ = _keys(builder, f"data.dir={dir}")
    records = read_split(builder, split, f"data.dir={dir}")
    label_of, spans = operator.itemgetter(label_key), _spans(builder, split)
    title = f"{dir}/{split}"
    return PreparedSource(records, image_key, label_of, names, title, dir, spans, sizes, notes)


def _spans(builder, split: str) -> tuple[tuple[int, int], ...]:
    """Returns the rows of the manifest of a split; raises DataError if a shard is missing."""
    first_row, row = {}, 0
    for name in sorted(builder.info.splits):
        info = builder.info.splits[name]
        for path, length in zip(info.filepaths, info.shard_lengths):
            first_row[os.fspath(path)] = row
            row += length
    spans = []
    for part in builder.info.splits[split].file_instructions:
        if not os.path.isfile(part.filename):
            raise DataError(f"{part.filename}: no such file; the data set is incomplete.")
        first = first_row[os.fspath(part.filename)] + part.skip
        spans.append((first, first + part.take))
    return tuple(spans)


def open_tfds(data: Data, split: str) -> TfdsSource:
    """Opens a split or slice of the TFDS data set `data.dataset` under `data.dir`.

    It is a LabelSetsSource if the label of an image is a sequence in TFDS.
    """
    dataset = data.dataset
    if not dataset:
        raise DataError("data.source=tfds needs data.dataset, such as cifar10.")
    title = f"data.dataset={dataset}"
    builder, command = open_builder(dataset, data.dir, title)
    _check_split(split, builder.info.splits, title)
    image_key, label_key, names, are_sets = _keys(builder, title)
    records = read_split(builder, split, title, command)
    name, label_of = f"{builder.info.full_name}/{split}", operator.itemgetter(label_key)
    if are_sets:
        has_own, set_of = SINGLE_LABEL in builder.info.features, label_of
        first = functools.partial(_first_label, label_key)
        label_of = operator.itemgetter(SINGLE_LABEL) if has_own else first
        return LabelSetsSource(records, image_key, label_of, names, name, set_of, has_own)
    return TfdsSource(records, image_key, label_of, names, name)


def _first_label(key: str, record: dict) -> int:
    return next(iter(record[key]), 0)


def open_builder(dataset: str, dir: str, title: str) -> tuple:
    """Returns the TFDS builder of a prepared data set, and the command that prepares it.

    Raises DataError, which begins with `title`, or ConfigError for types that are not trusted.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[\w/.-]*(:[\d.*]+)?", dataset):  # A namespace has other people's code.
        raise DataError(f"{title}: expected a name of TFDS, such as mnist or mnist:3.0.1.")
    if dir:
        require_trusted_features(pathlib.Path(dir) / re.split("[:/]", dataset)[0])
    try:
        builder = tfds.builder(dataset, data_dir=dir or None)
    except tfds.core.DatasetNotFoundError as error:
        hint = nearest(dataset, tfds.list_builders(with_community_datasets=False))
        raise DataError(f"{title}: not a TFDS data set.{hint}") from error
    except Exception as error:  # Builders raise errors of any class.
        raise DataError(f"{title}: TFDS cannot open it ({one_line(error)}).") from error
    command = (
        f"prepare it once with `pip install 'vit-jax[tf]'` and `python -c \"import "
        f"tensorflow_datasets as tfds; tfds.builder('{dataset}', data_dir={dir or None!r}, "
        f"file_format='array_record').download_and_prepare()\"`."
    )
    if not builder.data_path.exists():
        raise DataError(f"{title} is not under {builder.data_path}; {command}")
    return builder, command


def require_trusted_features(folder: pathlib.Path) -> None:
    """Raises ConfigError if a data set of TFDS under a folder has features that are not trusted.

    TFDS imports the classes that `features.json` names.
    """
    for file in folder.rglob("features.json"):
        try:
            names = _class_names(json.loads(file.read_bytes()))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: damaged ({one_line(error)}).") from error
        place = f"a feature of {file}"
        registry.require_trusted((place, ":".join(name.rsplit(".", 1))) for name in names)


def _class_names(feature) -> list[str]:
    """Returns the names of classes outside of TFDS in a feature of `features.json`."""
    names, items = [], feature if isinstance(feature, list) else []
    if isinstance(feature, dict):
        names, items = [feature.get(key) for key in CLASS_KEYS], feature.values()
    foreign = [n for n in names if isinstance(n, str) and not n.startswith("tensorflow_datasets.")]
    return foreign + [name for item in items for name in _class_names(item)]


def _check_split(split: str, known, title: str) -> None:
    if any(part.partition("[")[0] not in known for part in split.split("+")):
        raise DataError(f"{title} has splits {sorted(known)}, not {split!r}.")


def _keys(builder, title: str) -> tuple[str, str, tuple[str, ...], bool]:
    """Returns the keys of image and label, the class names, and if a label is a sequence."""
    import tensorflow_datasets as tfds

    image_key, label_key = builder.info.supervised_keys or ("image", "label")
    features = dict(builder.info.features)
    names = getattr(features.get(label_key), "names", None)  # Also of a sequence of labels.
    if names is None or image_key not in features:
        raise DataError(
            f"{title} has no image with a class label; its features are {sorted(features)}."
        )
    are_sets = isinstance(features[label_key], tfds.features.Sequence)
    return image_key, label_key, tuple(names), are_sets


def read_split(builder, split: str, title: str, command: str = "") -> Sequence[dict]:
    """Returns the records of a split or slice by index; images are not decoded."""
    import tensorflow_datasets as tfds

    images = [key for key, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]
    try:
        decoders = {key: tfds.decode.SkipDecoding() for key in images}
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:  # The file format has no random access.
        raise DataError(f"{title} cannot be read ({one_line(error)}); {command}") from error
    except Exception as error:  # A slice with a wrong syntax, or damaged files.
        name = title.partition("=")[2]
        raise DataError(
            f"data.split={split} of {name} cannot be read ({one_line(error)})."
        ) from error
