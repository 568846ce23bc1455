"""Lists image files in folders and tar files, which have the same names in both."""

import dataclasses
import hashlib
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vit_jax.data.decode import SUFFIXES
from vit_jax.errors import DataError, nearest

TAR = ".tar"
SPLITS = ("train", "val", "test")


class ImageFile(NamedTuple):
    """An image file: a range of bytes in a file on disk."""

    path: str  # Relative to the source; a tar file counts as a folder.
    container: str  # File on disk: the image itself or a tar file.
    offset: int
    size: int

    def read(self) -> bytes:
        """Returns the bytes of the image; an OSError contains the path of the container."""
        with open(self.container, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclasses.dataclass(frozen=True)
class Listing:
    """Images of a data set with their splits and classes."""

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[ImageFile, int]]]  # Split: (image, label) pairs.
    outside: list[str]  # Paths of images outside class folders.

    def digest(self) -> str:
        """Returns the SHA-256 of all paths, sizes and class names."""
        rows = (
            (split, entry.path, entry.size, self.classes[label])
            for split, images in self.splits.items()
            for entry, label in images
        )
        return digest_rows(rows)


def digest_rows(rows: Iterable[tuple]) -> str:
    """Returns the SHA-256 of rows as Python literals, one row per line."""
    total = hashlib.sha256()
    for row in rows:
        total.update(f"{row}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def list_images(source: str) -> list[ImageFile]:
    """Returns all image files below a folder or in a tar file, ordered by path.

    Tar files may contain tar files, as those of ImageNet. Hidden files and folders are skipped.

    Raises:
      DataError: the source is neither a folder nor a tar file, or a tar file is damaged.
    """
    if os.path.isdir(source):
        entries = sorted(_images_in_folder(source, ()))
    elif os.path.isfile(source) and source.lower().endswith(TAR):
        entries = sorted(_strip_common_folder(list(_images_in_tar(source, 0, None, (), source))))
    elif os.path.isfile(source):
        raise DataError(
            f"{source} is neither a folder nor a .tar file; unpack other archives first "
            "(gunzip converts .tgz and .tar.gz to .tar)."
        )
    else:
        raise DataError(f"{source or '(empty)'}: this folder or .tar file does not exist.")
    for one, other in itertools.pairwise(entries):
        if one.path == other.path:
            raise DataError(f"{one.path} exists in both {one.container} and {other.container}.")
    return entries


def list_data_set(source: str) -> Listing:
    """Returns the images of a source with their splits and classes, as `image_folder` reads them.

    The source contains `train/`, `val/` or `test/` with class folders, or else class folders, all
    of which belong to the split 'train'.

    Raises:
      DataError: there are fewer than two classes, or a folder is unexpected.
    """
    images = list_images(source)
    folders = [image.path.split("/")[:-1] for image in images]
    has_splits = any(len(parts) >= 2 and parts[0] in SPLITS for parts in folders)
    depth = 1 if has_splits else 0
    outside = [image.path for image, parts in zip(images, folders) if len(parts) <= depth]
    named: dict[str, list[tuple[ImageFile, str]]] = {}
    for image, parts in zip(images, folders):
        if len(parts) > depth:
            split = parts[0] if has_splits else "train"
            named.setdefault(split, []).append((image, parts[depth]))
    for split in {path.split("/")[0] for path in outside if has_splits and "/" in path}:
        if split not in named:
            raise DataError(f"{source}: the images of {split} are not in class folders.")
    classes = _classes(source, named)
    labels = {title: label for label, title in enumerate(classes)}
    splits = {
        split: [(image, labels[title]) for image, title in named[split]] for split in sorted(named)
    }
    return Listing(classes, splits, outside)


def _classes(source: str, named: dict[str, list[tuple[ImageFile, str]]]) -> tuple[str, ...]:
    """Returns the sorted classes of training; raises DataError if a split has other classes."""
    titles_of = {split: {title for _, title in images} for split, images in named.items()}
    classes = sorted(
        titles_of["train"] if "train" in titles_of else set().union(*titles_of.values())
    )
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class folders with images"
        suffixes = ", ".join(SUFFIXES)
        raise DataError(f"{source}: found {found} ({suffixes}); expected at least two classes.")
    for split, titles in titles_of.items():
        for title in sorted(titles - set(classes)):
            raise DataError(
                f"{source}: class {title!r} of {split} is not among the {len(classes)} classes "
                f"of train.{nearest(title, classes)}"
            )
    for title in classes:
        if not title.isprintable() or title != title.strip():
            raise DataError(
                f"{source}: class name {title!r} has unprintable characters, or spaces at its "
                "start or end; rename the folder."
            )
    return tuple(classes)


def _images_in_folder(folder: str, above: tuple[str, ...]) -> Iterator[ImageFile]:
    with os.scandir(folder) as items:
        for item in items:
            if item.name.startswith("."):
                continue
            if item.is_dir():
                yield from _images_in_folder(item.path, (*above, item.name))
            elif item.is_file() and item.name.lower().endswith(SUFFIXES):
                path = "/".join((*above, item.name))
                yield ImageFile(path, item.path, 0, item.stat().st_size)
            elif item.is_file() and item.name.lower().endswith(TAR):
                inner = (*above, item.name[: -len(TAR)])
                yield from _images_in_tar(item.path, 0, None, inner, item.path)


class _FileSlice:
    """A range of bytes of an open file as a file: a tar file inside a tar file."""

    def __init__(self, file, start: int, size: int):
        self._file, self._start, self._size, self._position = file, start, size, 0

    def seek(self, position: int) -> None:
        self._position = position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        self._file.seek(self._start + self._position)
        data = self._file.read(max(0, min(size, self._size - self._position)))
        self._position += len(data)
        return data


def _images_in_tar(
    container: str, start: int, size: int | None, above: tuple[str, ...], name: str
) -> Iterator[ImageFile]:
    """Yields the images of a tar file.

    Args:
      container: path of the file on disk.
      start: first byte of the tar file in the container.
      size: bytes of the tar file; None for the rest of the container.
      above: names of the folders that the tar file counts as.
      name: name of the tar file in errors.
    """
    with open(container, "rb") as file:
        part = _FileSlice(file, start, os.path.getsize(container) - start if size is None else size)
        try:
            with tarfile.TarFile(fileobj=part) as tar:
                # `tar.members` is cleared: a list of a million members takes gigabytes.
                while (member := tar.next()) is not None:
                    tar.members.clear()
                    yield from _images_in_member(member, container, start, above, name)
                part.seek(tar.offset)  # Python treats a damaged header as the end of the tar file.
                if any(part.read(tarfile.BLOCKSIZE)):
                    raise DataError(f"{name}: damaged tar file (at byte {tar.offset:,}).")
        except tarfile.TarError as error:
            raise DataError(f"{name}: damaged tar file ({error}).") from error


def _images_in_member(member, container, start, above, name) -> Iterator[ImageFile]:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    is_regular = member.isreg() and not member.issparse()
    if not is_regular or not parts or any(part.startswith(".") for part in parts):
        return
    offset = start + member.offset_data
    if parts[-1].lower().endswith(SUFFIXES):
        yield ImageFile("/".join((*above, *parts)), container, offset, member.size)
    elif parts[-1].lower().endswith(TAR):
        inner = (*above, *parts[:-1], parts[-1][: -len(TAR)])
        yield from _images_in_tar(container, offset, member.size, inner, f"{name}/{member.name}")


def _strip_common_folder(entries: list[ImageFile]) -> list[ImageFile]:
    """Removes a folder that contains everything, as in many tar files, from the paths."""
    tops = {entry.path.partition("/")[0] for entry in entries}
    while len(tops) == 1 and not tops & set(SPLITS) and all("/" in e.path for e in entries):
        entries = [entry._replace(path=entry.path.partition("/")[2]) for entry in entries]
        tops = {entry.path.partition("/")[0] for entry in entries}
    return entries
