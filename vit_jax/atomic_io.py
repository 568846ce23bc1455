"""Atomic writes: a file is complete or missing, and links are never followed.

A file is written under a random name in its folder, `.vit_jax-HOST-RANDOM.tmp`, which is created
exclusively and locked until a rename gives the file its name. The next write to the folder removes
what killed processes have left there: the operating system releases the lock of a killed process.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import pathlib
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO

from vit_jax.errors import NonFiniteError

ERRORS = "surrogateescape"  # File names may contain bytes that are not UTF-8.
HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
TEMPORARY = re.compile(r"\.vit_jax-([0-9a-f]{8})-[0-9a-f]{16}\.tmp")
MAX_AGE = 24 * 3600  # Seconds after which a file of another host is abandoned.
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def add_path_to_errors(path: pathlib.Path, num_bytes: int | None = None):
    """Adds the file name to an OSError without one, and the free space to that of a full disk.

    Args:
      path: the file; replaces the name of a temporary file.
      num_bytes: bytes that the file needs, if known.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and not is_temporary(pathlib.Path(str(error.filename))):
            raise
        num_bytes = num_bytes or getattr(error, "num_bytes", None)
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in FULL:
            reason = f"{reason} ({describe_space(path, num_bytes)})"
        named = OSError(error.errno, reason, str(path))
        named.num_bytes = num_bytes
        raise named from error


def is_temporary(path: pathlib.Path) -> bool:
    """Returns True for the path of a temporary file, or of a file in a temporary folder."""
    return any(map(TEMPORARY.fullmatch, path.parts))


def describe_space(path: pathlib.Path, num_bytes: int | None = None) -> str:
    """Returns the bytes that a file needs, if known, and those that are free in its folder."""
    needed = f"{num_bytes:,} bytes needed, " if num_bytes else ""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    status = os.statvfs(folder)
    files = ", no more files possible" if status.f_files and not status.f_favail else ""
    return f"{needed}{shutil.disk_usage(folder).free:,} bytes free{files}"


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file, so that no reader sees a part of it, even if the process is killed."""
    content = content.encode("utf-8", ERRORS) if isinstance(content, str) else content
    with open_atomically(path, len(content)) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomically(path: pathlib.Path, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Yields a new binary file, which gets the name `path` if the block ends without an error.

    Args:
      path: name of the file; a file or link of this name is replaced.
      num_bytes: bytes that the file needs, if known, for the error of a full disk.
    """
    with replace_atomically(path, num_bytes=num_bytes) as temporary, open(temporary, "wb") as file:
        yield file


@contextlib.contextmanager
def replace_atomically(
    path: pathlib.Path, *, is_folder: bool = False, num_bytes: int | None = None
) -> Iterator[pathlib.Path]:
    """Yields the path of a new file or folder, which gets the name `path` at the end of the block.

    It is removed if the block raises. A folder replaces nothing but an empty folder.
    """
    with (
        add_path_to_errors(path, num_bytes),
        _temporary(path.parent, is_folder) as (temporary, descriptor),
    ):
        yield temporary
        os.fsync(descriptor)
        os.replace(temporary, path)


@contextlib.contextmanager
def write_aside(path: pathlib.Path, *, is_folder: bool) -> Iterator[pathlib.Path]:
    """Yields a path for a new file and others beside it, or for a new folder, until it is verified.

    At the end of the block the files move to the folder of `path`, that of `path` itself last, so
    that it exists only if all others do. Everything is removed if the block raises.
    """
    if is_folder:
        with replace_atomically(path, is_folder=True) as folder:
            yield folder
        return
    with add_path_to_errors(path), temporary_folder(path.parent) as folder:
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.with_name(file.name))


@contextlib.contextmanager
def temporary_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder, which is removed at the end of the block."""
    with _temporary(parent, is_folder=True) as (folder, _):
        yield folder


@contextlib.contextmanager
def _temporary(parent: pathlib.Path, is_folder: bool) -> Iterator[tuple[pathlib.Path, int]]:
    """Yields a new locked file or folder and its descriptor; removes it at the end."""
    remove_abandoned(parent)
    path, descriptor = _create_locked(parent, is_folder)
    try:
        yield path, descriptor
    finally:
        with contextlib.suppress(OSError):  # An earlier error is the one to report.
            _remove(path)
        os.close(descriptor)


def _create_locked(parent: pathlib.Path, is_folder: bool) -> tuple[pathlib.Path, int]:
    while True:
        path = parent / f".vit_jax-{HOST}-{secrets.token_hex(8)}.tmp"
        if is_folder:
            path.mkdir()
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with contextlib.suppress(OSError):  # Some network file systems have no locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():  # Another process may have removed it before it was locked.
            return path, descriptor
        os.close(descriptor)


def remove_abandoned(folder: pathlib.Path) -> None:
    """Removes the temporary files and folders that killed processes have left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if match := TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(pathlib.Path(entry.path), match[1])


def _remove_if_abandoned(path: pathlib.Path, host: str) -> None:
    """Removes a file that no process has locked, if locks are known here, or an old one."""
    access = os.O_RDONLY if path.is_dir() else os.O_RDWR
    descriptor = os.open(path, access | os.O_NOFOLLOW)
    try:
        is_unlocked = _try_to_lock(descriptor)
        is_old = time.time() - path.stat().st_mtime > MAX_AGE
        if is_unlocked is not False and (is_old or (is_unlocked and host == HOST)):
            _remove(path)
    finally:
        os.close(descriptor)


def _try_to_lock(descriptor: int) -> bool | None:
    """Returns False if another process has locked the file; None on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def open_to_append(path: pathlib.Path, mode: str = "a", **options) -> IO:
    """Opens a file that grows in place; raises OSError for a link.

    Args:
      path: the file.
      mode: mode of `open` that keeps the content, such as "a" or "a+".
      **options: further arguments of `open`.
    """

    def open_no_link(name: str, flags: int) -> int:
        try:
            return os.open(name, flags | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            reason = "is a link, and links are not written to; remove it"
            raise OSError(errno.ELOOP, reason, str(path)) from error

    return open(path, mode, opener=open_no_link, **options)


def to_json(values: object, **options) -> str:
    """Returns values as JSON text: the one place where JSON is written.

    Args:
      values: what `json.dumps` accepts, without NaN and infinity, which JSON lacks.
      **options: further arguments of `json.dumps`.

    Raises:
      NonFiniteError: a number is NaN or infinite; the message has its place.
    """
    try:
        return json.dumps(values, allow_nan=False, **options)
    except ValueError as error:
        for place, number in _numbers(values):
            if not math.isfinite(number):
                raise NonFiniteError(
                    f"{place or 'the value'} is {number}; JSON has finite numbers only."
                ) from error
        raise


def json_object(text: str | bytes, **options) -> dict:
    """Returns a JSON object; raises ValueError for any other text, however deep it is nested.

    Args:
      text: untrusted text.
      **options: arguments of `json.loads`.
    """
    try:
        values = json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, found {type(values).__name__}")
    return values


def _numbers(values: object, place: str = "") -> Iterator[tuple[str, float]]:
    """Yields every float in nested values with its keys, joined by dots."""
    if isinstance(values, float):
        yield place, values
    if isinstance(values, list | tuple):
        values = dict(enumerate(values))
    for key, value in values.items() if isinstance(values, dict) else ():
        yield from _numbers(value, f"{place}.{key}" if place else str(key))
