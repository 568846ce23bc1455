"""Splits and classes of a data set, from the paths of its images.

A source has folders of splits, `train/<class>/...`, or class folders alone, `<class>/...`, which
are the split 'train'.
"""

import collections
import dataclasses
import operator
import os
import re
from collections.abc import Callable, Collection, Iterable

from vit_jax.data.file_kind import SUFFIXES
from vit_jax.data.labels import same_form
from vit_jax.data.listing import OUTSIDE, Listing, Skipped
from vit_jax.errors import DataError, nearest

SPLITS = ("train", "val", "test")
SPLIT_FOLDER = re.compile(
    r"(?:(train|training)|(val|valid|validation|dev)|(test|testing))"
    r"[\W_]*(?:set|split|data|images?|imgs?)?",
    re.IGNORECASE,
)


def split_name(folder: str) -> str | None:
    """Returns 'train', 'val' or 'test' for the usual names of a split's folder, else None."""
    match = SPLIT_FOLDER.fullmatch(folder)
    return SPLITS[match.lastindex - 1] if match else None


def find_split(split: str, names: Iterable[str]) -> str | None:
    """Returns the one of several splits that a name means: 'validation' is also 'val'."""
    names, usual = set(names), split_name(split)
    if split in names:
        return split
    alike = [name for name in names if usual is not None and split_name(name) == usual]
    return alike[0] if len(alike) == 1 else None


def holds_out(split: str, splits: Collection[str], val_fraction: float) -> bool:
    """Returns True if a data set has no split 'val', and `split` is a part of its 'train'.

    With a `val_fraction` of 1, 'val' is all of a data set that has no other split than 'train'.
    """
    has_val = find_split("val", splits) is not None
    is_shared = split in ("train", "val") and "train" in splits and not has_val
    return is_shared and (0 < val_fraction < 1 or (val_fraction == 1 and len(splits) == 1))


def held_out_notes(split: str, val_fraction: float) -> tuple[str, ...]:
    """Returns the line to print for a split that is held out of 'train'."""
    if split != "val":
        return ()
    share = "all images" if val_fraction == 1 else f"the fraction {val_fraction:g} of train"
    return (f"data: val is {share}, because the data has no split val",)


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """Images of a data set by split and class.

    Attributes:
      root: the source.
      folders: folder of each split; '' if the class folders of 'train' are in the source itself.
      images: images, or their paths, of each class of each split; classes are sorted, and may
        have no images.
      skipped: files that are not read.
    """

    root: str
    folders: dict[str, str]
    images: dict[str, dict[str, list]]
    skipped: Skipped

    def classes_for(self, *splits: str) -> tuple[str, ...]:
        """Returns the classes of 'train', or without 'train' those of all splits.

        Raises DataError for fewer than two classes, for a class without images, and for a class
        of `splits` that 'train' does not have.
        """
        known_by = ["train"] if "train" in self.images else sorted(self.images)
        counts: collections.Counter[str] = collections.Counter()
        for split in known_by:
            counts.update({title: len(images) for title, images in self.images[split].items()})
        classes, where = sorted(counts), self.path(known_by[0])
        if len(classes) < 2:
            found = f"only the class {classes[0]!r}" if classes else "no class folders"
            skipped = self.skipped.describe(self.folders[known_by[0]])
            raise DataError(
                f"{where}: {found}; expected at least two class folders"
                f"{f' (skipped: {skipped})' if skipped else ''}."
            )
        for title in classes:
            if not counts[title]:
                raise DataError(
                    f"{os.path.join(where, title)}: {self.no_images(known_by[0], title)}"
                )
        for split in splits:
            for title, images in self.images[split].items():
                if images and title not in counts:
                    raise DataError(
                        f"{self.path(split)}: class {title!r} is not among the {len(classes)} "
                        f"classes of {where}.{nearest(title, classes)}"
                    )
        return tuple(classes)

    @property
    def has_splits(self) -> bool:
        return "" not in self.folders.values()

    def path(self, split: str) -> str:
        """Returns the path of the folder that has the class folders of a split."""
        return os.path.join(self.root, self.folders[split]).rstrip("/")

    def no_images(self, split: str, title: str = "") -> str:
        """Returns the error of a split or class without images: what was found there instead."""
        found = self.skipped.describe("/".join(filter(None, (self.folders[split], title))))
        return no_images(found)


def no_images(skipped: str) -> str:
    """Returns the error of a folder without images, with a description of what it has instead."""
    return f"no images ({', '.join(SUFFIXES)}){f'; found {skipped}' if skipped else ''}."


