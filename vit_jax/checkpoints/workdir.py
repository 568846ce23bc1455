"""The files of a run's folder, each written whole or not at all, and the lock on it."""

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
from vit_jax.atomic_io import write_whole
from vit_jax.config.schema import Config
from vit_jax.distributed import multihost
from vit_jax.errors import ConfigError, InUseError

CONFIG, SUMMARY, LOCK = "config.json", "summary.json", ".lock"
OF_SUMMARY = {"step": int, "metrics": dict, "flops": int | float, "seconds": dict}
GRID = "grid"  # The folder with the runs of a sweep's grid.
LOOKS = 0.5  # Seconds: whoever only looks who has the lock holds it for far less.
SHARED_WITHIN = 60  # Seconds: NFS keeps for so long in mind what was not there (acdirmax).


def write_json(path: pathlib.Path, values: dict) -> None:
    """Writes a JSON file whole or not at all."""
    write_whole(path, json.dumps(values, indent=2) + "\n")


def read_json(path: pathlib.Path) -> dict | None:
    """The file's contents, or None where there is no such file.

    Raises ConfigError for a file that is no JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no JSON object.")
    return values


def read_config(folder: pathlib.Path) -> dict[str, Config]:
    """The stages that `folder/config.json` holds; ConfigError where there is none."""
    values = read_json(folder / CONFIG)
    if values is None:
        raise ConfigError(f"{folder}: no {CONFIG} in it, so no run to go on with; give --config.")
    try:
        return config_lib.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from error


def read_summary(folder: pathlib.Path) -> dict | None:
    """What a finished run has written of itself; None before, and for a folder of several runs.

    Raises ConfigError for what no run writes.
    """
    found = read_json(folder / SUMMARY)
    if found is None or "step" not in found:
        return None
    for key, kind in OF_SUMMARY.items():
        if not isinstance(found.get(key), kind):
            value = repr(found.get(key))[:40]
            raise ConfigError(f"{folder / SUMMARY}: its {key} is {value}, which no run writes.")
    for name, value in found["metrics"].items():
        if not (value is None or isinstance(value, int | float)):
            raise ConfigError(f"{folder / SUMMARY}: its {name} is {value!r:.40}, no number.")
    return found


def refuse_other_run(folder: pathlib.Path, config: dict) -> None:
    """Raises ConfigError, naming the fields, if the folder holds a run with another config."""
    old = read_json(folder / CONFIG)
    if old is None:
        return
    with contextlib.suppress(ConfigError):  # What it differs in is told below.
        old = config_lib.to_dict(config_lib.from_dict(old))  # With fields that came since.
    fields = [
        name
        for name in config_lib.differing_fields(old, json.loads(json.dumps(config)))
        if not _is_free(name)
    ]
    if fields:
        raise ConfigError(
            f"workdir {folder} holds a run with another config; it differs in "
            f"{', '.join(fields)}. Use another --workdir, or leave these fields as they were."
        )


def _is_free(name: str) -> bool:
    parts = name.split(".")
    name = ".".join(parts[2:] if parts[0] == "stages" else parts)
    return any(name == free or name.startswith(f"{free}.") for free in config_lib.FREE_ON_RESUME)


def refuse_in_use(folder: pathlib.Path) -> None:
    """Raises InUseError if a live process holds the folder's lock; touches nothing."""
    if (folder / LOCK).is_file():
        with open(folder / LOCK) as file:
            _flock(file, fcntl.LOCK_SH, folder)


def _flock(file, kind: int, folder: pathlib.Path) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise InUseError(f"workdir {folder} is in use by {holder}.") from error


class Lock:
    """A context in which this process alone writes to the folder; a kill releases it.

    Raises InUseError that names the process which holds it.
    """

    def __init__(self, folder: pathlib.Path):
        self.path = folder / LOCK

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+")
        until = time.monotonic() + LOOKS
        while True:
            try:
                _flock(self._file, fcntl.LOCK_EX, self.path.parent)
                break
            except InUseError:
                if time.monotonic() > until:
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
def claim(folder: pathlib.Path):
    """A context in which process 0 holds the folder's lock, for all; they meet at its start.

    Raises InUseError, on all of them, where another run holds it, and ConfigError on a process
    that does not see the folder of process 0.
    """
    with contextlib.ExitStack() as held:
        with multihost.all_or_none(f"lock of {folder.name}", InUseError):
            if multihost.is_first():
                held.enter_context(Lock(folder))
        if not multihost.is_first():
            _await_shared(folder)
        yield


def _await_shared(folder: pathlib.Path) -> None:
    """Returns when the lock of process 0 is seen here."""
    until = time.monotonic() + SHARED_WITHIN
    while not (folder / LOCK).exists():
        if time.monotonic() > until:
            raise ConfigError(
                f"workdir {folder} is not that of process 0; all processes need the same folder, "
                "on a file system that they share."
            )
        time.sleep(0.1)


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run's numbers depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def git_revision() -> str | None:
    """The commit of the source tree, with a + where files differ; None outside of git."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
