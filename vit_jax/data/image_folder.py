"""A folder of class folders of image files."""

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np

from vit_jax.data.decode import SUFFIXES, Encoded, UnreadableImage
from vit_jax.errors import DataError, nearest


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files, still encoded."""

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


def open_folder(dir: str, split: str, val_fraction: float) -> FolderSource:
    """Class folders of images: `dir/<split>/<class>/...`, or `dir/<class>/...`.

    Without `dir/val`, 'train' and 'val' share the images of `dir/train` (or of `dir`),
    class by class, in the order of a checksum of the file's name: the same files fall to
    the same side on every machine. Classes are those of training, sorted.
    """
    root = pathlib.Path(dir)
    if not dir or not root.is_dir():
        raise DataError(f"data.dir={dir or '(empty)'}: no such folder.")
    # A class may be called `train`, too: a split holds folders, a class holds images.
    has_splits = any(
        (root / name).is_dir() and _class_folders(root / name) for name in ("train", "val", "test")
    )
    train_root = root / "train" if has_splits else root
    if not train_root.is_dir():
        if split == "train" or not (root / split).is_dir():
            raise DataError(f"{root}: it has folders of splits, but none for {split!r}.")
        train_root = root / split  # A folder that was made for evaluation only.
    classes = _class_folders(train_root)
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class folders"
        raise DataError(f"{train_root}: {found}; training needs at least two class folders.")
    for name in classes:
        if not any(_images(train_root, name)):
            raise DataError(f"{train_root / name}: no images ({', '.join(SUFFIXES)}) in it.")
    is_shared = split == "train" and not (root / "val").is_dir()
    if has_splits and (root / split).is_dir() and not is_shared:
        unknown = sorted(set(_class_folders(root / split)) - set(classes))
        if unknown:
            raise DataError(
                f"{root / split}: class {unknown[0]!r} is not among the {len(classes)} "
                f"classes of {train_root}.{nearest(unknown[0], classes)}"
            )
        return _folder_source(root / split, classes, _image_files(root / split, classes))
    if split not in ("train", "val"):
        raise DataError(f"{root}: no folder for split {split!r}.")
    found = _image_files(train_root, classes)
    files = {name: _split_by_checksum(paths, split, val_fraction) for name, paths in found.items()}
    return _folder_source(train_root, classes, files)


def _class_folders(root: pathlib.Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _image_files(root: pathlib.Path, classes: list[str]) -> dict[str, list[str]]:
    return {name: list(_images(root, name)) for name in classes}


def _images(root: pathlib.Path, title: str) -> Iterator[str]:
    """Image files of a class at any depth, relative to the root, in order."""
    for path in sorted((root / title).rglob("*")):
        name = path.relative_to(root)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in SUFFIXES and not is_hidden and path.is_file():
            yield str(name)


def _split_by_checksum(files: list[str], split: str, val_fraction: float) -> list[str]:
    """At least one file of a class on each side, as long as it has two."""
    ordered = sorted(files, key=lambda name: (zlib.crc32(os.fsencode(name)), name))
    cut = min(max(round(len(files) * val_fraction), 1), len(files) - 1) if val_fraction else 0
    return sorted(ordered[cut:] if split == "train" else ordered[:cut])


def _folder_source(root, classes, files: dict[str, list[str]]) -> FolderSource:
    labels = [k for k, name in enumerate(classes) for _ in files[name]]
    if not labels:
        raise DataError(f"{root}: no images ({', '.join(SUFFIXES)}) in its class folders.")
    flat = tuple(file for name in classes for file in files[name])
    return FolderSource(str(root), flat, np.array(labels), tuple(classes))