def arrange(
    listing: Listing, images: Iterable, path_of: Callable = operator.attrgetter("path")
) -> ClassFolders:
    """Returns the images of a listing by split and class, in their order.

    Args:
      images: the images of `listing`, or their paths.
      path_of: returns the path of one of them.

    Raises DataError if folders may be splits as well as classes, and for a link in the place of
    such a folder that leads nowhere.
    """
    images = list(images)
    tops = _count_images(listing, map(path_of, images))
    split_of = _find_splits(listing.source, tops)
    if not split_of:
        _check_classes(listing.source, tops, _inner_names(map(path_of, images)))
    folders = {split: folder for folder, split in split_of.items()} or {"train": ""}
    titles = {split: tops[folder] if folder else tops for split, folder in folders.items()}
    for link in listing.broken_links:
        if link.count("/") <= bool(split_of):
            raise DataError(
                f"{os.path.join(listing.source, link)}: a link to a missing folder; remove it."
            )
    found: dict[str, dict[str, list]] = {
        split: {title: [] for title in sorted(map(same_form, filter(None, names)))}
        for split, names in titles.items()
    }
    for image in images:
        parts = path_of(image).split("/", 2)
        split = split_of.get(parts.pop(0)) if split_of else "train"
        if split is None or len(parts) < 2:
            listing.skipped.add(path_of(image), OUTSIDE)
        else:
            found[split][same_form(parts[0])].append(image)
    return ClassFolders(listing.source, folders, found, listing.skipped)


def _count_images(listing: Listing, paths: Iterable[str]) -> dict[str, collections.Counter]:
    """Returns the number of images in each folder of each folder; '' for those directly in it."""
    tops: dict[str, collections.Counter[str]] = {}
    for folder in filter(None, listing.folders):
        top, _, below = folder.partition("/")
        counts = tops.setdefault(top, collections.Counter())
        if below and "/" not in below:
            counts[below] += 0
    for path in paths:
        top, *below = path.split("/", 2)
        if below:
            counts = tops.setdefault(top, collections.Counter())
            counts[below[0] if len(below) == 2 else ""] += 1
    return tops


def _find_splits(root: str, tops: dict[str, collections.Counter]) -> dict[str, str]:
    """Returns folder -> split; empty if the folders are classes. Raises DataError if unclear."""
    class_folders = {
        folder: [name for name, count in counts.items() if name and count]
        for folder, counts in tops.items()
    }
    usual = {folder: name for folder in tops if (name := split_name(folder))}
    if not any(class_folders[folder] for folder in usual):
        return {}
    splits: dict[str, str] = {}
    for folder in sorted(tops):
        split = usual.get(folder, folder)
        if folder not in usual and not class_folders[folder]:
            continue
        if split in splits.values():
            other = next(name for name in splits if splits[name] == split)
            raise DataError(
                f"{root}: the folders {other!r} and {folder!r} are both the split {split!r}; "
                "rename one of them."
            )
        splits[folder] = split
    return splits


def _inner_names(paths: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names of the folders with images in each folder.

    If all images are in one inner folder, as in `seg_train/seg_train/<class>`, its folders count.
    """
    inside: dict[str, set[str]] = {}
    for folder in set(map(os.path.dirname, paths)) - {""}:
        inside.setdefault(folder.partition("/")[0], set()).add(folder)
    names = {}
    for top, folders in inside.items():
        common = os.path.commonpath(folders)
        below = (folder.removeprefix(common).split("/", 2) for folder in folders)
        names[top] = sorted({*common.split("/")[1:], *(parts[1] for parts in below if parts[1:])})
    return names


def _check_classes(root: str, tops, inner_names: dict[str, list[str]]) -> None:
    """Raises DataError if folders are splits rather than classes."""
    inner_names = {  # Without classes that have a few images in subfolders.
        folder: names
        for folder, names in sorted(inner_names.items())
        if len(tops) == 1 or tops[folder][""] <= tops[folder].total() / 2
    }
    for folder, names in inner_names.items():
        is_all = len(tops) == 1 and len(names) > 1
        if is_all or len(set(map(split_name, names)) - {None}) > 1:
            raise DataError(
                f"{root}: the {'only ' if len(tops) == 1 else ''}folder {folder} has the folders "
                f"{', '.join(names[:3])}; expected at least two class folders. Is "
                f"{os.path.join(root, folder)} the data set?"
            )
    first: dict[str, str] = {}  # Name of a class folder -> the folder that has it.
    for folder, names in inner_names.items():
        for name in names:
            other = first.setdefault(same_form(name), folder)
            if other != folder:
                raise DataError(
                    f"{root}: the folders {other!r} and {folder!r} both contain a folder {name!r}, "
                    "as splits do; rename splits to train, val and test, or move classes into a "
                    "folder train."
                )
    usual = {folder: name for folder in tops if (name := split_name(folder))}
    loose = [folder for folder in sorted(usual) if tops[folder]]
    if len(loose) > 1 or (loose and usual[loose[0]] != "train"):
        raise DataError(
            f"{root}: the images of {loose[0]} are not in class folders; put the images of a split "
            "into class folders, or move a class of that name into a folder train."
        )
