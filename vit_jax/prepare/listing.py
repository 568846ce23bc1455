"""Lists the data set of `prepare`: images in folders and tar files, with splits and classes."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable

from vit_jax.data import class_folders
from vit_jax.data.listing import ImageFile, Listing
from vit_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Images of a data set with their splits and classes."""

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[ImageFile, int]]]  # Split: (image, label) pairs.
    skipped: str  # Description of the files that are not read.

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


def list_images(source: str) -> tuple[list[ImageFile], Listing]:
    """Returns all image files below a folder or in a tar file, ordered by path, and the listing.

    Tar files may contain tar files, as those of ImageNet.

    Raises:
      DataError: the source is neither a folder nor a tar file, or a tar file is damaged.
    """
    if not os.path.exists(source):
        link = f" (a link to {os.readlink(source)})" if os.path.islink(source) else ""
        raise DataError(f"{source or '(empty)'}: this folder or .tar file does not exist{link}.")
    listing = Listing(source, reads_tar=True, reads_sizes=True)
    images = sorted(listing.images())
    if not os.path.isdir(source):
        images = _strip_common_folder(images, listing)
    for one, other in itertools.pairwise(images):
        if one.path == other.path:
            raise DataError(f"{one.path} exists in both {one.container} and {other.container}.")
    return images, listing


def list_data_set(source: str) -> DataSet:
    """Returns the images of a source with their splits and classes, as `image_folder` reads them.

    Raises:
      DataError: there are fewer than two classes, or a folder is unexpected.
    """
    images, listing = list_images(source)
    folders = class_folders.arrange(listing, images)
    splits: dict[str, list[tuple[ImageFile, int]]] = {}
    classes = folders.classes_for(*folders.images)
    labels = {title: label for label, title in enumerate(classes)}
    for split, found in sorted(folders.images.items()):
        pairs = [(image, labels[title]) for title, images in found.items() for image in images]
        if pairs:
            splits[split] = sorted(pairs)
        elif folders.skipped.describe(folders.folders[split]):
            raise DataError(f"{folders.path(split)}: {folders.no_images(split)}")
    for title in classes:
        if not title.isprintable() or title != title.strip():
            raise DataError(
                f"{source}: class name {title!r} has unprintable characters, or spaces at its "
                "start or end; rename the folder."
            )
    return DataSet(classes, splits, folders.skipped.describe())


def _strip_common_folder(images: list[ImageFile], listing: Listing) -> list[ImageFile]:
    """Removes a folder that contains everything, as in many tar files, from the paths."""
    start = 0
    while images:
        tops = {image.path[start:].partition("/")[::2] for image in images}
        names = {name for name, _ in tops}
        if len(names) > 1 or not all(below for _, below in tops):
            break
        name = names.pop()
        if class_folders.split_name(name):
            break
        start += len(name) + 1
    listing.remove_prefix(images[0].path[:start] if images else "")
    return [image._replace(path=image.path[start:]) for image in images]
