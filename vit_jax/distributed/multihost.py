"""Several processes as one run: start, communication and common exit.

Each process runs the same program on its own devices (JAX's multi-controller runtime); only
process 0 writes files and prints. A program calls `connect` before it uses a device; a run is
`attached` to the runtime. Without them, all functions work for a single process.

The functions on JSON values use JAX's key-value store instead of
`jax.experimental.multihost_utils`: they accept values of any size, work before the devices are
used, and name the missing processes after a timeout.
"""

import collections
import contextlib
import functools
import itertools
import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np

from vit_jax.atomic_io import to_json
from vit_jax.distributed import watchdog
from vit_jax.distributed.cluster import FLAGS, Cluster, detect_cluster
from vit_jax.distributed.dialects import PORT
from vit_jax.errors import ConfigError, HostError, Interrupted, VitJaxError, one_line, raised
from vit_jax.text import print_line, warn

TIMEOUT = 300  # Seconds to wait for other processes, at the start and at barriers; JAX's default.

_watchdog: watchdog.Watchdog | None = None  # None for a run of one process.
_runs = itertools.count()  # Numbers of the runs of this process; the keys of a run contain it.


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = TIMEOUT,
) -> None:
    """Connects this process to the others of its run; call it before any device is used.

    What is not given is read from the variables of SLURM, Open MPI, Kubernetes, SkyPilot or a TPU
    slice (docs/hosts.md). Without any, this is a run of one process. If JAX's distributed runtime
    is initialised already, by the program or by Ray, nothing is started.

    If the others do not connect in time, the process exits with one line and exit code 6.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes.
      process_id: index of this process, from 0.
      timeout: seconds to wait for the others.

    Raises:
      ConfigError: a value is missing or invalid, or contradicts another one or a runtime that is
        initialised already; or process 0 cannot listen at its port.
      HostError: JAX's distributed runtime cannot be started.
    """
    import jax

    if jax.distributed.is_initialized():
        _check_runtime(coordinator, num_processes, process_id)
        return
    cluster = detect_cluster(coordinator, num_processes, process_id)
    if cluster is None:
        return
    _start_runtime(cluster, timeout)
    if cluster.process_id == 0:
        address = watchdog.global_state().coordinator_address
        print_line(
            f"{cluster.num_processes} processes ({cluster.source}); process 0 is at {address}"
        )


def _check_runtime(*flags: str | int | None) -> None:
    """Raises ConfigError if a flag differs from the runtime that is initialised already."""
    state = watchdog.global_state()
    values = (state.coordinator_address, state.num_processes, state.process_id)
    for flag, given, value in zip(FLAGS, flags, values):
        if given is not None and given != value:
            raise ConfigError(
                f"{flag}={given} contradicts JAX's distributed runtime, which is initialised "
                f"already with {value}; leave the flag out."
            )


def _start_runtime(cluster: Cluster, timeout: int) -> None:
    """Initialises JAX's distributed runtime."""
    import jax

    _check_port_is_free(cluster)
    # JAX's handler of SIGTERM would replace `signals.SignalRecorder` between runs, and a process
    # would ignore the signal.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(timeout, _exit_unconnected, [timeout])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **cluster.jax_arguments(),
            initialization_timeout=2 * timeout,
            # Twice as long as our watchdog takes, whose error is one line.
            heartbeat_timeout_seconds=2 * (_heartbeat_timeout(timeout) + watchdog.EXIT_TIMEOUT),
            shutdown_timeout_seconds=timeout,
        )
    except (RuntimeError, ValueError) as error:
        address = watchdog.global_state().coordinator_address or "the coordinator"
        raise HostError(f"cannot start JAX's runtime at {address}: {one_line(error)}") from error
    finally:
        timer.cancel()


def _heartbeat_timeout(timeout: int) -> int:
    return min(watchdog.HEARTBEAT_TIMEOUT, timeout)


