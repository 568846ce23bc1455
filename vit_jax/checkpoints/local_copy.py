"""Local copy of a workdir in a bucket, which holds the files of a local workdir.

A step in a bucket exists if it has the object `commit_success.txt`, which is written last and
deleted first. Written by this package, it has size and CRC-32C of every file of the step. In a
workdir that was copied from a disk, it is a text of Orbax: the files are those in the bucket.

`fetch` copies small files only. The arrays of a step, in its folder `state`, are copied by
`complete` when they are read. All code that reads a workdir therefore reads the local copy.
"""

import contextlib
import os
import pathlib
import re
import threading
from collections.abc import Iterator, Mapping

from vit_jax.atomic_io import json_object, temporary_folder, to_json
from vit_jax.checkpoints import layout, lease
from vit_jax.data.object_store import (
    Fingerprint,
    Listed,
    ObjectStore,
    cache_folder,
    fingerprint_of,
    is_url,
)
from vit_jax.errors import CheckpointError, ConfigError, VitJaxError

MARKER = "commit_success.txt"  # The name that Orbax uses.
ARRAYS = "state/"  # Files of a step that are copied when they are read.
STEP = re.compile(rf"((?:.*/)?(?:{layout.FOLDER}|{layout.BEST})/(?:0|[1-9][0-9]*))/(.+)", re.DOTALL)
READ = (".json", ".jsonl", ".md", ".txt", ".html")  # Files beside steps that commands read.
WEIGHTS = (".safetensors", ".npz")  # Weights of a folder; those of folders in it are not read.
MAX_READ = 2**26  # Bytes of the largest file beside steps that is read.

Files = dict[str, Fingerprint]
_copies: dict[pathlib.Path, "LocalCopy"] = {}


class LocalCopy:
    """Local copy of a workdir, for commands that read it.

    Attributes:
      store: the workdir in the bucket.
      folder: the local folder.
      steps: relative path of each step in the bucket, such as `finetune/checkpoints/8`, and the
        names and fingerprints of its files.
    """

    is_mirror = False  # True if changes of the copy are written to the bucket.

    def __init__(self, store: ObjectStore, folder: pathlib.Path, *, keeps_damaged: bool = False):
        """Reads nothing yet.

        Args:
          keeps_damaged: arrays that differ from the marker are kept as they are, and rejected by
            the checksums of the step when they are restored.
        """
        self.store, self.folder = store, pathlib.Path(os.path.abspath(folder))
        self.steps: dict[str, Files] = {}
        self._keeps_damaged = keeps_damaged
        self._complete: set[str] = set()
        self._completing = threading.Lock()

    def fetch(self) -> dict[str, Listed]:
        """Makes the local folder equal to the bucket, without arrays; returns all objects.

        Files of the folder with the right content are not copied again; all others are removed.
        """
        objects = self.store.list()
        steps = by_step(objects)
        names = [name for name, files in steps.items() if MARKER in files]
        self._complete.clear()
        self.steps = dict(
            zip(names, self.store.map(lambda n: _read_marker(self.store, n, steps[n]), names))
        )
        wanted = {
            name: Fingerprint(listed.size)
            for name, listed in objects.items()
            if STEP.fullmatch(name) is None and self._is_read(name, listed.size)
        }
        arrays = set()
        for step, files in self.steps.items():
            wanted[f"{step}/{MARKER}"] = Fingerprint(steps[step][MARKER].size)
            for name, expected in files.items():
                if name.startswith(ARRAYS):
                    arrays.add(f"{step}/{name}")
                else:
                    wanted[f"{step}/{name}"] = expected
        self._remove_all_but(wanted.keys() | arrays)
        self._download(wanted, keeps_damaged=True)
        return objects

    def _is_read(self, name: str, size: int) -> bool:
        folder, _, file = name.rpartition("/")
        parts = set(folder.split("/"))
        if file == lease.NAME or {layout.DAMAGED, "profile"} & parts:
            return False
        is_small = size <= MAX_READ or file == "metrics.jsonl"
        return (file.endswith(READ) and is_small) or (file.endswith(WEIGHTS) and not folder)

    def _remove_all_but(self, names: set[str]) -> None:
        """Removes all other files of the local folder, and folders without files."""
        for root, _, files in os.walk(self.folder, topdown=False):
            for file in files:
                path = pathlib.Path(root, file)
                is_known = path.relative_to(self.folder).as_posix() in names
                if not is_known and file != lease.NAME:
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # It has files.
                os.rmdir(root)

    def _download(self, files: Mapping[str, Fingerprint], keeps_damaged: bool) -> None:
        def fetch(name: str) -> None:
            path, expected = self.folder / name, files[name]
            if expected.crc32c is None or not path.is_file() or fingerprint_of(path) != expected:
                self.store.download(name, path, expected, keeps_damaged=keeps_damaged)

        self.store.map(fetch, files)

    def complete(self, step_folder: pathlib.Path) -> None:
        """Copies the arrays of a step that the local folder lacks.

        Raises CheckpointError for an object that is missing or damaged.
        """
        step = self.relative(step_folder)
        with self._completing:
            if step in self._complete or step not in self.steps:
                return
            arrays = {
                f"{step}/{name}": expected
                for name, expected in self.steps[step].items()
                if name.startswith(ARRAYS)
            }
            self._download(arrays, self._keeps_damaged)
            self._complete.add(step)

    def relative(self, path: pathlib.Path) -> str:
        """Returns the name of a local file or folder in the bucket."""
        return pathlib.Path(os.path.abspath(path)).relative_to(self.folder).as_posix()


