"""Signatures of the images whose near-duplicates are excluded from a data set."""

import dataclasses
import pathlib

from vit_jax.config.schema import Data
from vit_jax.data import manifest
from vit_jax.data.array_record import open_prepared, require_trusted_features
from vit_jax.data.listing import ImageFile
from vit_jax.errors import DataError
from vit_jax.prepare import duplicates, listing
from vit_jax.prepare.shards import decode_image

BATCH = 500  # Images per call.


@dataclasses.dataclass(frozen=True)
class FileBatch:
    """Function that returns the signatures of images in folders or tar files."""

    entries: list[ImageFile]

    def __call__(self) -> list[tuple[str, duplicates.Signature]]:
        return _signatures((entry.path, entry.read()) for entry in self.entries)


@dataclasses.dataclass(frozen=True)
class PreparedBatch:
    """Function that returns the signatures of a slice of a prepared data set."""

    dir: str
    split: str

    def __call__(self) -> list[tuple[str, duplicates.Signature]]:
        source = open_prepared(Data(dir=self.dir, val_fraction=0.0), self.split)
        return _signatures(
            (source.name(i), source.records[i][source.image_key]) for i in range(len(source))
        )


def _signatures(images) -> list[tuple[str, duplicates.Signature]]:
    """Returns names and signatures, without images that cannot be decoded."""
    signatures = []
    for name, data in images:
        try:
            signatures.append((name, duplicates.compute_signature(decode_image(data, name))))
        except DataError:
            continue
    return signatures


def signature_batches(where: str) -> list[FileBatch] | list[PreparedBatch]:
    """Returns functions that together compute all signatures of a folder, tar or prepared set."""
    folder = pathlib.Path(where)
    if manifest.read_info(folder) is None:
        entries, _ = listing.list_images(where)
        return [FileBatch(entries[i : i + BATCH]) for i in range(0, len(entries), BATCH)]
    import tensorflow_datasets as tfds

    require_trusted_features(folder)
    splits = tfds.builder_from_directory(where).info.splits
    return [
        PreparedBatch(where, f"{name}[{i}:{min(i + BATCH, info.num_examples)}]")
        for name, info in splits.items()
        for i in range(0, info.num_examples, BATCH)
    ]


def content_digest(where: str) -> str:
    """Returns a digest of the images of a folder, tar or prepared set.

    Raises DataError if there are no images.
    """
    about = manifest.read_info(pathlib.Path(where))
    if about is not None:
        return about["manifest"]
    entries, _ = listing.list_images(where)
    if not entries:
        raise DataError(f"--exclude={where} contains no images.")
    return listing.digest_rows((entry.path, entry.size) for entry in entries)
