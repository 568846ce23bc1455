"""Writes the ArrayRecord shards and metadata of a data set that TFDS reads without TensorFlow."""

import dataclasses
import functools
import hashlib
import pathlib

import numpy as np

from vit_jax.atomic_io import to_json, write_atomically
from vit_jax.config.schema import Data
from vit_jax.data import decode, record_files
from vit_jax.data.listing import ImageFile
from vit_jax.errors import DataError
from vit_jax.prepare import duplicates

NAME, VERSION = "images", "1.0.0"  # Name and version of the TFDS data set.
DATA, PARTS, EXCLUDED = "data", "parts", "excluded.npz"  # In DESTINATION.partial.
DESCRIPTION = "Images of class folders, encoded as they were, in an order drawn by their names."


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard of a split, and the images that it contains."""

    folder: pathlib.Path  # DESTINATION.partial.
    split: str
    index: int
    num_shards: int
    images: list[tuple[ImageFile, int, str]]  # Image, label and class name.
    max_megapixels: float  # Larger images are left out.

    @property
    def part(self) -> pathlib.Path:
        """Path of the shard's part of the manifest; it exists once the shard is finished."""
        return self.folder / PARTS / f"{self.split}-{self.index:05}-of-{self.num_shards:05}.jsonl"

    def write(self) -> int:
        """Writes the shard and its part of the manifest, each atomically.

        Images that cannot be decoded and near-duplicates of excluded images are left out.

        Returns:
          The number of images, including those left out.
        """
        index = _load_excluded(self.folder / EXCLUDED)
        path = self.folder / DATA / _file_name(self.split, self.index, self.num_shards)
        with record_files.write_atomically(path) as write:
            records = []
            for image, label, title in self.images:
                record = {"path": image.path, "split": self.split, "class": title, "label": label}
                properties, data = _examine(image, index, self.max_megapixels)
                records.append(record | properties)
                if "reason" not in properties:
                    write(_serialize(data, label))
        write_atomically(self.part, "".join(to_json(record) + "\n" for record in records))
        return len(records)


def _examine(
    file: ImageFile, index: duplicates.SignatureIndex | None, max_megapixels: float
) -> tuple[dict, bytes]:
    """Returns the manifest fields of an image, with a `reason` if it is left out, and its bytes."""
    try:
        data = file.read()
    except OSError as error:
        return {"kind": "damaged", "reason": f"unreadable image ({error.strerror})"}, b""
    record = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        image = decode_image(data, file.path, max_megapixels)
    except DataError as error:
        reason = str(error).removeprefix(f"{file.path}: ").removesuffix(".")
        return record | {"kind": "damaged", "reason": reason}, data
    record |= {"width": image.shape[1], "height": image.shape[0]}
    original = index.find_duplicate(image) if index is not None else None
    if original is not None:
        record |= {"kind": "duplicate", "reason": f"near-duplicate of {original}"}
    return record, data


def decode_image(data: bytes, name: str, max_megapixels: float = Data.max_megapixels) -> np.ndarray:
    """Returns an image as H W 3 uint8; raises DataError if it cannot be decoded."""
    return decode.decode(decode.Encoded(data, name), max_megapixels=max_megapixels)


@functools.lru_cache(maxsize=1)
def _load_excluded(path: pathlib.Path) -> duplicates.SignatureIndex | None:
    return duplicates.load_index(path) if path.exists() else None


def _serialize(data: bytes, label: int) -> bytes:
    example = _serializer().get_tf_example({"image": data, "label": label})
    return example.SerializeToString(deterministic=True)


@functools.cache
def _serializer():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),  # The number matters to readers only.
    }
    return ExampleSerializer(tfds.features.FeaturesDict(features).get_serialized_info())


def _file_name(split: str, index: int, num_shards: int) -> str:
    return f"{NAME}-{split}.array_record-{index:05}-of-{num_shards:05}"


def write_info(
    folder: pathlib.Path, classes: tuple[str, ...], splits: dict[str, tuple[list[int], int]]
) -> None:
    """Writes `features.json` and `dataset_info.json`, so that TFDS can read the folder.

    Args:
      folder: folder of the data set.
      classes: names of the classes.
      splits: {split: (number of records in each shard, bytes of all images)}.
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
