"""Files of a workdir, each written atomically, and the lock of a workdir."""

import contextlib
import fcntl
import json
import os
import pathlib
import platform
import socket
import subprocess
import time
from importlib import metadata

from vit_jax import config as config_lib
from vit_jax.atomic_io import write_atomically
from vit_jax.config.schema import Config
from vit_jax.distributed import multihost
from vit_jax.errors import ConfigError, InUseError

CONFIG, SUMMARY, LOCK = "config.json", "summary.json", ".lock"
SUMMARY_FIELDS = {"step": int, "metrics": dict, "flops": int | float, "seconds": dict}
GRID = "grid"  # Folder of the runs of a sweep's grid.
# Seconds to retry to lock: `check_not_in_use` of another process holds the lock for far less.
LOCK_TIMEOUT = 0.5
# Seconds to wait for the lock file of process 0: NFS caches missing files for 60 s (acdirmax).
SHARED_FOLDER_TIMEOUT = 60


def write_json(path: pathlib.Path, values: dict) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def read_json(path: pathlib.Path) -> dict | None:
    """Returns the JSON object of a file, or None if the file does not exist.

    Raises ConfigError if the file contains no JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} does not contain a JSON object.")
    return values


def read_config(folder: pathlib.Path) -> dict[str, Config]:
    """Returns the stages of `folder/config.json`; raises ConfigError if it does not exist."""
    values = read_json(folder / CONFIG)
    if values is None:
        raise ConfigError(
            f"{folder} contains no {CONFIG}, so there is no run to resume; give --config."
        )
    try:
        return config_lib.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from error


def read_summary(folder: pathlib.Path) -> dict | None:
    """Returns the summary of a finished run.

    Returns None for an unfinished run, and for a folder of several runs.

    Raises:
      ConfigError: a field has a wrong type, so the file was not written by a run.
    """
    summary = read_json(folder / SUMMARY)
    if summary is None or "step" not in summary:
        return None
    for key, kind in SUMMARY_FIELDS.items():
        if not isinstance(summary.get(key), kind):
            value = repr(summary.get(key))[:40]
            raise ConfigError(
                f"{folder / SUMMARY}: {key} is {value}; the file was not written by a run."
            )
    for name, value in summary["metrics"].items():
        if not (value is None or isinstance(value, int | float)):
            raise ConfigError(f"{folder / SUMMARY}: {name} is {value!r:.40}; expected a number.")
    return summary


def check_same_run(folder: pathlib.Path, config: dict) -> None:
    """Raises ConfigError that lists the fields in which the folder's run has another config."""
    old = read_json(folder / CONFIG)
    if old is None:
        return
    with contextlib.suppress(ConfigError):  # The error below lists the differing fields.
        # Adds fields that later versions have added.
        old = config_lib.to_dict(config_lib.from_dict(old))
    fields = [
        name
        for name in config_lib.differing_fields(old, json.loads(json.dumps(config)))
        if not _may_change(name)
    ]
    if fields:
        raise ConfigError(
            f"workdir {folder} contains a run with another config; it differs in "
            f"{', '.join(fields)}. Use another --workdir, or do not change these fields."
        )


def _may_change(name: str) -> bool:
    parts = name.split(".")
    name = ".".join(parts[2:] if parts[0] == "stages" else parts)
    return any(name == free or name.startswith(f"{free}.") for free in config_lib.FREE_ON_RESUME)


def check_not_in_use(folder: pathlib.Path) -> None:
    """Raises InUseError if a running process has locked the folder; changes nothing."""
    if (folder / LOCK).is_file():
        with open(folder / LOCK) as file:
            _flock(file, fcntl.LOCK_SH, folder)


def _flock(file, mode: int, folder: pathlib.Path) -> None:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise InUseError(
            f"workdir {folder} is in use by {holder}; wait until it ends, or use another workdir."
        ) from error


class Lock:
    """Context manager that locks a folder, so that only this process writes to it.

    The operating system releases the lock when the process ends, also when it is killed. Raises
    InUseError that names the process which has locked the folder.
    """

    def __init__(self, folder: pathlib.Path):
        self.path = folder / LOCK

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+")
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
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        return self

    def __exit__(self, *_):
        self._file.close()


@contextlib.contextmanager
def lock_on_all(folder: pathlib.Path):
    """Context manager that locks a folder for all processes of the run; all must enter it.

    Process 0 holds the lock.

    Raises:
      InUseError: another run has locked the folder; raised on all processes.
      ConfigError: this process does not see the folder of process 0.
    """
    with contextlib.ExitStack() as stack:
        with multihost.raise_on_all(f"lock of {folder.name}", InUseError):
            if multihost.is_process_0():
                stack.enter_context(Lock(folder))
        if not multihost.is_process_0():
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


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect the numbers of a run."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def git_revision() -> str | None:
    """Returns the git commit of the source tree, with a + if files differ; None outside git."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
