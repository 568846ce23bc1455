"""Folders of class folders of image files."""

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data.decode import SUFFIXES, Encoded, UnreadableImage
from vit_jax.errors import DataError, nearest


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files under a folder, not decoded (a `Source`)."""

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
            raise UnreadableImage(f"{path}: unreadable image ({error.strerror}).") from error
        return {"image": Encoded(data, str(path)), "label": int(self.labels[index])}

    def fingerprint(self) -> int:
        names = "\0".join(self.files).encode(errors="surrogateescape")
        return zlib.crc32(self.labels.tobytes(), zlib.crc32(names))

    def name(self, index: int) -> str:
        return self.files[index]


def open_folder(data: Data, split: str) -> FolderSource:
    """Opens class folders of images: `data.dir/<split>/<class>/...`, or `data.dir/<class>/...`.

    Without a folder `val`, the splits 'train' and 'val' share the images of the folder `train`
    (or of `data.dir`): `data.val_fraction` of each class is 'val'. Classes are the class folders
    of training, sorted by name.
    """
    root = pathlib.Path(data.dir)
    if not data.dir or not root.is_dir():
        raise DataError(f"data.dir={data.dir or '(empty)'}: no such folder.")
    # A class may have the name `train`: the folder of a split has folders, that of a class images.
    has_splits = any(
        (root / name).is_dir() and _class_folders(root / name) for name in ("train", "val", "test")
    )
    train_root = root / "train" if has_splits else root
    if not train_root.is_dir():
        if split == "train" or not (root / split).is_dir():
            raise DataError(f"{root}: no folder for split {split!r}.")
        train_root = root / split  # A folder for evaluation only.
    classes = _class_folders(train_root)
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class folders"
        raise DataError(f"{train_root}: {found}; expected at least two class folders.")
    for name in classes:
        if not any(_images(train_root, name)):
            raise DataError(f"{train_root / name}: no images ({', '.join(SUFFIXES)}).")
    is_shared = split == "train" and not (root / "val").is_dir()
    if has_splits and (root / split).is_dir() and not is_shared:
        unknown = sorted(set(_class_folders(root / split)) - set(classes))
        if unknown:
            raise DataError(
                f"{root / split}: class {unknown[0]!r} is not among the {len(classes)} "
                f"classes of {train_root}.{nearest(unknown[0], classes)}"
            )
        return folder_source(root / split, _image_files(root / split, classes))
    if split not in ("train", "val"):
        raise DataError(f"{root}: no folder for split {split!r}.")
    files = _image_files(train_root, classes)
    return folder_source(train_root, share_files(files, split, data.val_fraction))


def _class_folders(root: pathlib.Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _image_files(root: pathlib.Path, classes: list[str]) -> dict[str, list[str]]:
    return {name: list(_images(root, name)) for name in classes}


def _images(root: pathlib.Path, title: str) -> Iterator[str]:
    """Yields the image files of a class at any depth, relative to the root, in order."""
    for path in sorted((root / title).rglob("*")):
        name = path.relative_to(root)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in SUFFIXES and not is_hidden and path.is_file():
            yield str(name)


def share_files(
    files: dict[str, list[str]], split: str, val_fraction: float
) -> dict[str, list[str]]:
    """Returns the files of each class that belong to 'train' or to 'val'.

    A checksum of the file's name decides, so that it is the same on every machine. With a
    `val_fraction` above 0, a class of two or more files has at least one in each split.
    """
    return {name: _share(names, split, val_fraction) for name, names in files.items()}


def _share(files: list[str], split: str, val_fraction: float) -> list[str]:
    ordered = sorted(files, key=lambda name: (zlib.crc32(os.fsencode(name)), name))
    cut = min(max(round(len(files) * val_fraction), 1), len(files) - 1) if val_fraction else 0
    return sorted(ordered[cut:] if split == "train" else ordered[:cut])


def folder_source(root: pathlib.Path, files: dict[str, list[str]]) -> FolderSource:
    """Returns the source of the files of each class; raises DataError if there are none."""
    labels = [k for k, names in enumerate(files.values()) for _ in names]
    if not labels:
        raise DataError(f"{root}: no images ({', '.join(SUFFIXES)}) in its class folders.")
    flat = tuple(name for names in files.values() for name in names)
    return FolderSource(str(root), flat, np.array(labels), tuple(files))
