"""CSV lists of images with their classes."""

import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterable

from vit_jax.config.schema import Data
from vit_jax.data import class_folders
from vit_jax.data.image_folder import FolderSource, folder_source, share_files
from vit_jax.data.labels import same_form
from vit_jax.errors import DataError, nearest
from vit_jax.text import decode_text


def open_csv(data: Data, split: str) -> FolderSource:
    """Opens images in lists: `data.dir` is a CSV file, or a folder of `train.csv`, `val.csv`, ...

    A list is UTF-8 text with the columns `path`, relative to the list, and `label`, a class name.
    Without `val.csv`, the splits 'train' and 'val' share the images of `train.csv` as those of a
    folder. Classes are those of training, sorted: numbers by value, before other names.
    """
    where = pathlib.Path(data.dir)
    lists = _find_lists(where) if data.dir else {}
    found = class_folders.find_split(split, lists) or split
    train_list = lists.get("train", lists.get(found))  # Only for evaluation if not `train.csv`.
    if train_list is None:
        raise DataError(
            f"data.dir={data.dir or '(empty)'}: expected a CSV file, or a folder with train.csv."
        )
    files = _read_list(train_list)
    classes = sorted(files, key=_class_order)
    if len(classes) < 2:
        raise DataError(f"{train_list}: classes {classes}; expected at least two.")
    files, notes = {title: files[title] for title in classes}, ()
    if class_folders.holds_out(split, lists, data.val_fraction):
        files = share_files(files, split, data.val_fraction)
        notes = class_folders.held_out_notes(split, data.val_fraction)
    elif found not in lists:
        raise DataError(f"{where}: no list {split}.csv for split {split!r}.")
    elif lists[found] != train_list:
        files = _read_list(lists[found], classes)
    if not any(files.values()):
        raise DataError(f"{where}: split {split!r} has no images.")
    return dataclasses.replace(folder_source(train_list.parent, files), notes=notes)


def _find_lists(where: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the lists of a folder by split, or one list as 'train'."""
    if where.is_file():
        return {"train": where}
    lists: dict[str, pathlib.Path] = {}
    for path in sorted(where.glob("*.csv")):
        split = class_folders.split_name(path.stem) or path.stem
        if split in lists:
            raise DataError(
                f"{lists[split]} and {path.name} are both the split {split!r}; rename one of them."
            )
        lists[split] = path
    return lists


def _class_order(title: str) -> tuple:
    return (0, int(title), title) if title.isdecimal() else (1, 0, title)


def _read_list(file: pathlib.Path, classes: Iterable[str] = ()) -> dict[str, list[str]]:
    """Returns the image paths of each class in a CSV list, in its order.

    Args:
      classes: allowed class names; any if empty.

    Raises DataError with file and line.
    """
    files: dict[str, list[str]] = {title: [] for title in classes}
    lines: dict[str, int] = {}  # Path -> its line.
    text = io.StringIO(_read_text(file), newline="")
    reader = csv.reader(text, skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for name in ("path", "label"):
            if header.count(name) != 1:
                raise DataError(
                    f"{file}, line 1: the header {','.join(header)[:80]!r} has "
                    f"{header.count(name)} columns named {name!r}; expected path,label."
                )
        for row in reader:
            if not row:  # An empty line.
                continue
            where = f"{file}, line {reader.line_num}"
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} columns; the header has {len(header)}.")
            path = row[header.index("path")].strip()
            title = same_form(row[header.index("label")].strip())
            if not path or not title:
                raise DataError(f"{where}: the {'label' if path else 'path'} is empty.")
            if classes and title not in files:
                raise DataError(
                    f"{where}: class {title!r} is not among the {len(files)} classes of training."
                    f"{nearest(title, files)}"
                )
            first_line = lines.setdefault(os.path.normpath(path), reader.line_num)
            if first_line != reader.line_num:
                raise DataError(f"{where}: path {path!r} is also in line {first_line}.")
            if not (file.parent / path).is_file():
                raise DataError(f"{where}: no such file: {file.parent / path}.")
            files.setdefault(title, []).append(path)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not valid CSV ({error}).") from error
    return files


def _read_text(file: pathlib.Path) -> str:
    """Returns the text of a file; raises DataError with the line that cannot be decoded."""
    try:
        data = file.read_bytes()
        return decode_text(data)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}, line {line}: not UTF-8 ({error.reason}).") from error
