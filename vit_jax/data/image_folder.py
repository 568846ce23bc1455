"""Folders of class folders of image files."""

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data import class_folders, manifest
from vit_jax.data.decode import Encoded, UnreadableImage
from vit_jax.data.listing import Listing, describe_missing
from vit_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files under a folder, not decoded (a `Source`)."""

    root: str
    files: tuple[str, ...]  # Relative to the root.
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: dict[str, int] = dataclasses.field(default_factory=dict)  # Images of all splits.
    notes: tuple[str, ...] = ()  # Lines for the start of a run.

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        path = pathlib.Path(self.root, self.files[index])
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UnreadableImage(f"{path}: unreadable image ({error.strerror}).") from error
        return {"image": Encoded(data, str(path)), "label": int(self.labels[index])}

    def fingerprint(self) -> int:
        names = "\0".join(self.files).encode(errors="surrogateescape")
        return zlib.crc32(self.labels.tobytes(), zlib.crc32(names))

    def name(self, index: int) -> str:
        return self.files[index]


def open_folder(data: Data, split: str) -> FolderSource:
    """Opens class folders of images: `data.dir/<split>/<class>/...`, or `data.dir/<class>/...`.

    Without a folder of the split 'val', the splits 'train' and 'val' share the images of 'train':
    `data.val_fraction` of each class is 'val', all of it if that is 1 and there are no other
    splits. Classes are the class folders of training, sorted by name. The folder of a split may
    have any of its usual names (`class_folders.split_name`).
    """
    _check_folder(data.dir)
    listing = Listing(data.dir)
    paths = (image.path for image in listing.images())
    folders = class_folders.arrange(listing, paths, path_of=str)
    name = class_folders.find_split(split, folders.images)
    holds_out = class_folders.holds_out(split, folders.images, data.val_fraction)
    name = "train" if holds_out else name
    if name not in folders.images:
        raise DataError(
            f"{data.dir}: no folder for split {split!r}; found {', '.join(folders.images)}."
        )
    classes, where = folders.classes_for(name), folders.path(name)
    above = len(folders.folders[name]) + 1 if folders.has_splits else 0
    files = {title: _sorted_paths(folders.images[name].get(title, ()), above) for title in classes}
    if holds_out:
        files = share_files(files, split, data.val_fraction)
        if not any(files.values()):
            raise DataError(
                f"{where}: no class has enough images to hold one out for {split!r}; add images, "
                "or set data.val_split='' to train without a score."
            )
    if not any(files.values()):
        raise DataError(f"{where}: {folders.no_images(name)}")
    sizes = {each: sum(map(len, classes.values())) for each, classes in folders.images.items()}
    notes = class_folders.held_out_notes(split, data.val_fraction) if holds_out else ()
    notes += _notes(folders, split, files)
    return dataclasses.replace(folder_source(where, files), splits=sizes, notes=notes)


def _sorted_paths(paths: Iterable[str], above: int) -> list[str]:
    """Returns the paths without the first `above` characters, ordered folder by folder."""
    return sorted((path[above:] for path in paths), key=lambda path: path.split("/"))


def _notes(
    folders: class_folders.ClassFolders, split: str, files: dict[str, list[str]]
) -> tuple[str, ...]:
    """Returns lines about classes that a split does not have, and about skipped files."""
    lines = []
    empty = [title for title, names in files.items() if not names]
    if empty:
        count = f"{len(empty):,} of {len(files):,} classes"
        lines.append(f"data: {split} has no image of {count}, such as {empty[0]}")
    if skipped := folders.skipped.describe():
        lines.append(f"data: skipped {skipped}")
    return tuple(lines)


def _check_folder(folder: str) -> None:
    """Raises DataError if `data.dir` is not a folder that may contain class folders."""
    if not os.path.isdir(folder):
        raise DataError(f"data.dir={folder or '(empty)'}: {describe_missing(folder)}.")
    check_not_prepared(folder)


def check_not_prepared(folder: str) -> None:
    """Raises DataError for a folder that `prepare` wrote."""
    if manifest.read_info(pathlib.Path(folder)) is not None:
        raise DataError(
            f"data.dir={folder}: `prepare` wrote this folder; set data.source=prepared."
        )


def share_files(
    files: dict[str, list[str]], split: str, val_fraction: float
) -> dict[str, list[str]]:
    """Returns the files of each class that belong to 'train' or to 'val'.

    With a `val_fraction` between 0 and 1, a class of two or more files has at least one in each
    split.
    """
    return {name: share(names, split, val_fraction) for name, names in files.items()}


def share(files: list, split: str, val_fraction: float, path_of: Callable = str) -> list:
    """Returns the files that belong to 'train' or to 'val', sorted.

    A checksum of the path decides, so that it is the same on every machine.

    Args:
      path_of: returns the path of a file.
    """
    ordered = sorted(files, key=lambda file: (zlib.crc32(os.fsencode(path_of(file))), file))
    if val_fraction in (0, 1):
        cut = len(files) * int(val_fraction)
    else:
        cut = min(max(round(len(files) * val_fraction), 1), len(files) - 1)
    return sorted(ordered[cut:] if split == "train" else ordered[:cut])


def folder_source(root: str, files: dict[str, list[str]]) -> FolderSource:
    """Returns the source of the files of each class."""
    labels = [k for k, names in enumerate(files.values()) for _ in names]
    flat = tuple(name for names in files.values() for name in names)
    return FolderSource(root, flat, np.array(labels), tuple(files))
