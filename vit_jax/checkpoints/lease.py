"""Lease of a workdir in a bucket: an object that its holder renews, in place of a file lock.

The object is created with a condition (it must not exist), and holds the process, a random token
and a counter. A lease whose content has not changed for EXPIRES seconds, by the clock of the
process that waits, has been left by a dead process and is taken over. Clocks of hosts are never
compared. A lease of a dead process of this host is taken over at once.
"""

import dataclasses
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable

from vit_jax.atomic_io import json_object, to_json
from vit_jax.data.object_store import ObjectStore
from vit_jax.errors import CheckpointError, InUseError
from vit_jax.text import print_line

NAME = ".lock"  # As the lock file of a local workdir.
RENEWS = 20.0  # Seconds between two renewals.
EXPIRES = 75.0  # Seconds without a renewal after which a lease is taken over.
SETTLES = 2.0  # Seconds after which a process that took over looks whether it holds the lease.


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process as a lease describes it.

    `machine` is the boot and the process namespace, in which `process` is a number; a restarted
    container has the name of the old one and another namespace. It is empty if it is not known.
    """

    process: int
    started: str
    host: str
    machine: str

    @classmethod
    def this_process(cls) -> "Holder":
        return cls(os.getpid(), _start_time(os.getpid()), socket.gethostname(), _machine())

    @classmethod
    def from_lease(cls, content: bytes) -> "Holder":
        """Returns the holder in the content of a lease; of a foreign content, an unknown one."""
        try:
            values = json_object(content)
            return cls(
                int(values["process"]),
                *(str(values[name]) for name in ("started", "host", "machine")),
            )
        except (ValueError, KeyError, TypeError):
            return cls(0, "", "", "")

    @property
    def is_dead(self) -> bool:
        """True for a process of this machine that does not run any more."""
        if not self.machine or self.machine != _machine():
            return False
        return not self.started or _start_time(self.process) != self.started

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}" if self.host else "another process"


def _start_time(process: int) -> str:
    """Returns when a process was started, in the units of its system; '' if it does not run."""
    try:
        text = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]  # Field 22; the name may contain spaces.


def _machine() -> str:
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # Not Linux.
        return ""


def find_holder(store: ObjectStore) -> Holder | None:
    """Returns the process that holds the lease; None if there is no lease or its holder is dead.

    The lease of a dead process of another host is not detected.
    """
    content = store.read(NAME)
    holder = None if content is None else Holder.from_lease(content)
    return None if holder is None or holder.is_dead else holder


class Lease:
    """The lease of a workdir, renewed by a thread from `acquire` to `release`."""

    def __init__(self, store: ObjectStore, on_renewal: Callable[[], None] = lambda: None):
        """Changes nothing yet.

        Args:
          store: the workdir.
          on_renewal: called by the thread after each renewal.
        """
        self._store, self._on_renewal = store, on_renewal
        self._holder, self._token = Holder.this_process(), secrets.token_hex(8)
        self._count = 0
        self._error: Exception | None = None
        self._is_released = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Waits for an abandoned lease to expire, takes the lease, and starts to renew it.

        Raises InUseError if another process renews the lease.
        """
        while not (self._store.create(NAME, self._content()) or self._take_over()):
            pass  # Its holder has released it.
        self._thread.start()

    def _content(self) -> bytes:
        self._count += 1
        values = dataclasses.asdict(self._holder) | {"token": self._token, "count": self._count}
        return to_json(values).encode()

    def _take_over(self) -> bool:
        """Takes the lease of a dead process; returns False if it was released meanwhile."""
        seen = self._store.read(NAME)
        if seen is None:
            return False
        holder = Holder.from_lease(seen)
        if not holder.is_dead:
            print_line(
                f"{self._store.url} has the lease of {holder}; waiting {EXPIRES:g} s to see "
                "whether it is renewed"
            )
            deadline = time.monotonic() + EXPIRES
            while (left := deadline - time.monotonic()) > 0 and self._is_still(seen):
                time.sleep(min(left, RENEWS / 4))
        if not self._is_still(seen):  # Also if another process took it over while this one waited.
            return False
        self._store.write(NAME, self._content())
        time.sleep(SETTLES)
        self.check()
        return True

    def _is_still(self, seen: bytes) -> bool:
        """Returns False if the lease was released; raises InUseError if it was renewed."""
        content = self._store.read(NAME)
        if content not in (None, seen):
            self._refuse(content)
        return content is not None

    def _refuse(self, content: bytes) -> None:
        holder = Holder.from_lease(content)
        raise InUseError(
            f"workdir {self._store.url} is in use by {holder}; wait until it ends, or use another "
            "workdir."
        )

    def check(self) -> None:
        """Raises InUseError if another process has taken over the lease."""
        content = self._store.read(NAME)
        if f'"{self._token}"'.encode() not in (content or b""):
            self._error = InUseError(
                f"workdir {self._store.url} was taken over by {Holder.from_lease(content or b'')}, "
                f"because the lease of this process was not renewed for {EXPIRES:g} s; this "
                "process writes no more."
            )
            raise self._error

    def raise_if_lost(self) -> None:
        """Raises what the thread met: InUseError, or CheckpointError; makes no request."""
        if self._error is not None:
            raise self._error

    def _renew(self) -> None:
        while not self._is_released.wait(RENEWS):
            try:
                with self._writing:
                    if self._is_released.is_set():
                        return
                    self.check()
                    self._store.write(NAME, self._content())
                self._on_renewal()
            except (InUseError, CheckpointError) as error:
                self._error = error
                return

    def release(self) -> None:
        """Deletes the lease if this process holds it, and stops the thread."""
        self._is_released.set()
        if self._error is not None or self._thread.ident is None:
            return
        with self._writing:
            content = self._store.read(NAME)
            if content is not None and f'"{self._token}"'.encode() in content:
                self._store.delete([NAME])
