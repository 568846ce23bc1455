"""Image files in folders and in tar files, named alike wherever they lie."""

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


class Entry(NamedTuple):
    """An image file: a stretch of bytes of a file on disk."""

    path: str  # From the source on; a tar file counts as a folder of its name.
    container: str  # The file on disk: the image itself, or a tar.
    offset: int
    size: int

    def read(self) -> bytes:
        """Raises OSError, naming the container."""
        with open(self.container, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a data set by split, with what their folders call them."""

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[Entry, int]]]  # With labels.
    outside: list[str]  # Paths of images in no class folder.

    def digest(self) -> str:
        """SHA-256 of every path, size and label."""
        rows = (
            (split, entry.path, entry.size, self.classes[label])
            for split, images in self.splits.items()
            for entry, label in images
        )
        return digest(rows)


def digest(rows: Iterable[tuple]) -> str:
    """SHA-256 over the Python literals of some rows, a row a line."""
    total = hashlib.sha256()
    for row in rows:
        total.update(f"{row}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def find_images(source: str) -> list[Entry]:
    """Every image file below a folder or in a tar file, ordered by path.

    Tar files may hold tar files, as ImageNet's do. Hidden files and folders are passed over.
    Raises DataError where the source is neither, or a tar is damaged.
    """
    if os.path.isdir(source):
        entries = sorted(_in_folder(source, ()))
    elif os.path.isfile(source) and source.lower().endswith(TAR):
        entries = sorted(_unwrapped(list(_in_tar(source, 0, None, (), source))))
    elif os.path.isfile(source):
        raise DataError(
            f"{source}: neither a folder nor a .tar file; unpack archives of other kinds "
            "(of .tgz and .tar.gz, gunzip makes a .tar)."
        )
    else:
        raise DataError(f"{source or '(empty)'}: no such folder or .tar file.")
    for one, other in itertools.pairwise(entries):
        if one.path == other.path:
            raise DataError(f"{one.path} is in {one.container} and in {other.container} as well.")
    return entries


def list_data_set(source: str) -> Listing:
    """The images of class folders, as `folder.open_folder` would call them.

    Below `train/`, `val/` or `test/` lie class folders, or the source's folders are the classes
    and all is 'train'. Raises DataError where no two classes can be made out.
    """
    entries = find_images(source)
    folders = [entry.path.split("/")[:-1] for entry in entries]
    has_splits = any(len(parts) >= 2 and parts[0] in SPLITS for parts in folders)
    depth = 1 if has_splits else 0
    outside = [e.path for e, parts in zip(entries, folders) if len(parts) <= depth]
    named: dict[str, list[tuple[Entry, str]]] = {}
    for entry, parts in zip(entries, folders):
        if len(parts) > depth:
            split = parts[0] if has_splits else "train"
            named.setdefault(split, []).append((entry, parts[depth]))
    for split in {path.split("/")[0] for path in outside if has_splits and "/" in path}:
        if split not in named:
            raise DataError(f"{source}: images of {split} lie in no class folders.")
    classes = _classes(source, named)
    label = {title: k for k, title in enumerate(classes)}
    splits = {
        split: [(entry, label[title]) for entry, title in named[split]] for split in sorted(named)
    }
    return Listing(classes, splits, outside)


def _classes(source: str, named: dict[str, list[tuple[Entry, str]]]) -> tuple[str, ...]:
    """Those of training, sorted; all others' must be among them."""
    found = {split: {title for _, title in images} for split, images in named.items()}
    classes = sorted(found["train"] if "train" in found else set().union(*found.values()))
    if len(classes) < 2:
        what = f"only the class {classes[0]!r}" if classes else "no class folders with images"
        suffixes = ", ".join(SUFFIXES)
        raise DataError(f"{source}: {what} ({suffixes}); a data set has at least two.")
    for split, titles in found.items():
        for title in sorted(titles - set(classes)):
            raise DataError(
                f"{source}: class {title!r} of {split} is not among the {len(classes)} classes "
                f"of train.{nearest(title, classes)}"
            )
    for title in classes:
        if not title.isprintable() or title != title.strip():
            raise DataError(f"{source}: {title!r} is no name for a class; rename the folder.")
    return tuple(classes)


def _in_folder(folder: str, above: tuple[str, ...]) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        for item in found:
            if item.name.startswith("."):
                continue
            if item.is_dir():
                yield from _in_folder(item.path, (*above, item.name))
            elif item.is_file() and item.name.lower().endswith(SUFFIXES):
                path = "/".join((*above, item.name))
                yield Entry(path, item.path, 0, item.stat().st_size)
            elif item.is_file() and item.name.lower().endswith(TAR):
                yield from _in_tar(item.path, 0, None, (*above, item.name[: -len(TAR)]), item.path)


class _Part:
    """A stretch of an open file as a file of its own: a tar within a tar."""

    def __init__(self, file, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def seek(self, position: int) -> None:
        self._at = position

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(size, self._size - self._at)))
        self._at += len(data)
        return data


def _in_tar(
    container: str, start: int, size: int | None, above: tuple[str, ...], name: str
) -> Iterator[Entry]:
    """Images of the tar that begins at byte `start` of a file; `name` is for messages."""
    with open(container, "rb") as file:
        part = _Part(file, start, os.path.getsize(container) - start if size is None else size)
        try:
            with tarfile.TarFile(fileobj=part) as tar:
                # One at a time: a tar's own list of a million members takes gigabytes.
                while (member := tar.next()) is not None:
                    tar.members.clear()
                    yield from _of_member(member, container, start, above, name)
                part.seek(tar.offset)  # Python takes a damaged header for the end of the tar.
                if any(part.read(tarfile.BLOCKSIZE)):
                    raise DataError(f"{name}: damaged tar file (at byte {tar.offset:,}).")
        except tarfile.TarError as error:
            raise DataError(f"{name}: damaged tar file ({error}).") from error


def _of_member(member, container, start, above, name) -> Iterator[Entry]:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    is_plain = member.isreg() and not member.issparse()
    if not is_plain or not parts or any(part.startswith(".") for part in parts):
        return
    place = start + member.offset_data
    if parts[-1].lower().endswith(SUFFIXES):
        yield Entry("/".join((*above, *parts)), container, place, member.size)
    elif parts[-1].lower().endswith(TAR):
        inner = (*above, *parts[:-1], parts[-1][: -len(TAR)])
        yield from _in_tar(container, place, member.size, inner, f"{name}/{member.name}")


def _unwrapped(entries: list[Entry]) -> list[Entry]:
    """Without the one folder that many tar files have around everything."""
    tops = {entry.path.partition("/")[0] for entry in entries}
    while len(tops) == 1 and not tops & set(SPLITS) and all("/" in e.path for e in entries):
        entries = [entry._replace(path=entry.path.partition("/")[2]) for entry in entries]
        tops = {entry.path.partition("/")[0] for entry in entries}
    return entries
