"""Encoded images -> the files of a data set that TFDS reads without TensorFlow."""

import dataclasses
import functools
import hashlib
import json
import pathlib

import numpy as np

from vit_jax.atomic_io import write_atomically
from vit_jax.data import decode
from vit_jax.data import record_files as records_lib
from vit_jax.errors import DataError
from vit_jax.prepare import duplicates
from vit_jax.prepare.listing import Entry

NAME, VERSION = "images", "1.0.0"  # Of the data set, in TFDS's words.
DATA, PARTS, EXCLUDED = "data", "parts", "excluded.npz"  # In the folder of unfinished work.
DESCRIPTION = "Images of class folders, encoded as they were, in an order drawn by their names."


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to be, and the images that belong in it, with labels and titles of classes."""

    folder: pathlib.Path  # Of unfinished work.
    split: str
    index: int
    num_shards: int
    images: list[tuple[Entry, int, str]]

    @property
    def part(self) -> pathlib.Path:
        """What the manifest says of its images; where this file is, the shard is finished."""
        return self.folder / PARTS / f"{self.split}-{self.index:05}-of-{self.num_shards:05}.jsonl"

    def write(self) -> int:
        """Writes the shard and its part of the manifest, each whole or not at all.

        Returns how many images it has looked at. Left out are those that cannot be decoded, and
        near-duplicates of excluded ones.
        """
        index = _excluded(self.folder / EXCLUDED)
        path = self.folder / DATA / _file_name(self.split, self.index, self.num_shards)
        with records_lib.whole_file(path) as write:
            records = []
            for entry, label, title in self.images:
                known = {"path": entry.path, "split": self.split, "class": title}
                record, data = _examine(entry, index)
                records.append(known | {"label": label} | record)
                if "reason" not in record:
                    write(_serialized(data, label))
        write_atomically(self.part, "".join(json.dumps(record) + "\n" for record in records))
        return len(records)


def _examine(entry: Entry, index: duplicates.Index | None) -> tuple[dict, bytes]:
    """What there is to say of an image, with a reason if it is to be left out."""
    try:
        data = entry.read()
    except OSError as error:
        return {"kind": "damaged", "reason": f"unreadable image ({error.strerror})"}, b""
    record = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        image = pixels(data, entry.path)
    except DataError as error:
        reason = str(error).removeprefix(f"{entry.path}: ").removesuffix(".")
        return record | {"kind": "damaged", "reason": reason}, data
    record |= {"width": image.shape[1], "height": image.shape[0]}
    found = index.find(image) if index is not None else None
    if found is not None:
        record |= {"kind": "duplicate", "reason": f"near-duplicate of {found}"}
    return record, data


def pixels(data: bytes, name: str) -> np.ndarray:
    """H W 3 uint8; raises DataError as every reader of these bytes would."""
    return decode.decode(decode.Encoded(data, name))


@functools.lru_cache(maxsize=1)
def _excluded(path: pathlib.Path) -> duplicates.Index | None:
    return duplicates.load_index(path) if path.exists() else None


def _serialized(data: bytes, label: int) -> bytes:
    example = _serializer().get_tf_example({"image": data, "label": label})
    return example.SerializeToString(deterministic=True)


@functools.cache
def _serializer():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),  # How many matters to readers only.
    }
    return ExampleSerializer(tfds.features.FeaturesDict(features).get_serialized_info())


def _file_name(split: str, index: int, num_shards: int) -> str:
    return f"{NAME}-{split}.array_record-{index:05}-of-{num_shards:05}"


def write_info(
    folder: pathlib.Path, classes: tuple[str, ...], splits: dict[str, tuple[list[int], int]]
) -> None:
    """Writes `features.json` and `dataset_info.json`, which make TFDS know the folder.

    Args:
      splits: of each split, how many records each shard has, and the bytes of the images.
    """
    import tensorflow_datasets as tfds

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=""
    )
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=classes),
    }
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
        description=DESCRIPTION,
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, filetype_suffix="array_record"
    )
    info.set_file_format("array_record")
    info.set_splits(
        tfds.core.splits.SplitDict(
            tfds.core.SplitInfo(
                name=name, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
            for name, (lengths, size) in splits.items()
        )
    )
    info.write_to_directory(folder)
