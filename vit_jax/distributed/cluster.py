"""Number of processes of a run, index of this process, and address of process 0.

Flags take precedence over the environment variables of `dialects.DIALECTS`, one by one.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vit_jax.distributed.dialects import ADDRESS, DEFAULT_PORT, DIALECTS, PORT, Dialect, Environ
from vit_jax.errors import ConfigError, listed, one_line
from vit_jax.text import warn

COORDINATOR, NUMBER, INDEX = FLAGS = ("--coordinator", "--num_processes", "--process_id")


class Value(NamedTuple):
    """Value of a flag or an environment variable."""

    name: str
    value: int | str

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, and this process among them.

    Attributes:
      source: name of the engine that describes them, or "flags".
      coordinator: HOST:PORT of process 0; None if JAX finds it.
      num_processes: number of processes.
      process_id: index of this process.
      local_device_ids: GPUs of this host that this process uses; None for all.
      jax_method: method by which JAX detects what is None.
    """

    source: str
    coordinator: str | None
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None = None
    jax_method: str = "deactivate"

    def jax_arguments(self) -> dict:
        """Returns the arguments of `jax.distributed.initialize`."""
        return {
            "coordinator_address": self.coordinator,
            "num_processes": self.num_processes,
            "process_id": self.process_id,
            "local_device_ids": self.local_device_ids,
            "cluster_detection_method": self.jax_method,
        }


class _Description(NamedTuple):
    """Contents of the variables of a dialect; None for what is not set."""

    dialect: Dialect | None = None
    number: Value | None = None
    index: Value | None = None
    address: Value | None = None


def detect_cluster(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environ: Environ = os.environ,
) -> Cluster | None:
    """Returns the processes of this run, or None if this is the only one.

    Args:
      coordinator: HOST:PORT of process 0; None to read it from the environment.
      num_processes: number of processes; None to read it from the environment.
      process_id: index of this process; None to read it from the environment.
      environ: environment variables.

    Raises:
      ConfigError: a flag or variable is missing or invalid, or two of them contradict each other.
    """
    pairs = zip(FLAGS, (coordinator, num_processes, process_id))
    flags = {name: Value(name, value) for name, value in pairs if value is not None}
    if num_processes == 1 and not process_id:
        return None
    found = [] if len(flags) == len(FLAGS) else _descriptions(environ, flags)
    _check_agreement(found, flags)
    dialect, number, index, address = found[0] if found else _Description()
    if not flags and not dialect:
        _check_lonely_address(environ)
        _warn_without_srun(environ)
        return None
    number, index = flags.get(NUMBER, number), flags.get(INDEX, index)
    address = flags.get(COORDINATOR) or _variable(environ, ADDRESS) or address
    if not dialect and not index:  # An index alone does not show that the pods are one run.
        index = _integer(environ, DIALECTS["kubernetes"].index)
    _check_complete(dialect, address, number, index)
    if number.value == 1:
        return None
    return Cluster(
        source=dialect.engine if dialect else "flags",
        coordinator=address and _host_and_port(address, dialect, environ),
        num_processes=number.value,
        process_id=index.value,
        local_device_ids=_local_devices(dialect, index, environ),
        jax_method="deactivate" if address else dialect.jax_method,
    )


def _descriptions(environ: Environ, flags: Mapping[str, Value]) -> list[_Description]:
    """Returns the contents of every dialect that describes several processes, by precedence.

    Raises ConfigError if variables of the first one are missing.
    """
    found: list[_Description] = []
    for name, dialect in DIALECTS.items():
        if any(name in other.dialect.outer for other in found):
            continue
        if dialect.jax_method:
            description = None if found else _ask_jax(dialect)
        elif dialect.number and dialect.is_present(environ):
            description = _read(dialect, environ, flags, is_first=not found)
        else:
            description = None
        if description:
            found.append(description)
    return found


