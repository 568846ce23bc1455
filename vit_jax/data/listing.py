"""Lists image files in folders and tar files, which have the same names in both."""

import collections
import dataclasses
import errno
import os
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from vit_jax.data import file_kind
from vit_jax.errors import DataError

TAR = ".tar"
MAX_NESTED = 8  # Tar files inside tar files; those of ImageNet have a depth of 2.
SYSTEM_FOLDERS = {  # Hold copies of images that are not part of a data set.
    "__MACOSX",
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
}
# Reasons for which a file is skipped.
HIDDEN = "hidden"
OTHER_FORMAT = "not JPEG, PNG or WebP"
ARCHIVE = "archive, which `prepare` reads if it is a .tar"
OTHER_ARCHIVE = "archive; decompress it to a .tar, or unpack it"
NO_IMAGE = "no image suffix"
MISSING_TARGET = "link to a missing file"
LOOP = "link to a folder above it or to itself"
LINK_IN_TAR = "link in a tar file"
SPECIAL = "not a regular file"
OUTSIDE = "outside class folders"
MAX_SUFFIXES = 5  # Listed per reason.


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


class Skipped:
    """Counts of the files that are not read, by suffix and reason."""

    def __init__(self):
        self._counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self._examples: dict[str, str] = {}  # Reason -> the first path.

    def add(self, path: str, reason: str) -> None:
        self._counts[os.path.dirname(path), suffix_of(path), reason] += 1
        self._examples[reason] = min(path, self._examples.get(reason, path))

    def remove_prefix(self, prefix: str) -> None:
        """Removes the start of all paths below a folder."""
        old, self._counts = self._counts, collections.Counter()
        for (place, suffix, reason), count in old.items():
            self._counts[f"{place}/".removeprefix(prefix).removesuffix("/"), suffix, reason] += (
                count
            )

    def describe(self, folder: str = "") -> str:
        """Returns counts, such as '3 .bmp, 1 .tif (not JPEG, PNG or WebP)'; '' if there are none.

        Args:
          folder: describes the files below this folder only, and without examples.
        """
        by_reason: dict[str, collections.Counter[str]] = {}
        for (place, suffix, reason), count in sorted(self._counts.items()):
            if not folder or f"{place}/".startswith(f"{folder}/"):
                by_reason.setdefault(reason, collections.Counter())[suffix] += count
        parts = []
        for reason, counts in by_reason.items():
            listed = counts.most_common(MAX_SUFFIXES)
            kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in listed)
            rest = counts.total() - sum(count for _, count in listed)
            more = f", {rest:,} with other suffixes" if rest else ""
            example = "" if folder else f", such as {self._examples[reason]}"
            parts.append(f"{kinds}{more} ({reason}{example})")
        return "; ".join(parts)


def suffix_of(path: str) -> str:
    """Returns the suffix in lower case, or 'without suffix'."""
    return os.path.splitext(os.path.basename(path))[1].lower() or "without suffix"


def describe_missing(path: str, expected: str = "folder") -> str:
    """Returns the error of a missing path: the target of a link, and what a path starts from."""
    is_relative = path and not os.path.isabs(path)
    start = f" in {os.getcwd()}, the current folder" if is_relative else ""
    link = f" (a link to {os.readlink(path)})" if os.path.islink(path) else ""
    return f"no such {expected}{start}{link}"


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


