"""Writes a run to a workdir in a bucket: the run works in a local folder, a mirror copies it.

Each process of the run has its own local folder, and copies the files that it has written. A step
is copied after it is complete on disk: the files of all processes, then the marker. Files beside
the steps are copied before the marker, because a checkpoint needs its lines of `metrics.jsonl`, and
about once a minute.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator

from vit_jax.atomic_io import is_temporary
from vit_jax.checkpoints import layout, lease, local_copy, lock
from vit_jax.checkpoints.local_copy import MARKER, STEP, LocalCopy
from vit_jax.config.fields import expand_home
from vit_jax.data.object_store import Fingerprint, ObjectStore, cache_folder, is_url
from vit_jax.distributed import multihost
from vit_jax.errors import CheckpointError, ConfigError, InUseError, Note, VitJaxError

WAIT = 6 * 3600  # Seconds that processes wait for each other's files; the watchdog finds dead ones.
REFRESH = 3  # Renewals of the lease between two copies of the files beside the steps.
SMALL = 2**23  # Bytes of the largest file that is copied between renewals of the lease.
IN_MEMORY = 2**26  # Bytes of the largest file that is read before it is written: it may grow.
UNFINISHED = re.compile(r"\.orbax-checkpoint-tmp")


class Mirror(LocalCopy):
    """Local folder of one process of a run, whose changes are copied to the bucket."""

    is_mirror = True

    @property
    def has_own_folders(self) -> bool:
        """True if several processes write to local folders of their own."""
        return multihost.process_count() > 1

    def __init__(self, store: ObjectStore, folder: pathlib.Path, *, keeps_damaged: bool = False):
        """Changes nothing yet; the arguments are those of `LocalCopy`."""
        super().__init__(store, folder, keeps_damaged=keeps_damaged)
        self._lease = lease.Lease(store, self._refresh)
        self._renewals = 0
        self._sent: dict[str, tuple[int, int]] = {}  # Size and time of files beside the steps.
        self._sending = threading.Lock()  # An older version must not replace a newer one.
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "upload")
        self._uploads: dict[pathlib.Path, concurrent.futures.Future] = {}  # By folder of steps.

    def start(self) -> None:
        """Takes the lease and fetches the workdir; all processes of the run must call this.

        Raises InUseError on all processes if another run writes to the workdir, and CheckpointError
        if the bucket cannot be read.
        """
        with multihost.raise_on_all("lease", InUseError):
            if multihost.is_process_0():
                self._check_folder()
                self._lease.acquire()
        with multihost.raise_on_all("fetched", CheckpointError):
            objects = self.fetch()
        self._sent = {name: self._state(name) for name in self._others()}
        if multihost.is_process_0():  # What killed processes have left.
            for step in local_copy.by_step(objects).keys() - self.steps.keys():
                local_copy.delete_step(self.store, step)

    def _check_folder(self) -> None:
        """Raises InUseError if a run of this machine works in the local folder."""
        try:
            lock.check_not_in_use(self.folder)
        except InUseError as error:
            message = str(error).replace(str(self.folder), self.store.url)
            raise InUseError(message) from error

    def complete(self, step_folder: pathlib.Path) -> None:
        """Copies what the local folder of a step lacks; waits until the step is in the bucket."""
        self.wait(step_folder.parent)
        super().complete(step_folder)

    def submit(self, step_folder: pathlib.Path, wait_until_saved: Callable[[], None]) -> None:
        """Copies a step in the background; all processes must call this in the same order.

        Args:
          step_folder: folder of the step.
          wait_until_saved: returns when the folder is complete on disk.
        """

        def upload() -> None:
            try:
                wait_until_saved()
            except Exception:  # Reported by the thread that saves.
                return
            if multihost.is_process_0():
                self._lease.check()
            try:
                self._upload(step_folder)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error} The step is complete in {step_folder}; the same command continues "
                    f"from the last step in {self.store.url}."
                ) from error

        self._uploads[step_folder.parent] = self._executor.submit(upload)

    def _upload(self, step_folder: pathlib.Path) -> None:
        step, is_writer = self.relative(step_folder), multihost.is_process_0()
        if is_writer:
            self._send()
            if self.store.list(step):  # An earlier version of the step.
                local_copy.delete_step(self.store, step)
        names = [name for name in local_copy.files_in(step_folder) if name != MARKER]
        lists = multihost.allgather_json(f"files of {step}", names, WAIT)
        before = set().union(*lists[: multihost.process_index()])
        own = [name for name in names if name not in before]  # Others wrote the same files.
        sent = dict(
            zip(
                own,
                self.store.map(lambda n: self.store.upload(f"{step}/{n}", step_folder / n), own),
            )
        )
        parts = multihost.allgather_json(f"copies of {step}", sent, WAIT)
        files = {name: Fingerprint(*found) for part in parts for name, found in part.items()}
        if is_writer:
            self._check_is_there(step, files)
            self._lease.check()
            self.store.write(f"{step}/{MARKER}", local_copy.make_marker(files))
        multihost.allgather_json(f"marker of {step}", None, WAIT)
        self.steps[step] = files
        if not self.has_own_folders:
            self._complete.add(step)
        self._delete_removed_steps(is_writer)

    def _check_is_there(self, step: str, files: dict[str, Fingerprint]) -> None:
        listed = self.store.list(step)
        for name, expected in files.items():
            found = listed.get(f"{step}/{name}")
            if found is None or found.size != expected.size:
                size = "missing" if found is None else f"{found.size} bytes"
                raise CheckpointError(
                    f"{self.store.address(f'{step}/{name}')} is {size} after it was written; "
                    f"expected {expected.size} bytes."
                )

    def _delete_removed_steps(self, is_writer: bool) -> None:
        """Deletes the steps that retention has removed from the local folder."""
        for step in [step for step in self.steps if not (self.folder / step).is_dir()]:
            if is_writer:
                self._lease.check()
                local_copy.delete_step(self.store, step)
            del self.steps[step]

    def _others(self) -> list[str]:
        """Returns the names of the local files beside the steps."""
        names = []
        for root, folders, files in os.walk(self.folder):
            path = pathlib.Path(root)
            folders[:] = [name for name in folders if name not in (layout.FOLDER, layout.BEST)]
            names += [(path / file).relative_to(self.folder).as_posix() for file in files]
        return [
            name
            for name in sorted(names)
            if name.rpartition("/")[2] != lock.LOCK
            and STEP.fullmatch(name) is None
            and not is_temporary(pathlib.Path(name))
            and not UNFINISHED.search(name)
        ]

    def _state(self, name: str) -> tuple[int, int]:
        status = (self.folder / name).stat()
        return status.st_size, status.st_mtime_ns

    def _send_others(self, largest: int | None = None) -> None:
        """Copies the files beside the steps that have changed, up to a size in bytes."""

        def send(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):  # Replaced meanwhile.
                state = self._state(name)
                if state == self._sent.get(name) or state[0] > (largest or state[0]):
                    return
                path = self.folder / name
                if state[0] <= IN_MEMORY:
                    self.store.write(name, path.read_bytes())
                else:
                    self.store.upload(name, path)
                self._sent[name] = state

        self.store.map(send, self._others())

    def _send(self) -> None:
        """Copies all files beside the steps that have changed."""
        with self._sending:
            self._send_others()

    def _refresh(self) -> None:
        """Copies small files beside the steps, so that a run can be watched."""
        self._renewals += 1
        if self._renewals % REFRESH == 0 and self._sending.acquire(blocking=False):
            try:
                self._send_others(SMALL)
            finally:
                self._sending.release()

    def raise_if_failed(self) -> None:
        """Raises the error of a copy that has failed, or of a lost lease; does not wait."""
        self._lease.raise_if_lost()
        for upload in self._uploads.values():
            if upload.done():
                upload.result()

    def wait(self, folder: pathlib.Path | None = None) -> None:
        """Waits until all steps, or those of a folder, are in the bucket; raises their errors."""
        for path, upload in self._uploads.items():
            if folder in (None, path):
                upload.result()

    def finish(self) -> None:
        """Copies everything that is left, after which the local folder is not needed any more."""
        self.wait()
        if multihost.is_process_0():
            self._lease.check()
            self._send()

    def close(self) -> None:
        """Waits for copies in progress and releases the lease; raises no error of the bucket."""
        self._executor.shutdown()
        if multihost.is_process_0():
            with contextlib.suppress(VitJaxError):  # The lease then expires.
                self._lease.release()


@contextlib.contextmanager
def local_folder(
    workdir: str | pathlib.Path, scratch: str | None = None, *, keeps_damaged: bool = False
) -> Iterator[pathlib.Path]:
    """Yields the folder in which a run works; for a URL, changes of it are copied to the bucket.

    The local folder of a run in a bucket is removed after the block, and kept after an error, for
    a resumed run on the same machine.

    Args:
      workdir: a path, which is yielded, or a URL.
      scratch: folder for the local folders of workdirs in buckets; None for the cache.
      keeps_damaged: as in `LocalCopy`.

    Raises ConfigError for a `scratch` that has no effect, and the errors of `Mirror`.
    """
    if not is_url(workdir):
        if scratch is not None:
            raise ConfigError(f"--scratch has no effect: workdir {workdir} is not in a bucket.")
        yield pathlib.Path(expand_home(str(workdir)))
        return
    store = ObjectStore(str(workdir))
    root = cache_folder("workdirs") if scratch is None else pathlib.Path(expand_home(scratch))
    process = f"process_{multihost.process_index()}"  # Of one machine, or of several.
    mirror = Mirror(store, root / process / store.subfolder, keeps_damaged=keeps_damaged)
    with local_copy.registered(mirror):
        try:
            mirror.start()
            mirror.folder.mkdir(parents=True, exist_ok=True)
            with _finishing(mirror):
                yield mirror.folder
        finally:
            mirror.close()
    shutil.rmtree(mirror.folder, ignore_errors=True)


@contextlib.contextmanager
def _finishing(mirror: Mirror) -> Iterator[None]:
    """Copies what is left at the end of the block, also after an error if it is possible."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, InUseError | ConfigError):
            try:
                mirror.finish()
            except VitJaxError as failure:
                if str(failure) not in str(error):
                    error.add_note(Note(f"{mirror.store.url} lacks the last changes: {failure}"))
        if str(mirror.folder) in str(error):
            error.add_note(Note(f"{mirror.folder} is the local copy of {mirror.store.url}."))
        raise
    mirror.finish()


class NoMirror:
    """Takes the place of a `Mirror` for a local workdir: nothing is copied."""

    has_own_folders = False

    def submit(self, step_folder: pathlib.Path, wait_until_saved: Callable[[], None]) -> None:
        pass

    def raise_if_failed(self) -> None:
        pass

    def wait(self, folder: pathlib.Path | None = None) -> None:
        pass


def mirror_of(folder: pathlib.Path) -> Mirror | NoMirror:
    """Returns the mirror whose local folder contains a folder."""
    copy = local_copy.find(folder)
    return copy if isinstance(copy, Mirror) else NoMirror()