def by_step(objects: Mapping[str, Listed]) -> dict[str, dict[str, Listed]]:
    """Returns the objects of each step, finished or not, by their names in the step."""
    steps: dict[str, dict[str, Listed]] = {}
    for name, listed in objects.items():
        if match := STEP.fullmatch(name):
            steps.setdefault(match[1], {})[match[2]] = listed
    return steps


def newest_steps(where: str) -> dict[str, int]:
    """Returns the newest step of every run in a workdir, by the path or URL of the run."""
    if not is_url(where):
        return layout.newest_steps(pathlib.Path(where))
    store, newest = ObjectStore(where), {}
    for step, objects in by_step(store.list()).items():
        folder, _, number = step.rpartition("/")
        if MARKER in objects and folder.endswith(layout.FOLDER):
            run = store.address(folder.removesuffix(layout.FOLDER)).rstrip("/")
            newest[run] = max(newest.get(run, 0), int(number))
    return newest


def make_marker(files: Mapping[str, Fingerprint]) -> bytes:
    """Returns the content of the marker of a step with these files."""
    return to_json({"files": {name: list(files[name]) for name in sorted(files)}}).encode()


def _read_marker(store: ObjectStore, step: str, objects: Mapping[str, Listed]) -> Files:
    """Returns the files of a step: those in its marker, or else those in the bucket."""
    try:
        files = json_object(store.read(f"{step}/{MARKER}") or b"")["files"]
        found = {str(name): Fingerprint(int(size), int(crc)) for name, (size, crc) in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        found = {
            name: Fingerprint(listed.size) for name, listed in objects.items() if name != MARKER
        }
    return {name: known for name, known in found.items() if not {"", ".."} & set(name.split("/"))}


def delete_step(store: ObjectStore, step: str) -> None:
    """Deletes a step of a workdir, the marker first."""
    store.delete([f"{step}/{MARKER}"])
    store.delete(store.list(step))


def files_in(folder: pathlib.Path) -> list[str]:
    """Returns the relative names of all files in a folder, sorted."""
    paths = (pathlib.Path(root, file) for root, _, files in os.walk(folder) for file in files)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def upload_folder(store: ObjectStore, folder: pathlib.Path) -> None:
    """Copies a folder into the bucket; steps in it get their markers last."""
    names = [name for name in files_in(folder) if name.rpartition("/")[2] != lease.NAME]
    steps: dict[str, Files] = {}
    is_marker = {name for name in names if (m := STEP.fullmatch(name)) and m[2] == MARKER}
    plain = [name for name in names if name not in is_marker]
    for name, found in zip(plain, store.map(lambda n: store.upload(n, folder / n), plain)):
        if match := STEP.fullmatch(name):
            steps.setdefault(match[1], {})[match[2]] = found
    for step, files in steps.items():
        store.write(f"{step}/{MARKER}", make_marker(files))


def find(path: str | pathlib.Path) -> LocalCopy | None:
    """Returns the local copy that contains a path, or None."""
    path = pathlib.Path(os.path.abspath(path))
    return next((_copies[each] for each in (path, *path.parents) if each in _copies), None)


@contextlib.contextmanager
def registered(copy: LocalCopy) -> Iterator[None]:
    """Context manager in which `find` returns a copy."""
    _copies[copy.folder] = copy
    try:
        yield
    finally:
        del _copies[copy.folder]


def open_folder(
    where: str | pathlib.Path, error: type[VitJaxError] = CheckpointError
) -> pathlib.Path:
    """Returns a local path unchanged, and for a URL the path in a local copy, which is fetched.

    Args:
      where: a path, or the URL of a workdir, stage, step or other folder in a bucket.
      error: type of the error if nothing has this URL.
    """
    if not is_url(where):
        return pathlib.Path(where)
    url = str(where).rstrip("/")
    step = re.search(rf"/(?:{layout.FOLDER}|{layout.BEST})(?:/\d+)?$", url)
    inner = step[0].strip("/") if step else ""
    store = ObjectStore(url.removesuffix(f"/{inner}") if inner else url)
    copy = LocalCopy(store, cache_folder("buckets") / store.subfolder)
    if not copy.fetch():
        raise error(f"{url}: no such object or folder.")
    _copies[copy.folder] = copy
    return copy.folder / inner


def url_of(path: str | pathlib.Path) -> str:
    """Returns the URL of a path in a local copy; any other path as text."""
    copy = find(path)
    return str(path) if copy is None else copy.store.address(copy.relative(path).removeprefix("."))


def publish(*paths: pathlib.Path) -> None:
    """Writes files of local copies to their buckets; other files are ignored."""
    for path in paths:
        if (copy := find(path)) is not None:
            copy.store.upload(copy.relative(path), path)


@contextlib.contextmanager
def destination(where: str, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Yields the path of a new file or folder, which is copied to WHERE if that is a URL.

    Args:
      where: a path, which is yielded unchanged, or a URL.
      overwrite: permits replacing a file in a bucket.

    Raises ConfigError if an object has the URL, or is below it.
    """
    if not is_url(where):
        yield pathlib.Path(where)
        return
    url, _, name = str(where).rstrip("/").rpartition("/")
    found = ObjectStore(where).list()
    if found and not (overwrite and list(found) == [""]):
        raise ConfigError(f"{where} exists; name a new file or folder, or give --overwrite.")
    folder = cache_folder("uploads")
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder) as temporary:
        yield temporary / name
        upload_folder(ObjectStore(url), temporary)


def complete(step_folder: pathlib.Path) -> None:
    """Copies the arrays of a step that are not in its local copy yet; ignores local workdirs."""
    if (copy := find(step_folder)) is not None:
        copy.complete(step_folder)
