"""Signatures of the images that a data set must not repeat."""

import dataclasses
import pathlib

from vit_jax.data import manifest
from vit_jax.data.array_record import open_prepared
from vit_jax.errors import DataError
from vit_jax.prepare import duplicates, listing
from vit_jax.prepare.shards import pixels

BATCH = 500  # Images in one piece of work.


@dataclasses.dataclass(frozen=True)
class FileBatch:
    """Images of folders or tar files."""

    entries: list[listing.Entry]

    def __call__(self) -> list[tuple[str, duplicates.Signature]]:
        return _signatures((entry.path, entry.read()) for entry in self.entries)


@dataclasses.dataclass(frozen=True)
class PreparedBatch:
    """Records of a set that `prepare` wrote."""

    dir: str
    split: str

    def __call__(self) -> list[tuple[str, duplicates.Signature]]:
        source = open_prepared(self.dir, self.split, val_fraction=0)
        return _signatures(
            (source.name(i), source.records[i][source.image_key]) for i in range(len(source))
        )


def _signatures(images) -> list[tuple[str, duplicates.Signature]]:
    """Names and signatures; what is no image has no duplicates."""
    found = []
    for name, data in images:
        try:
            found.append((name, duplicates.signature(pixels(data, name))))
        except DataError:
            continue
    return found


def batches(where: str) -> list[FileBatch] | list[PreparedBatch]:
    """The images of a folder, tar file or prepared set as pieces of work."""
    folder = pathlib.Path(where)
    if manifest.about(folder) is None:
        entries = listing.find_images(where)
        return [FileBatch(entries[i : i + BATCH]) for i in range(0, len(entries), BATCH)]
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(where).info.splits
    return [
        PreparedBatch(where, f"{name}[{i}:{min(i + BATCH, info.num_examples)}]")
        for name, info in splits.items()
        for i in range(0, info.num_examples, BATCH)
    ]


def digest(where: str) -> str:
    """What tells these images from others; raises DataError where there are none."""
    about = manifest.about(pathlib.Path(where))
    if about is not None:
        return about["manifest"]
    entries = listing.find_images(where)
    if not entries:
        raise DataError(f"--exclude={where}: no images in it.")
    return listing.digest((entry.path, entry.size) for entry in entries)