def _read(
    dialect: Dialect, environ: Environ, flags: Mapping[str, Value], is_first: bool
) -> _Description | None:
    """Returns the contents of a dialect's variables, or None.

    Raises ConfigError if variables of the first dialect are missing.
    """
    number = next(filter(None, (_integer(environ, name) for name in dialect.number)), None)
    if number and number.value == 1:  # Another launcher may have started several processes.
        return None
    indices = {name: _integer(environ, name) for name in (*dialect.offset, dialect.index)}
    host = dialect.host(environ) if dialect.host else environ.get(dialect.address[0])
    missing = [] if number or NUMBER in flags else [dialect.number[-1]]
    if INDEX not in flags:
        missing += [name for name, value in indices.items() if not value]
    # With several variables, none of them has to be set.
    if len(dialect.address) == 1 and not (host or environ.get(ADDRESS) or COORDINATOR in flags):
        missing += dialect.address
    if missing and is_first:
        raise ConfigError(_half_set(dialect, missing, environ))
    if missing:
        return None
    address = Value(" or ".join(dialect.address), host) if host else None
    return _Description(dialect, number, _index(dialect, indices), address)


def _index(dialect: Dialect, values: Mapping[str, Value | None]) -> Value | None:
    """Returns the index of this process from the values of its variables."""
    if not all(values.values()):
        return None
    offset = [values[name].value for name in dialect.offset]
    name = " + ".join(filter(None, [" x ".join(dialect.offset), dialect.index]))
    return Value(name, values[dialect.index].value + (math.prod(offset) if offset else 0))


def _half_set(dialect: Dialect, missing: list[str], environ: Environ) -> str:
    """Returns the message for a dialect some of whose variables are not set."""
    names = (*dialect.number, *dialect.offset, dialect.index, *dialect.address)
    present = [Value(name, " ".join(environ[name].split())) for name in names if environ.get(name)]
    return (
        f"{', '.join(missing)} missing beside {listed(present, separator=', ')}: "
        f"{dialect.engine} sets all of them. Set what is missing, give {', '.join(FLAGS)}, or "
        "unset the others."
    )


def _ask_jax(dialect: Dialect) -> _Description | None:
    """Returns the number and the index on one of several hosts of a TPU slice, else None."""
    from jax._src import clusters  # No public function detects this without starting the runtime.

    types = {each.name: each for each in clusters.ClusterEnv._cluster_types}
    slice_type = types[dialect.jax_method]
    try:
        if not slice_type.is_env_present() or (number := slice_type.get_process_count()) == 1:
            return None
        index = slice_type.get_process_id()
    except (RuntimeError, ValueError, OSError) as error:
        source = dialect.index or "the metadata server"
        raise ConfigError(
            f"{dialect.engine}: JAX cannot read the processes of the slice, as from {source} "
            f"({one_line(error)}); give {', '.join(FLAGS)}."
        ) from error
    return _Description(
        dialect, Value("number of hosts of the slice", number), Value("index of the host", index)
    )


def _check_agreement(found: Sequence[_Description], flags: Mapping[str, Value]) -> None:
    """Raises ConfigError if two dialects describe different processes."""
    for other in found[1:]:
        first = found[0]
        pairs = [(NUMBER, first.number, other.number), (INDEX, first.index, other.index)]
        if first.dialect.host is other.dialect.host is None:  # Both are given as variables.
            pairs.append((COORDINATOR, first.address, other.address))
        for flag, ours, theirs in pairs:
            if flag not in flags and ours and theirs and _differ(ours, theirs):
                raise ConfigError(
                    f"{ours} ({first.dialect.engine}) and {theirs} ({other.dialect.engine}) "
                    f"contradict each other; unset one of them, or give {flag}."
                )


def _differ(ours: Value, theirs: Value) -> bool:
    """Returns True if two numbers, or the hosts of two addresses, are not equal."""
    return re.sub(r":\d+$", "", str(ours.value)) != re.sub(r":\d+$", "", str(theirs.value))


def _check_lonely_address(environ: Environ) -> None:
    """Raises ConfigError if the address of process 0 is the only thing that is known."""
    is_single = any(each.number and each.is_present(environ) for each in DIALECTS.values())
    if not is_single and (address := _variable(environ, ADDRESS)):
        number, index = DIALECTS["kubeflow"].number[0], DIALECTS["kubeflow"].index
        raise ConfigError(
            f"{number}, {index} missing beside {address}: nothing contains the number of processes "
            f"and the index of this one. Set what is missing, give {', '.join(FLAGS)}, or unset "
            f"{ADDRESS}."
        )