def _check_port_is_free(cluster: Cluster) -> None:
    """Raises ConfigError if process 0 cannot listen at its port; JAX would crash."""
    if cluster.process_id != 0 or not cluster.coordinator:
        return
    try:
        socket.create_server(("", int(cluster.coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen at {cluster.coordinator} ({error}); choose a free port, with "
            f"--coordinator=HOST:PORT or {PORT}."
        ) from error


def _exit_unconnected(timeout: int) -> None:
    state = watchdog.global_state()
    warn(
        f"vit_jax: process {state.process_id} could not connect to the other processes at "
        f"{state.coordinator_address} within {timeout} s; check that all processes were started "
        "and that this host can reach the address."
    )
    watchdog.exit_now(HostError.exit_code)


def attach(timeout: int = TIMEOUT, grace: float = 0) -> bool:
    """Starts the watchdog of a run; returns False if there is one, or only this process.

    All processes must call this.

    Args:
      timeout: seconds to wait for the others at every barrier.
      grace: seconds that this process has to end by itself after an error in another one.
    """
    global _watchdog
    state = watchdog.global_state()
    if _watchdog is not None or state.client is None or state.num_processes == 1:
        return False
    _num_gathered.clear()
    _watchdog = watchdog.Watchdog(timeout, _heartbeat_timeout(timeout), next(_runs), grace)
    return True


def detach() -> None:
    """Waits for all processes at the end of a run; JAX's runtime stays initialised."""
    global _watchdog
    if _watchdog is not None:
        barrier("shutdown")
        _watchdog.stop()
        _watchdog = None


@contextlib.contextmanager
def attached(timeout: int = TIMEOUT) -> Iterator[None]:
    """Context manager of a run in the processes of JAX's runtime, whoever has initialised it.

    An error in this process is raised, and ends the other processes unless they raise one, too.
    Inside of another such run, and in a single process, this does nothing.
    """
    global _watchdog
    if not attach(timeout, grace=watchdog.EXIT_TIMEOUT):
        yield
        return
    _take_sigterm()
    try:
        yield
        detach()
    except Interrupted:  # All processes raise it after the same step.
        detach()
        raise
    except BaseException as error:
        is_ours = isinstance(error, VitJaxError)
        _watchdog.release(
            str(error) if is_ours else raised(error), error.exit_code if is_ours else 1
        )
        _watchdog = None
        raise


def _take_sigterm() -> None:
    """Installs the handler of SIGTERM that Python knows again.

    JAX's preemption service replaces it by its own, which only records the signal; it would be
    ignored until the first stage records it, too.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and watchdog.global_state().preemption_sync_manager is not None:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def exit_all(message: str, code: int) -> None:
    """Ends all processes of the run after an error; returns if this is the only process.

    The message of the first process that fails is printed by it and by process 0; all processes
    exit with its exit code.
    """
    if _watchdog is not None:
        _watchdog.exit_all(message, code)


def is_lost_process(error: BaseException) -> bool:
    """Returns True if an error may be caused by a process that died.

    A compiled program raises a failure of its communication as JaxRuntimeError, or, with the status
    UNKNOWN, as ValueError.
    """
    import jax

    is_runtime_error = isinstance(error, jax.errors.JaxRuntimeError)
    is_unknown = isinstance(error, ValueError) and str(error).startswith("UNKNOWN: ")
    return _watchdog is not None and (is_runtime_error or is_unknown)


def process_index() -> int:
    """Returns the index of this process; 0 for a run of one process."""
    return 0 if _watchdog is None else _watchdog.index


def process_count() -> int:
    """Returns the number of processes of the run."""
    return 1 if _watchdog is None else _watchdog.count


def is_process_0() -> bool:
    """Returns True on the process that writes files and prints."""
    return process_index() == 0


def barrier(name: str, timeout: int | None = None) -> None:
    """Waits until all processes have called this; raises HostError that names the missing ones.

    Args:
      name: name of the barrier, the same on all processes.
      timeout: seconds to wait; None for the timeout of the run.
    """
    if _watchdog is None:
        return
    timeout = timeout or _watchdog.timeout
    try:
        _watchdog.client.wait_at_barrier(f"vit_jax/{name}", timeout * 1000)
    except RuntimeError as error:
        missing = re.search(r"timed out task names:\s*(\S[^\n]*)", str(error))
        reason = (
            f"process {missing[1]} of {_watchdog.count} is missing" if missing else one_line(error)
        )
        raise HostError(f"barrier {name!r}: {reason} after {timeout} s.") from error


_num_gathered = collections.Counter()  # Makes the keys of repeated calls unique.


def allgather_json(name: str, value, timeout: int | None = None) -> list:
    """Returns the JSON values of all processes, in order; all processes must call this.

    Args:
      name: name of the exchange, the same on all processes.
      value: anything that JSON can represent.
      timeout: seconds to wait for the others; None for the timeout of the run.
    """
    if _watchdog is None:
        return [value]
    key = f"{_watchdog.prefix}/{name}/{_num_gathered[name]}"
    _num_gathered[name] += 1
    _watchdog.client.key_value_set(f"{key}/{_watchdog.index}", to_json(value))
    barrier(name, timeout)
    values = dict(_watchdog.client.key_value_dir_get(f"{key}/"))
    return [json.loads(values[f"{key}/{i}"]) for i in range(_watchdog.count)]


def broadcast_from_process_0(name: str, function: Callable):
    """Returns the result of `function` on process 0, on all processes; others do not call it."""
    return allgather_json(name, function() if is_process_0() else None)[0]


@contextlib.contextmanager
def raise_on_all(name: str, error_type: type[VitJaxError]):
    """Context manager that raises an error on all processes if it is raised on any."""
    error = None
    try:
        yield
    except error_type as raised:
        error = raised
    messages = allgather_json(name, error and str(error))
    if error:
        raise error
    for message in filter(None, messages):
        raise error_type(message)


def check_equal(name: str, value) -> None:
    """Raises ConfigError if a process has a different value from process 0."""
    values = allgather_json(name, value)
    others = [str(i) for i, other in enumerate(values) if other != values[0]]
    if others:
        raise ConfigError(
            f"{name} of process {', '.join(others[:8])} differs from that of process 0; "
            "start all processes with the same command."
        )


def allgather(*values: int):
    """Returns an array P N with the N integers of each process in one of its rows.

    P is the number of devices; the rows of a process's other devices are zeros, so take a maximum
    or a sum over the rows. Unlike `multihost_utils.process_allgather`, this does not wait: the
    result is computed by the devices in the order of their programs, so it can be read together
    with the results of a step, and all processes read the same values at the same step.
    """
    if _watchdog is None:
        return np.array([values], np.int32)
    import jax

    sharding, gather = _gather_program()
    rows = np.zeros((jax.local_device_count(), len(values)), np.int32)
    rows[0] = values
    return gather(jax.make_array_from_process_local_data(sharding, rows))


@functools.cache
def _gather_program():
    """Returns a sharding over all devices, and a function that replicates arrays with it."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("device",))
    gather = jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return NamedSharding(mesh, PartitionSpec("device")), gather
