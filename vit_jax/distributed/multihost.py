"""Several processes as one run: how they meet, agree, and end together.

Each process runs the same program on its own devices (JAX's multi-controller runtime), and
process 0 alone writes and prints. A process that fails tells the others why, and all end with
its exit code; one that dies without a word is missed after `SILENCE` seconds.
"""

import collections
import contextlib
import functools
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from vit_jax.errors import ConfigError, HostError, VitJaxError

TIMEOUT = 300  # Seconds to meet, at the start or at a barrier: JAX's own for the start.
SILENCE = 60  # Seconds without a sign of life that make a process count as dead.
LOOKS = 4  # Of process 0 at the others, in that time.
PARTING = 3  # Seconds that a process which fails waits for the others to hear of it.
ENDED, ALIVE = "vit_jax/ended", "vit_jax/alive"  # Keys at the coordination service.
FINE = "fine"  # What stands at ENDED after a run that went well.


def start(how: dict | None, timeout: int = TIMEOUT) -> None:
    """Joins the other processes, before any device is used; does nothing for None.

    Args:
      how: what `launchers.find` has found.
      timeout: seconds to wait for the others, here and at every barrier.

    Where they do not come, the process ends in one line: JAX itself would crash.
    """
    if how is None:
        return
    import jax

    _refuse_port_in_use(how)
    # JAX's handler of SIGTERM is for itself; ours has the run saved, see `interrupts`.
    jax.config.update("jax_enable_preemption_service", False)
    silence = min(SILENCE, timeout)
    alarm = threading.Timer(timeout, _give_up_meeting, [timeout])
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            **how,
            initialization_timeout=2 * timeout,
            heartbeat_timeout_seconds=2 * (silence + PARTING),  # Ours comes first, in one line.
            shutdown_timeout_seconds=timeout,
        )
    except (RuntimeError, ValueError) as error:
        where = _state().coordinator_address or "the coordinator"
        raise HostError(f"cannot start the runtime at {where}: {_one_line(error)}") from error
    finally:
        alarm.cancel()
    global _watch
    _watch = _Watch(timeout, silence)


def _refuse_port_in_use(how: dict) -> None:
    """Raises ConfigError where process 0 could not listen; JAX would end in a fault."""
    address = how.get("coordinator_address")
    if how.get("process_id") != 0 or not address:
        return
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--coordinator={address}: process 0 cannot listen there ({error})."
        ) from error


def _state():
    from jax._src import distributed  # JAX has no public way to its coordination service.

    return distributed.global_state


def _give_up_meeting(timeout: int) -> None:
    state = _state()
    _say(
        f"vit_jax: process {state.process_id} has not met the others at "
        f"{state.coordinator_address} within {timeout} s; were all processes started, and can "
        "that address be reached from here?"
    )
    _exit(HostError.exit_code)