def _warn_without_srun(environ: Environ) -> None:
    """Prints a warning for the only process of a SLURM job of several tasks."""
    tasks = environ.get("SLURM_NTASKS", "")
    if tasks.isdecimal() and int(tasks) > 1:
        warn(
            f"vit_jax: SLURM_NTASKS={tasks}, but this process was not started by srun with {tasks} "
            f"tasks; it is a run of its own. For one run of {tasks} processes, use srun."
        )


def _check_complete(dialect, address, number, index) -> None:
    """Raises ConfigError if something is missing, or the index is out of range."""
    needs_address = not (dialect and dialect.jax_method)
    values = (address or not needs_address, number, index)
    missing = [flag for flag, value in zip(FLAGS, values) if not value]
    if missing == [COORDINATOR] and dialect:
        raise ConfigError(
            f"--coordinator missing: {dialect.engine} does not set the address of process 0 here; "
            f"give --coordinator=HOST:PORT, or set {ADDRESS}."
        )
    if missing:
        engines = [each.engine for each in DIALECTS.values() if each.address]
        raise ConfigError(
            f"{', '.join(missing)} missing: a run of several processes needs "
            "--coordinator=HOST:PORT, --num_processes=N and --process_id=I, or an engine that "
            f"sets them: {', '.join(engines)}."
        )
    if number.value < 1:
        raise ConfigError(f"{number} is invalid; expected at least 1.")
    if not 0 <= index.value < number.value:
        raise ConfigError(f"{index} is invalid with {number}; expected 0 to {number.value - 1}.")


def _variable(environ: Environ, name: str) -> Value | None:
    """Returns the value of a variable, or None if it is not set or empty."""
    return Value(name, environ[name]) if environ.get(name) else None


def _integer(environ: Environ, name: str) -> Value | None:
    """Returns the number in a variable, or None; raises ConfigError if it is none."""
    text = _variable(environ, name)
    if text and not re.fullmatch(r"[0-9]{1,9}", text.value):
        raise ConfigError(f"{text} is invalid; expected a whole number.")
    return text and Value(name, int(text.value))


def _host_and_port(address: Value, dialect: Dialect | None, environ: Environ) -> str:
    """Returns HOST:PORT of an address, which may lack the port if it is not a flag."""
    is_flag = address.name == COORDINATOR
    text = address.value
    if text.count(":") > 1 and "[" not in text:  # IPv6.
        text = f"[{text}]"
    match = re.fullmatch(r"(\[[^\]\s]+\]|[^:\s\[\]/]+)(?::([0-9]{1,9}))?", text)
    if not match or (is_flag and not match[2]):
        expected = "HOST:PORT" if is_flag else "HOST or HOST:PORT"
        raise ConfigError(f"{address} is invalid; expected {expected}.")
    variable = None if is_flag else _integer(environ, PORT)
    if match[2] and variable and int(match[2]) != variable.value:
        raise ConfigError(
            f"{address} and {variable} contradict each other; unset {PORT}, or give {COORDINATOR}."
        )
    if match[2]:
        port, source = int(match[2]), address
    elif variable:
        port, source = variable.value, variable
    else:
        return f"{match[1]}:{dialect.port(environ) if dialect else DEFAULT_PORT}"
    if not 1 <= port <= 65535:
        raise ConfigError(f"{source} is invalid; expected a port from 1 to 65535.")
    return f"{match[1]}:{port}"


def _local_devices(dialect: Dialect | None, index: Value, environ: Environ) -> list[int] | None:
    """Returns the GPUs of this process; the user's JAX_LOCAL_DEVICE_IDS takes precedence."""
    is_given = index.name == INDEX or environ.get("JAX_LOCAL_DEVICE_IDS")
    return None if is_given or dialect is None else dialect.devices(environ)
