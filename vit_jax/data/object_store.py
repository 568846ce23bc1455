"""Objects in buckets by URL: `gs://` through gcsfs and `s3://` through s3fs.

Credentials and endpoints are those of these libraries, such as GOOGLE_APPLICATION_CREDENTIALS,
STORAGE_EMULATOR_HOST, AWS_PROFILE and AWS_ENDPOINT_URL. Faults that pass are repeated: server
errors, limits of requests, time-outs, closed connections and truncated reads. All others, such as
lost credentials, are an error at once.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import logging
import os
import pathlib
import random
import re
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import google_crc32c

from vit_jax.atomic_io import FULL, json_object, replace_atomically, to_json, write_atomically
from vit_jax.errors import CheckpointError, ConfigError, VitJaxError, one_line
from vit_jax.text import warn

PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # Scheme -> package, our extra.
OPTIONS = {"gs": {"requests_timeout": 30}}  # Scheme -> options of its file system.
PATIENCE = 120.0  # Seconds for which a fault that passes is repeated.
PAUSE, MAX_PAUSE = 0.5, 15.0  # Seconds before the second attempt, doubled up to the second value.
READS = 3  # Attempts to read an object whose content is not as expected.
THREADS = 16  # Objects that are copied at the same time.
BLOCK = 1 << 20  # Bytes read at once.
PASSING = {  # Package.class of faults that pass; subclasses, too.
    *("builtins.TimeoutError", "builtins.ConnectionError", "aiohttp.ClientError"),
    *("botocore.HTTPClientError", "botocore.ConnectionError", "botocore.IncompleteReadError"),
    *("botocore.ResponseStreamingError", "requests.RequestException", "urllib3.HTTPError"),
    *("gcsfs.ChecksumError", "http.HTTPException"),
}
PASSING_STATUS = (408, 429, 500, 502, 503, 504)


class Fingerprint(NamedTuple):
    """Size and CRC-32C of a file; a value that is not known is None."""

    size: int | None
    crc32c: int | None = None

    def matches(self, found: "Fingerprint") -> bool:
        """Returns True if `found` has all values that are known here."""
        return all(known in (None, value) for known, value in zip(self, found))


class Listed(NamedTuple):
    """Size of an object, and a text that changes with its content."""

    size: int
    version: str


class _OtherContent(Exception):
    """An object was not read as expected: truncated, or damaged."""


class _Fault(Exception):
    """Carries an OSError of the network through code that adds file names to those of the disk."""


def is_url(text: object) -> bool:
    """Returns True for the URL of an object or a folder in a bucket."""
    scheme, separator, _ = str(text).partition("://")
    return bool(separator) and scheme.lower() in PACKAGES


def fingerprint_of(path: pathlib.Path) -> Fingerprint:
    """Returns size and CRC-32C of a file."""
    size, checksum = 0, google_crc32c.Checksum()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            size += len(block)
            checksum.update(block)
    return Fingerprint(size, int.from_bytes(checksum.digest(), "big"))


def cache_folder(name: str) -> pathlib.Path:
    """Returns a folder of this package under `$XDG_CACHE_HOME` or `~/.cache`.

    Raises CheckpointError if there is no home directory.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # The XDG specification ignores relative paths.
        root = os.path.expanduser("~/.cache")
    if not os.path.isabs(root):
        raise CheckpointError("no home directory for a cache; set XDG_CACHE_HOME to a folder.")
    return pathlib.Path(root, "vit_jax", name)


