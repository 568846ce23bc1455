"""Data sets in a bucket, copied to the cache before they are opened.

A copy has a file FOLDER.objects.json beside it with size and version (ETag or generation) of every
object. On the next start the bucket is listed, and only objects that differ are copied again.
"""

import contextlib
import fcntl
import functools
import os
import pathlib
import shutil
from collections.abc import Mapping

from vit_jax.atomic_io import json_object, open_to_append, to_json, write_atomically
from vit_jax.data.object_store import Fingerprint, Listed, ObjectStore, cache_folder
from vit_jax.errors import DataError
from vit_jax.text import format_bytes, print_line


@functools.cache
def fetch_data(url: str) -> str:
    """Returns the local path of a data set in a bucket: a folder, or one file such as a .tar.

    Every file has the size that the bucket lists. Objects are not read again in this process.

    Raises DataError if there is nothing at the URL, it cannot be read, or the disk is too small.
    """
    store = ObjectStore(url, DataError)
    objects = store.list()
    if not objects:
        raise DataError(f"data.dir={url}: no such object or folder.")
    path = cache_folder("data") / store.subfolder
    record = path.with_name(f"{path.name}.objects.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_to_append(path.with_name(f"{path.name}.lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another process of this machine may copy the same data.
        known = _read_record(record)
        missing = [
            name
            for name, listed in objects.items()
            if known.get(name) != list(listed) or _size(path, name) != listed.size
        ]
        _check_space(url, path, sum(objects[name].size for name in missing))
        size = sum(listed.size for listed in objects.values())
        print_line(
            f"data: {url} has {len(objects):,} files, {format_bytes(size)}; {len(missing):,} of "
            f"them are copied to {path}"
        )
        if missing:
            write_atomically(record, to_json(_without(known, missing)))
            store.map(lambda name: _copy(store, path, name, objects[name]), missing)
        _remove_all_but(path, objects)
        write_atomically(record, to_json({name: list(each) for name, each in objects.items()}))
    return str(path)


def _read_record(record: pathlib.Path) -> dict:
    try:
        return json_object(record.read_bytes())
    except (OSError, ValueError):
        return {}


def _without(known: dict, names: list[str]) -> dict:
    """Returns the record of the files that are not copied now, in case the copy is interrupted."""
    removed = set(names)
    return {name: value for name, value in known.items() if name not in removed}


def _file(path: pathlib.Path, name: str) -> pathlib.Path:
    return path / name if name else path


def _size(path: pathlib.Path, name: str) -> int | None:
    try:
        return _file(path, name).stat().st_size
    except OSError:
        return None


def _copy(store: ObjectStore, path: pathlib.Path, name: str, listed: Listed) -> None:
    store.download(name, _file(path, name), Fingerprint(listed.size))


def _check_space(url: str, path: pathlib.Path, num_bytes: int) -> None:
    """Raises DataError if the files to copy do not fit on the disk."""
    free = shutil.disk_usage(path.parent).free
    if num_bytes > free:
        raise DataError(
            f"data.dir={url}: {num_bytes:,} bytes to copy, {free:,} bytes free in {path.parent}; "
            "set XDG_CACHE_HOME to a folder on a larger disk."
        )


def _remove_all_but(path: pathlib.Path, objects: Mapping[str, Listed]) -> None:
    """Removes local files that the bucket does not have any more."""
    for root, _, files in os.walk(path, topdown=False):
        for file in files:
            local = pathlib.Path(root, file)
            if local.relative_to(path).as_posix() not in objects:
                local.unlink()
        with contextlib.suppress(OSError):  # It has files.
            os.rmdir(root)