@dataclasses.dataclass
class Listing:
    """A walk through a folder or a tar file; `images` fills `skipped` and `folders`.

    Attributes:
      source: path of a folder; with `reads_tar` also of a tar file.
      reads_tar: tar files count as folders.
      reads_sizes: image files have their size; else 0.
      skipped: files that are not images, or cannot be read.
      folders: paths of all folders, also of those without images; '' for the source itself.
      broken_links: paths of links to missing files or folders, without an image suffix.
    """

    source: str
    reads_tar: bool = False
    reads_sizes: bool = False
    skipped: Skipped = dataclasses.field(default_factory=Skipped)
    folders: set[str] = dataclasses.field(default_factory=set)
    broken_links: list[str] = dataclasses.field(default_factory=list)

    def images(self) -> Iterator[ImageFile]:
        """Yields the image files in any order.

        Hidden files and folders are skipped. Links are followed, except to a folder above them.

        Raises DataError for a source that is missing, and for a folder that cannot be read.
        """
        if not os.path.isdir(self.source) and self.reads_tar and os.path.isfile(self.source):
            if suffix_of(self.source) != TAR:
                raise DataError(
                    f"{self.source} is neither a folder nor a .tar file; unpack other archives "
                    "first (gunzip converts .tgz and .tar.gz to .tar)."
                )
            return self._in_tar(self.source, 0, None, "", self.source)
        return self._in_folder()

    def named(self, path: str, container: str) -> Iterator[ImageFile]:
        """Yields the image, or the images of the tar file, that a list of files names.

        Args:
          path: path in the list.
          container: path on disk.
        """
        kind = self._kind_of_file(path)
        if kind == "image":
            yield ImageFile(path, container, 0, 0)
        elif kind == "tar":
            yield from self._in_tar(container, 0, None, f"{path[: -len(TAR)]}/", container)

    def remove_prefix(self, prefix: str) -> None:
        """Removes the start of all paths: a folder that contains everything."""
        self.skipped.remove_prefix(prefix)
        self.folders = {
            folder.removeprefix(prefix) for folder in self.folders if folder.startswith(prefix)
        }

    def _in_folder(self) -> Iterator[ImageFile]:
        todo: list[tuple[str, str, tuple]] = [(self.source, "", ())]
        while todo:
            folder, above, ancestors = todo.pop()
            try:
                status = os.stat(folder)
                with os.scandir(folder) as scan:
                    entries = list(scan)
            except OSError as error:
                raise DataError(f"{folder}: cannot be read ({error.strerror}).") from error
            identity = status.st_dev, status.st_ino
            if identity in ancestors:
                self.skipped.add(above.removesuffix("/"), LOOP)
                continue
            self.folders.add(above.removesuffix("/"))
            for entry in entries:
                path = f"{above}{entry.name}"
                kind = self._kind_of_entry(entry, path)
                if kind == "folder":
                    todo.append((entry.path, f"{path}/", (*ancestors, identity)))
                elif kind == "image":
                    size = entry.stat().st_size if self.reads_sizes else 0
                    yield ImageFile(path, entry.path, 0, size)
                elif kind == "tar":
                    inner = f"{path[: -len(TAR)]}/"
                    yield from self._in_tar(entry.path, 0, None, inner, entry.path)

    def _kind_of_entry(self, entry: os.DirEntry, path: str) -> str | None:
        """Returns 'folder', 'image' or 'tar'; counts anything else as skipped."""
        try:
            if is_hidden(entry.name):
                self.skipped.add(path, HIDDEN)
            elif entry.is_dir():
                return "folder"
            elif entry.is_file():
                return self._kind_of_file(path)
            elif entry.is_symlink():
                self.skipped.add(path, MISSING_TARGET)
                self._add_broken_link(path)
            else:
                self.skipped.add(path, SPECIAL)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise DataError(f"{entry.path}: cannot be read ({error.strerror}).") from error
            self.skipped.add(path, LOOP)
            self._add_broken_link(path)
        return None

    def _add_broken_link(self, path: str) -> None:
        if suffix_of(path) not in (*file_kind.SUFFIXES, *file_kind.OTHER_IMAGES):
            self.broken_links.append(path)

    def _kind_of_file(self, path: str) -> str | None:
        suffix = suffix_of(path)
        if suffix in file_kind.SUFFIXES:
            return "image"
        if suffix == TAR and self.reads_tar:
            return "tar"
        archive = OTHER_ARCHIVE if self.reads_tar else ARCHIVE
        reason = archive if suffix in file_kind.ARCHIVES else NO_IMAGE
        self.skipped.add(path, OTHER_FORMAT if suffix in file_kind.OTHER_IMAGES else reason)
        return None

    def _in_tar(
        self, container: str, start: int, size: int | None, above: str, name: str, depth: int = 1
    ) -> Iterator[ImageFile]:
        """Yields the images of a tar file.

        Args:
          container: path of the file on disk.
          start: first byte of the tar file in the container.
          size: bytes of the tar file; None for the rest of the container.
          above: path of the folder that the tar file counts as, '' or ending in '/'.
          name: name of the tar file in errors.
          depth: 1 for a tar file that is in no other.
        """
        if depth > MAX_NESTED:
            raise DataError(f"{name}: tar files are nested more than {MAX_NESTED} deep.")
        self.folders.add(above.removesuffix("/"))
        with open(container, "rb") as file:
            part = _FileSlice(
                file, start, os.path.getsize(container) - start if size is None else size
            )
            try:
                with tarfile.TarFile(fileobj=part) as tar:
                    # `tar.members` is cleared: a list of a million members takes gigabytes.
                    while (member := tar.next()) is not None:
                        tar.members.clear()
                        yield from self._in_member(member, container, start, above, name, depth)
                    part.seek(tar.offset)  # Python treats a damaged header as the end of the file.
                    if any(part.read(tarfile.BLOCKSIZE)):
                        raise DataError(f"{name}: damaged tar file (at byte {tar.offset:,}).")
            except tarfile.TarError as error:
                part.seek(0)
                kind = file_kind.describe(part.read(tarfile.BLOCKSIZE))
                problem = f"damaged tar file ({error})"
                if kind in file_kind.COMPRESSED:
                    problem = f"{kind}, not a tar file; decompress it first"
                raise DataError(f"{name}: {problem}.") from error

    def _in_member(self, member, container, start, above, name, depth) -> Iterator[ImageFile]:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        path, offset = above + "/".join(parts), start + member.offset_data
        if not parts:
            return
        if any(map(is_hidden, parts)):
            self.skipped.add(path, HIDDEN)
        elif member.isdir():
            self.folders.add(path)
        elif member.issym() or member.islnk():
            self.skipped.add(path, LINK_IN_TAR)
        elif not member.isreg() or member.issparse():
            self.skipped.add(path, SPECIAL)
        elif (kind := self._kind_of_file(path)) == "image":
            yield ImageFile(path, container, offset, member.size)
        elif kind == "tar":
            inner, inner_name = f"{path[: -len(TAR)]}/", f"{name}/{member.name}"
            yield from self._in_tar(container, offset, member.size, inner, inner_name, depth + 1)


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
