"""Watchdog thread that ends all processes of a run when one of them fails or dies.

JAX has a heartbeat of its own, which is kept as a second line of defence: when it fires, each
process is aborted with a stack trace and exit code 134, and no message says which process died.
JAX can continue instead only in an experimental mode (`jax_enable_recoverability`).
"""

import contextlib
import itertools
import json
import os
import sys
import threading
import time

from vit_jax.atomic_io import to_json
from vit_jax.errors import HostError
from vit_jax.text import warn

HEARTBEAT_TIMEOUT = 60  # Seconds without a heartbeat after which a process counts as dead.
CHECKS = 4  # Number of times per HEARTBEAT_TIMEOUT that process 0 checks all heartbeats.
EXIT_TIMEOUT = 3  # Seconds that a failing process waits for the others to read its message.
SUCCESS = "success"  # Outcome of a run without a failure.


def global_state():
    """Returns JAX's distributed state: the client, process index and number of processes."""
    from jax._src import distributed  # The coordination service has no public interface.

    return distributed.global_state


class Watchdog:
    """Thread that sends heartbeats and ends this process when another one fails or dies.

    Process 0 checks the heartbeats of all. The first failure is published as the outcome of the run
    in JAX's key-value store; every process prints or reads it there and exits with its exit code.
    """

    def __init__(self, timeout: int, heartbeat_timeout: float, run: int = 0, grace: float = 0):
        """Starts the thread.

        Args:
          timeout: seconds to wait at a barrier.
          heartbeat_timeout: seconds without a heartbeat after which a process counts as dead.
          run: number of the run among those of this process, the same in all processes.
          grace: seconds to wait for `release` after a failure of another process.
        """
        state = global_state()
        self.client, self.index, self.count = state.client, state.process_id, state.num_processes
        self.timeout, self._heartbeat_timeout, self._grace = timeout, heartbeat_timeout, grace
        self.prefix = f"vit_jax/{run}"  # Of the keys of this run in JAX's key-value store.
        self._outcome, self._heartbeat = f"{self.prefix}/outcome", f"{self.prefix}/heartbeats"
        self._is_stopped, self._exit_lock = False, threading.Lock()
        self._released = threading.Event()
        # Last heartbeat of each process, and the number of checks since it changed.
        self._heartbeats = dict.fromkeys(range(self.count), ("", 0))
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        wait_ms = int(self._heartbeat_timeout / CHECKS * 1000)
        for heartbeat in itertools.count():
            key = f"{self._heartbeat}/{self.index}"
            try:
                self.client.key_value_set(key, str(heartbeat), allow_overwrite=True)
                if self.index == 0:
                    self._check_heartbeats()
                outcome = self.client.blocking_key_value_get(self._outcome, wait_ms)
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue  # No outcome yet.
                if not self._is_stopped:
                    message = "process 0 cannot be reached; all processes exit."
                    self.exit_all(message, HostError.exit_code)
                return
            if outcome == SUCCESS or self._released.wait(self._grace):
                return
            if self._exit_lock.acquire(blocking=False):
                self._exit(json.loads(outcome))
            return

    def _check_heartbeats(self) -> None:
        # Checks are counted instead of seconds: after a suspended machine wakes up, no process
        # counts as dead.
        current = dict(self.client.key_value_dir_get(self._heartbeat))
        for i, (previous, num_checks) in self._heartbeats.items():
            heartbeat = current.get(f"{self._heartbeat}/{i}", "")
            self._heartbeats[i] = (heartbeat, num_checks + 1 if heartbeat == previous else 0)
        dead = [i for i, (_, num_checks) in self._heartbeats.items() if num_checks > CHECKS]
        if dead:
            self.exit_all(
                f"no heartbeat for {self._heartbeat_timeout:g} s from process "
                f"{', '.join(map(str, dead[:8]))} of {self.count}; all processes exit.",
                HostError.exit_code,
            )

    def exit_all(self, message: str, code: int) -> None:
        """Ends all processes with an exit code; the message of the first caller is printed."""
        self._exit_lock.acquire()  # Never released: only one thread may end the process.
        self._is_stopped = True
        failure = {"process": self.index, "message": message, "code": code}
        try:
            self.client.key_value_set(self._outcome, to_json(failure))
            warn(f"vit_jax: {message}")
        except RuntimeError as error:
            if "ALREADY_EXISTS" in str(error):
                failure = json.loads(self.client.key_value_try_get(self._outcome))
            else:  # Process 0, which all others are connected to, is gone.
                warn(f"vit_jax: {message}")
        self._exit(failure)

    def release(self, message: str, code: int) -> None:
        """Stops the thread after an error in this process, and ends the others.

        The caller raises the error. Others that raise one within `grace` seconds are not ended.
        """
        self._is_stopped = True
        self._released.set()
        failure = {"process": self.index, "message": message, "code": code}
        with contextlib.suppress(RuntimeError):  # Another process has failed first.
            self.client.key_value_set(self._outcome, to_json(failure))
        self._thread.join()

    def _exit(self, failure: dict) -> None:
        if self.index == 0 and failure["process"] != 0:  # Users read the log of process 0 first.
            warn(f"vit_jax: process {failure['process']}: {failure['message']}")
        with contextlib.suppress(RuntimeError):
            self.client.wait_at_barrier("vit_jax/exit", EXIT_TIMEOUT * 1000)
        if self.index == 0:
            time.sleep(0.5)  # JAX aborts processes that outlive process 0.
        exit_now(failure["code"])

    def stop(self) -> None:
        """Stops the thread; all processes must call this."""
        self._is_stopped = True
        if self.index == 0:
            self.client.key_value_set(self._outcome, SUCCESS)
        self._thread.join()


def exit_now(code: int) -> None:
    """Ends this process at once; a normal exit would wait for processes that are gone."""
    with contextlib.suppress(OSError):  # Closed, or on a full disk.
        sys.stdout.flush()
    os._exit(code)
