"""Lock of a workdir: only one run writes to it."""

import contextlib
import fcntl
import os
import pathlib
import socket
import time

from vit_jax.atomic_io import add_path_to_errors, open_to_append
from vit_jax.checkpoints import lease, local_copy, workdir
from vit_jax.distributed import multihost
from vit_jax.errors import ConfigError, InUseError

LOCK = ".lock"
# Seconds to retry to lock: `check_not_in_use` of another process holds the lock for far less.
LOCK_TIMEOUT = 0.5
# Seconds to wait for the lock file of process 0: NFS caches missing files for 60 s (acdirmax).
SHARED_FOLDER_TIMEOUT = 60


def check_not_in_use(folder: pathlib.Path) -> None:
    """Raises InUseError if a running process has locked the folder; changes nothing.

    A workdir in a bucket that has a lease counts as locked: its holder is a running process, or one
    of another host that was killed.
    """
    copy = local_copy.find(folder)
    is_unfinished = not (folder / workdir.SUMMARY).exists()
    if copy is not None and not copy.is_mirror and is_unfinished:
        holder = lease.find_holder(copy.store)
        if holder is not None:
            raise in_use_error(copy.store.url, holder)
    if (folder / LOCK).is_file():
        with open(folder / LOCK, encoding="utf-8") as file:
            _flock(file, fcntl.LOCK_SH, folder)


def _flock(file, mode: int, folder: pathlib.Path) -> None:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise in_use_error(folder, holder) from error


def in_use_error(folder: object, holder: object) -> InUseError:
    """Returns the error of a workdir, or its URL, that another process is writing to."""
    return InUseError(
        f"workdir {folder} is in use by {holder}; wait until it ends, or use another workdir."
    )


class Lock:
    """Context manager that locks a folder, so that only this process writes to it.

    The operating system releases the lock when the process ends, also when it is killed. Raises
    InUseError that names the process which has locked the folder.
    """

    def __init__(self, folder: pathlib.Path):
        self.path = folder / LOCK

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_to_append(self.path, "a+", buffering=1)
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                _flock(self._file, fcntl.LOCK_EX, self.path.parent)
                break
            except InUseError:
                if time.monotonic() > deadline:
                    self._file.close()
                    raise
                time.sleep(0.05)
        with add_path_to_errors(self.path):
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        return self

    def __exit__(self, *_):
        self._file.close()


@contextlib.contextmanager
def lock_on_all(folder: pathlib.Path):
    """Context manager that locks a folder for all processes of the run; all must enter it.

    Process 0 holds the lock. The others wait for it, unless each process has its own local copy of
    a workdir in a bucket.

    Raises:
      InUseError: another run has locked the folder; raised on all processes.
      ConfigError: this process does not see the folder of process 0.
    """
    with contextlib.ExitStack() as stack:
        with multihost.raise_on_all(f"lock of {folder.name}", InUseError):
            if multihost.is_process_0():
                stack.enter_context(Lock(folder))
        if not multihost.is_process_0() and local_copy.find(folder) is None:
            _wait_for_lock_file(folder)
        yield


def _wait_for_lock_file(folder: pathlib.Path) -> None:
    """Waits until the lock file of process 0 is visible to this process."""
    deadline = time.monotonic() + SHARED_FOLDER_TIMEOUT
    while not (folder / LOCK).exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"workdir {folder} is not the folder of process 0; all processes need the same "
                "folder on a shared file system."
            )
        time.sleep(0.1)