class ObjectStore:
    """The objects below a URL. Names are relative to it; the name '' is the URL itself.

    Attributes:
      url: SCHEME://BUCKET[/PATH] without a slash at the end.
      subfolder: SCHEME/BUCKET[/PATH], a relative path for a local copy.
    """

    def __init__(self, url: str, error: type[VitJaxError] = CheckpointError):
        """Imports no library yet.

        Args:
          url: SCHEME://BUCKET[/PATH].
          error: type of the errors of lasting faults.

        Raises:
          ConfigError: the URL is invalid.
        """
        scheme, _, path = str(url).partition("://")
        parts = path.rstrip("/").split("/")
        if not is_url(url) or {"", ".", ".."} & set(parts) or not path.isprintable():
            raise ConfigError(
                f"{str(url)!r} is not the URL of a folder in a bucket; expected gs://BUCKET/PATH "
                "or s3://BUCKET/PATH without '.', '..' and empty parts."
            )
        self._scheme, self._error = scheme.lower(), error
        self.url = f"{self._scheme}://{'/'.join(parts)}"
        self.subfolder = pathlib.PurePath(self._scheme, *parts)

    @functools.cached_property
    def _system(self):
        """The file system of fsspec; raises ConfigError that names the extra to install."""
        package, extra = PACKAGES[self._scheme]
        # Failures are raised as well, as one line.
        logging.getLogger(package).setLevel(logging.CRITICAL)
        try:
            import fsspec

            return fsspec.filesystem(
                self._scheme, use_listings_cache=False, **OPTIONS.get(self._scheme, {})
            )
        except ImportError as error:
            raise ConfigError(
                f"{self.url}: {self._scheme}:// needs the package {package}, which is the extra "
                f"{extra}; `pip install {package}`."
            ) from error

    @functools.cached_property
    def _root(self) -> str:
        return self._repeat("open", "", lambda: self._system._strip_protocol(self.url))

    def address(self, name: str = "") -> str:
        """Returns the URL of an object."""
        return f"{self.url}/{name}".rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def list(self, prefix: str = "") -> dict[str, Listed]:
        """Returns the objects below a folder, or that of this name, sorted by name.

        Objects whose name is no relative path of a file, such as a/../b, are ignored.
        """

        def find() -> dict:
            self._system.invalidate_cache()
            try:
                return self._system.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return {}

        found = {}
        for path, info in self._repeat("list", prefix, find).items():
            name = path[len(self._root) :].removeprefix("/")
            is_path = not {"", ".", ".."} & set(name.split("/")) or not name
            if info.get("type", "file") == "file" and is_path and "\0" not in name:
                version = next(
                    (str(info[key]) for key in ("generation", "ETag", "etag") if key in info), ""
                )
                found[name] = Listed(int(info["size"]), version)
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object, or None if it does not exist."""

        def read() -> bytes | None:
            try:
                return self._system.cat_file(self._path(name))
            except FileNotFoundError:
                return None

        return self._repeat("read", name, read)

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces an object in one request."""
        self._repeat("write", name, lambda: self._system.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool:
        """Creates an object; returns False if it exists, which changes nothing."""

        def create() -> bool:
            try:
                self._system.pipe_file(self._path(name), data, mode="create")
            except Exception as error:
                if not isinstance(error, FileExistsError) and _status(error) not in (409, 412):
                    raise
                return False
            return True

        # A repeated request may find the object of the first one.
        return self._repeat("create", name, create) or self.read(name) == data

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects; those that do not exist are ignored."""

        def delete(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._path(name))

        self.map(lambda name: self._repeat("delete", name, lambda: delete(name)), names)

    def upload(self, name: str, path: pathlib.Path) -> Fingerprint:
        """Copies a file into the bucket; returns its size and CRC-32C."""
        found = fingerprint_of(path)
        self._repeat("write", name, lambda: self._system.put_file(str(path), self._path(name)))
        return found

    def download(
        self,
        name: str,
        path: pathlib.Path,
        expected: Fingerprint | None = None,
        *,
        keeps_damaged: bool = False,
    ) -> Fingerprint | None:
        """Copies an object to a file, which is complete or missing.

        Args:
          name: name of the object.
          path: the file; its folder is created.
          expected: size and CRC-32C of the content. Content that differs is read again.
          keeps_damaged: keep what was read last if it still differs; ignore a missing object.

        Returns the size and CRC-32C, or None for a missing object.
        """
        expected = expected or Fingerprint(None)

        def fetch(is_last: bool) -> Fingerprint:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_atomically(path) as temporary:
                try:
                    self._system.get_file(self._path(name), str(temporary))
                except OSError as error:
                    if error.errno in FULL:
                        raise
                    raise _Fault from error
                found = fingerprint_of(temporary)
                if not expected.matches(found) and not (is_last and keeps_damaged):
                    raise _OtherContent(
                        f"{found.size} bytes with CRC-32C {found.crc32c}; expected "
                        f"{expected.size} bytes with CRC-32C {expected.crc32c or 'unknown'}"
                    )
            return found

        for attempt in range(1, READS + 1):
            try:
                return self._repeat("read", name, lambda: fetch(attempt == READS))  # noqa: B023
            except FileNotFoundError:
                if keeps_damaged:
                    return None
                raise self._error(f"{self.address(name)}: no such object.") from None
            except _OtherContent as error:
                if attempt == READS:
                    raise self._error(f"{self.address(name)} is damaged: {error}.") from error
        raise AssertionError("unreachable")

    def map(self, function: Callable, items: Iterable) -> list:
        """Returns the results of a function of each item, computed by several threads."""
        with concurrent.futures.ThreadPoolExecutor(THREADS) as executor:
            futures = [executor.submit(function, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise

    def _repeat(self, verb: str, name: str, action: Callable):
        """Returns the result of an action, which is repeated after faults that pass.

        Raises the error type of this store after a lasting fault. Errors of the local disk,
        missing objects and other content are raised as they are.
        """
        deadline = time.monotonic() + PATIENCE
        for attempt in itertools.count():
            try:
                return action()
            except (VitJaxError, _OtherContent):
                raise
            except Exception as raised:  # The libraries raise many types.
                error = raised.__cause__ if isinstance(raised, _Fault) else raised
                is_of_disk = isinstance(error, OSError) and bool(error.filename)
                if verb == "read" and (is_of_disk or isinstance(error, FileNotFoundError)):
                    raise error from None
                pause = min(PAUSE * 2**attempt, MAX_PAUSE) * random.uniform(0.5, 1)
                is_over = time.monotonic() + pause > deadline
                reason = _reason(error)
                if is_over or not is_passing(error):
                    times = f" ({attempt + 1} attempts)" if attempt else ""
                    raise self._error(
                        f"{self.address(name)}: cannot {verb} it: {reason}{times}.{_hint(error)}"
                    ) from error
                warn(f"{self.address(name)}: {reason}; next attempt in {pause:.1f} s.")
            time.sleep(pause)


def _chain(error: BaseException | None) -> list[BaseException]:
    """Returns an error and its causes."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status of a response that caused an error, or None."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if isinstance(response, dict):  # Of botocore.
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for name in ("status", "code"):  # Of aiohttp and gcsfs.
            value = getattr(each, name, None)
            if isinstance(value, int | str) and re.fullmatch(r"[45]\d\d", str(value)):
                return int(value)
    return None


def is_passing(error: BaseException) -> bool:
    """Returns True for a fault that a later attempt may not meet."""
    if isinstance(error, PermissionError | FileNotFoundError | FileExistsError):
        return False
    status = _status(error)
    if status is not None:
        return status in PASSING_STATUS
    classes = {
        f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
        for each in _chain(error)
        for cls in type(each).__mro__
    }
    return bool(classes & PASSING)


def _reason(error: BaseException) -> str:
    status = _status(error)
    text = one_line(error).rstrip(".")
    return text if status is None or str(status) in text else f"HTTP {status} {text}"


def _hint(error: BaseException) -> str:
    names = {type(each).__name__ for each in _chain(error)}
    is_refused = _status(error) in (401, 403) or isinstance(error, PermissionError)
    is_refused |= "Forbidden" in str(error) or any(
        "Credentials" in name or name in ("RefreshError", "GoogleAuthError") for name in names
    )
    if is_refused:
        return " Check the credentials of this process and the rights on the bucket."
    return " Check that the bucket exists." if isinstance(error, FileNotFoundError) else ""


def fetch_file(
    url: str, folder: pathlib.Path, error: type[VitJaxError] = CheckpointError
) -> pathlib.Path:
    """Returns the local path of one object, copied to a folder below `folder` if it is not there.

    A file beside the copy has the version of the object, which is compared with the bucket.
    """
    store = ObjectStore(url, error)
    listed = store.list().get("")
    if listed is None:
        raise error(f"{store.url}: no such object.")
    path = folder / store.subfolder
    record = path.with_name(f"{path.name}.json")
    known = {"size": listed.size, "version": listed.version}
    try:
        is_same = path.stat().st_size == listed.size and json_object(record.read_bytes()) == known
    except (OSError, ValueError):
        is_same = False
    if not is_same or not listed.version:
        store.download("", path, Fingerprint(listed.size))
        write_atomically(record, to_json(known))
    return path