class _Watch:
    """Ends this process when another has failed, or has not been heard of for too long."""

    def __init__(self, timeout: int, silence: float):
        state = _state()
        self.client, self.index, self.count = state.client, state.process_id, state.num_processes
        self.timeout, self._silence = timeout, silence
        self._is_over, self._ending = False, threading.Lock()
        self._heard = dict.fromkeys(range(self.count), ("", 0))  # Beat, and looks since.
        self._thread = threading.Thread(target=self._run, name="hosts", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for beat in itertools.count():
            try:
                self.client.key_value_set(f"{ALIVE}/{self.index}", str(beat), allow_overwrite=True)
                if self.index == 0:
                    self._look_for_silent()
                word = self.client.blocking_key_value_get(ENDED, int(self._silence / LOOKS * 1000))
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue  # Nobody has ended.
                if not self._is_over:
                    self.end("process 0 is gone; all processes end.", HostError.exit_code)
                return
            if word != FINE and self._ending.acquire(blocking=False):
                self._part(json.loads(word))
            return

    def _look_for_silent(self) -> None:
        # Looks are counted, not seconds: a machine that was suspended has missed nobody.
        beats = dict(self.client.key_value_dir_get(ALIVE))
        for i, (last, looks) in self._heard.items():
            beat = beats.get(f"{ALIVE}/{i}", "")
            self._heard[i] = (beat, looks + 1 if beat == last else 0)
        silent = [i for i, (_, looks) in self._heard.items() if looks > LOOKS]
        if silent:
            self.end(
                f"no sign of life for {self._silence:g} s from process "
                f"{', '.join(map(str, silent[:8]))} of {self.count}; all processes end.",
                HostError.exit_code,
            )

    def end(self, line: str, code: int) -> None:
        """Ends all processes; the first to call it is the one that is told of."""
        self._ending.acquire()  # For good: of two threads that end, one is enough.
        self._is_over = True
        word = {"process": self.index, "line": line, "code": code}
        try:
            self.client.key_value_set(ENDED, json.dumps(word))
            _say(f"vit_jax: {line}")
        except RuntimeError as error:
            if "ALREADY_EXISTS" in str(error):
                word = json.loads(self.client.key_value_try_get(ENDED))
            else:  # Process 0, with which all are connected, is gone.
                _say(f"vit_jax: {line}")
        self._part(word)

    def _part(self, word: dict) -> None:
        if self.index == 0 and word["process"] != 0:  # Where people look first.
            _say(f"vit_jax: process {word['process']}: {word['line']}")
        with contextlib.suppress(RuntimeError):
            self.client.wait_at_barrier("vit_jax/parting", PARTING * 1000)
        if self.index == 0:
            time.sleep(0.5)  # Those that lose process 0 before they end are aborted by JAX.
        _exit(word["code"])

    def stop(self) -> None:
        """Returns when nobody is watched any more; all processes call it."""
        self._is_over = True
        if self.index == 0:
            self.client.key_value_set(ENDED, FINE)
        self._thread.join()


_watch: _Watch | None = None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _exit(code: int) -> None:
    """At once: an orderly exit would wait for processes that are gone."""
    sys.stdout.flush()
    os._exit(code)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def leave(line: str, code: int) -> None:
    """Ends all processes of the run, this one having failed; returns if it is alone.

    The line of the first that fails is told, by it and by process 0; all exit with its code.
    """
    if _watch is not None:
        _watch.end(line, code)


def finish() -> None:
    """Waits, at the end of a run that went well, until all processes are there."""
    global _watch
    if _watch is not None:
        barrier("end")
        _watch.stop()
        _watch = None


def is_lost(error: BaseException) -> bool:
    """Whether an error is what the devices of one process raise when another has died."""
    import jax

    return _watch is not None and isinstance(error, jax.errors.JaxRuntimeError)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return _watch is None or _watch.index == 0


def barrier(name: str) -> None:
    """Returns when all processes are here; raises HostError that names the missing."""
    if _watch is None:
        return
    try:
        _watch.client.wait_at_barrier(f"vit_jax/{name}", _watch.timeout * 1000)
    except RuntimeError as error:
        missing = re.search(r"timed out task names:\s*(\S[^\n]*)", str(error))
        who = f"process {missing[1]} of {_watch.count} is missing" if missing else _one_line(error)
        raise HostError(f"barrier {name!r}: {who} after {_watch.timeout} s.") from error


_exchanges = collections.Counter()


def exchange(name: str, value) -> list:
    """What every process has to say, as JSON, in their order; all of them call it."""
    if _watch is None:
        return [value]
    key = f"vit_jax/{name}/{_exchanges[name]}"
    _exchanges[name] += 1
    _watch.client.key_value_set(f"{key}/{_watch.index}", json.dumps(value))
    barrier(name)
    said = dict(_watch.client.key_value_dir_get(f"{key}/"))
    return [json.loads(said[f"{key}/{i}"]) for i in range(_watch.count)]


def from_first(name: str, find: Callable):
    """What `find` returns on process 0, on all; the others do not call it."""
    return exchange(name, find() if is_first() else None)[0]


@contextlib.contextmanager
def all_or_none(name: str, kind: type[VitJaxError]):
    """A context whose errors are raised on all processes if they are on any."""
    error = None
    try:
        yield
    except kind as raised:
        error = raised
    said = exchange(name, error and str(error))
    if error:
        raise error
    for line in filter(None, said):
        raise kind(line)


def refuse_difference(what: str, value) -> None:
    """Raises ConfigError where a process has another value than process 0."""
    said = exchange(what, value)
    others = [str(i) for i, other in enumerate(said) if other != said[0]]
    if others:
        raise ConfigError(f"process {', '.join(others[:8])} has another {what} than process 0.")


def tell(*values: int):
    """What all processes say along with a step: an array P N, some rows of which are zeros.

    It is made by the devices, in the order of their programs, so that reading it costs no more
    than waiting for the step, and all processes read the same at the same place.
    """
    if _watch is None:
        return np.array([values], np.int32)
    import jax

    sharding, gather = _gatherer()
    rows = np.zeros((jax.local_device_count(), len(values)), np.int32)
    rows[0] = values
    return gather(jax.make_array_from_process_local_data(sharding, rows))


@functools.cache
def _gatherer():
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("device",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    gather = jax.jit(lambda rows: rows, out_shardings=everywhere)
    return NamedSharding(mesh, PartitionSpec("device")), gather
