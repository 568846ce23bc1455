"""A job: `train` on the nodes of a cluster, started again until the run is done."""

import dataclasses
import math
import posixpath
import re
from collections.abc import Mapping

from vit_jax.config.schema import Config
from vit_jax.errors import ConfigError

# Exit codes of `train` after which the same command continues the run; see docs/runs.md. Every
# other code, such as that of a bug or of damaged data, would only be repeated.
PREEMPTED = (138, 143)  # SIGUSR1 and SIGTERM: the last finished step is saved.
# A lost process or a watchdog; a process that was killed by SIGABRT, SIGBUS, SIGKILL or SIGSEGV.
FAILED = (6, 134, 135, 137, 139)
AGAIN = tuple(sorted(PREEMPTED + FAILED))

MAX_NAME = 40  # Characters; Kubernetes appends to it and allows 63 in all.


@dataclasses.dataclass(frozen=True)
class Job:
    """Run, nodes and restarts of a job; every node runs one process with all its GPUs."""

    name: str
    workdir: str
    nodes: int
    config: str | None = None  # FILE[:ARGS]; None to resume the run of the workdir.
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    folder: str = "."  # Current folder of the processes, for engines without images.
    python: str = "python"  # Interpreter on the nodes, for engines without images.
    gpus: int = 0  # Per node; 0 for nodes without GPUs, and for the devices that JAX finds.
    gpu_type: str = ""
    cpus: int = 0  # Per node; 0 for the default of the engine.
    time: str = ""  # Time limit of an allocation; '' for the default of the partition.
    grace: int = 120  # Seconds between SIGTERM and SIGKILL, to save the last step.
    max_restarts: int = 5
    image: str = ""
    volume: tuple[str, str] | None = None  # Source and path of shared storage.
    queue: str = ""

    @property
    def command(self) -> list[str]:
        """The command of a process, without its interpreter."""
        config = [f"--config={self.config}"] if self.config is not None else []
        fields = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return ["-m", "vit_jax.main", "train", *config, *fields, f"--workdir={self.workdir}"]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables: compiled programs are stored beside the workdir, for restarts."""
        parent = posixpath.dirname(self.workdir.rstrip("/"))
        return {
            "JAX_COMPILATION_CACHE_DIR": posixpath.join(parent or ".", ".programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }


def name_of(workdir: str) -> str:
    """Returns the name of a job, valid for every engine: the last part of its workdir."""
    last = posixpath.basename(workdir.rstrip("/")).lower()
    name = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:MAX_NAME].rstrip("-")
    return name if re.match("[a-z]", name) else f"vit-{name}".rstrip("-")


def is_name(text: str) -> bool:
    """Returns True for a name of a job that every engine accepts."""
    return len(text) <= MAX_NAME and bool(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", text))


def seconds_of(time: str) -> int | None:
    """Returns the seconds of a time limit in a format of SLURM, or None if it has another one.

    The formats are MINUTES[:SECONDS], HOURS:MINUTES:SECONDS and DAYS-HOURS[:MINUTES[:SECONDS]].
    """
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    numbers = [days, *parts] if dash else parts
    if not all(part.isdecimal() for part in numbers) or len(parts) > 3:
        return None
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    clock = sum(int(part) * unit for part, unit in zip(parts, units))
    return int(days or 0) * 86_400 + clock


def check_devices(stages: Mapping[str, Config], nodes: int, gpus_per_node: int) -> None:
    """Raises ConfigError if the mesh or the batch of a stage does not fit the devices of a job.

    Args:
      stages: checked stages by name.
      nodes: number of nodes.
      gpus_per_node: GPUs of a node; 0 if the devices are not known, so that only the number of
        nodes can be checked.
    """
    from vit_jax.distributed import mesh

    for name, config in stages.items():
        sizes = dataclasses.asdict(config.mesh)
        num_devices = nodes * gpus_per_node
        if not num_devices and -1 not in sizes.values():
            num_devices = math.prod(sizes.values())
            if num_devices % nodes:
                raise ConfigError(
                    f"mesh data:{sizes['data']},fsdp:{sizes['fsdp']},tensor:{sizes['tensor']} has "
                    f"{num_devices} devices, which {nodes} nodes cannot share evenly; use another "
                    "--nodes, or other config.mesh.data, fsdp or tensor."
                )
        if not num_devices and sizes["tensor"] != 1:
            continue  # The number of parts of the batch is not known.
        accumulate = config.accumulate if isinstance(config.accumulate, int) else 1
        try:
            shape = mesh.abstract_mesh(num_devices or nodes, **sizes if num_devices else {})
            mesh.check_batch_size(config.batch_size, shape, accumulate)
        except ConfigError as error:
            raise ConfigError(f"stage {name}: {error}" if name else str(error)) from error
