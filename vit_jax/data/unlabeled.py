"""Images without classes: folders, tar files, and lists of both."""

import dataclasses
import os
import zlib
from typing import ClassVar

import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data import class_folders, file_kind
from vit_jax.data.decode import Encoded, UnreadableImage
from vit_jax.data.image_folder import check_not_prepared, share
from vit_jax.data.listing import TAR, ImageFile, Listing, describe_missing, suffix_of
from vit_jax.errors import DataError
from vit_jax.text import decode_text

NO_LABEL = -1
REPLACED = "replaced by a later member of the same name"  # Reason for which a file is skipped.
EXPECTED = "folder, a .tar file or a list of images"


@dataclasses.dataclass(frozen=True)
class UnlabeledSource:
    """Images without classes (a `Source`): files, and members of tar files that stay packed.

    The label of every image is NO_LABEL.

    Attributes:
      root: folder that the names of files start from.
      files: names, in which a tar file counts as a folder.
      tars: paths of tar files.
      members: N 3 int64: index of the tar file, offset and size in bytes; -1 for a file.
      is_folder: the images are all those in `root`.
      notes: lines for the start of a run.
    """

    root: str
    files: tuple[str, ...]
    tars: tuple[str, ...]
    members: np.ndarray
    is_folder: bool
    notes: tuple[str, ...] = ()
    classes: ClassVar[tuple[str, ...]] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        tar, offset, size = self.members[index].tolist()
        path = os.path.join(self.root, self.files[index])
        try:
            with open(path if tar < 0 else self.tars[tar], "rb") as file:
                if tar >= 0:
                    file.seek(offset)
                data = file.read(size)  # All of a file.
        except OSError as error:
            raise UnreadableImage(f"{path}: unreadable image ({error.strerror}).") from error
        if len(data) < size:
            raise UnreadableImage(f"{path}: unreadable image ({self.tars[tar]} is truncated).")
        return {"image": Encoded(data, path), "label": NO_LABEL}

    @property
    def labels(self) -> np.ndarray:
        return np.full(len(self), NO_LABEL)

    def fingerprint(self) -> int:
        names = "\0".join(self.files).encode(errors="surrogateescape")
        return zlib.crc32(self.members[:, 2].tobytes(), zlib.crc32(names))

    def name(self, index: int) -> str:
        return self.files[index]


def open_images(data: Data, split: str) -> UnlabeledSource:
    """Opens images without classes: `data.dir` is a folder, a tar file or a list.

    Of a folder, all images at any depth are read, also those in tar files. A list is a text file
    with the path of an image or a tar file in each line, relative to the list. The splits 'train'
    and 'val' share the images: `data.val_fraction` of them is 'val', selected by a checksum of
    the name.
    """
    if split not in class_folders.SPLITS[:2]:
        raise DataError(f"data.source={data.source} has splits train and val, not {split!r}.")
    images, skipped = _list_images(data.dir)
    if not images:
        raise DataError(f"{data.dir}: {class_folders.no_images(skipped)}")
    notes = (f"data: skipped {skipped}",) if skipped else ()
    if class_folders.holds_out(split, ("train",), data.val_fraction):
        images = share(images, split, data.val_fraction, path_of=lambda image: image.path)
        notes = (*class_folders.held_out_notes(split, data.val_fraction), *notes)
    elif split == "val":
        images = []
    if not images:
        raise DataError(
            f"{data.dir}: no image is left for {split!r} with data.val_fraction="
            f"{data.val_fraction:g}; add images, or set data.val_split='' to train without a score."
        )
    is_folder = os.path.isdir(data.dir)
    root = data.dir if is_folder else os.path.dirname(data.dir)
    files, tars, members = _packed(images)
    return UnlabeledSource(root, files, tars, members, is_folder, notes)


def _packed(images: list[ImageFile]) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Returns `files`, `tars` and `members` of a source."""
    tars = sorted({image.container for image in images if image.offset})
    number = {path: k for k, path in enumerate(tars)}
    rows = [
        (number[image.container], image.offset, image.size) if image.offset else (-1, -1, -1)
        for image in images
    ]
    return tuple(image.path for image in images), tuple(tars), np.array(rows, np.int64)


def _list_images(where: str) -> tuple[list[ImageFile], str]:
    """Returns the images of a folder, a tar file or a list, sorted, and what was skipped."""
    if os.path.isdir(where):
        check_not_prepared(where)
    elif not os.path.isfile(where):
        raise DataError(f"data.dir={where or '(empty)'}: {describe_missing(where, EXPECTED)}.")
    elif suffix_of(where) in (*file_kind.SUFFIXES, *file_kind.OTHER_IMAGES):
        raise DataError(f"data.dir={where}: one image; expected a {EXPECTED}.")
    is_list = os.path.isfile(where) and suffix_of(where) not in (TAR, *file_kind.ARCHIVES)
    listing = Listing(where, reads_tar=True)
    try:
        images = sorted(_read_list(where, listing) if is_list else listing.images())
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    last = {(image.path, image.container): image for image in images}  # In the order of offsets.
    for image in images:
        if last[image.path, image.container] is not image:
            listing.skipped.add(image.path, REPLACED)
    return list(last.values()), listing.skipped.describe()


def _read_list(file: str, listing: Listing) -> list[ImageFile]:
    """Returns the images that a text file lists; files without an image suffix are skipped.

    Raises DataError, with file and line, for a path that is missing or listed before.
    """
    images: list[ImageFile] = []
    lines: dict[str, int] = {}  # Path -> its line.
    folder = os.path.dirname(file)
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if not (path := line.strip()):
            continue
        where, first = f"{file}, line {number}", lines.setdefault(os.path.normpath(path), number)
        if first != number:
            raise DataError(f"{where}: path {path!r} is also in line {first}.")
        if not os.path.isfile(os.path.join(folder, path)):
            raise DataError(f"{where}: no such file: {os.path.join(folder, path)}.")
        images += listing.named(path, os.path.join(folder, path))
    return images


def _read_text(file: str) -> str:
    """Returns the text of a list; bytes that are not UTF-8 are those of file names."""
    with open(file, "rb") as opened:
        data = opened.read()
    if b"\0" in data and not data.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16.
        kind = file_kind.describe(data) or "not a text file"
        raise DataError(f"data.dir={file}: {kind}; expected a {EXPECTED}.")
    try:
        return decode_text(data)
    except UnicodeDecodeError:
        return os.fsdecode(data)
