"""Table of the environment variables in which engines describe the processes of a run.

`cluster.detect_cluster` reads them; docs/hosts.md shows the table.
"""

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping

ADDRESS, PORT = "JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT"  # JAX reads them, too.
DEFAULT_PORT = 1234  # Below the ports that Linux assigns to connections.
PORTS = range(61440, 65536)  # Above them; a job's number selects one, as in JAX.

Environ = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Environment variables in which an engine describes the processes of a run.

    Attributes:
      engine: name of the engine.
      number: variables with the number of processes; the first that is set counts.
      index: variable with the index of this process.
      address: variables from which the host of process 0 follows.
      note: details for the documentation, such as the port.
      offset: variables whose product is added to the index.
      marks: variables any of which shows that the engine is present; by default number and index.
      beside: variable without which the engine is not present.
      host: function that returns HOST or HOST:PORT of process 0, or None; by default the value of
        the variable in `address`.
      port: function that returns the port if no variable contains one.
      devices: function that returns the GPUs of this process, or None for all that it can use.
      outer: names of engines that may have started this one; their variables describe other
        processes.
      jax_method: name under which JAX detects the engine, if JAX reads the variables.
    """

    engine: str
    number: tuple[str, ...] = ()
    index: str = ""
    address: tuple[str, ...] = ()
    note: str = ""
    offset: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    beside: str = ""
    host: Callable[[Environ], str | None] | None = None
    port: Callable[[Environ], int] = lambda environ: DEFAULT_PORT
    devices: Callable[[Environ], list[int] | None] = lambda environ: None
    outer: tuple[str, ...] = ()
    jax_method: str = ""

    def is_present(self, environ: Environ) -> bool:
        """Returns True if a variable shows that the engine started this process."""
        marks = self.marks or (*self.number, self.index)
        return any(map(environ.get, marks)) and bool(not self.beside or environ.get(self.beside))


def _first_node(environ: Environ, variable: str) -> str | None:
    """Returns the first host of a list of SLURM, such as `node[001-015,020],login`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", environ.get(variable, ""))[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first) or None


def _slurm_host(environ: Environ) -> str | None:
    return _first_node(environ, "SLURM_STEP_NODELIST")


def _slurm_port(environ: Environ) -> int:
    """Returns a port that differs between consecutive jobs, and between the steps of a job."""
    job, step = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_STEP_ID", "")
    number = (int(job) if job.isdecimal() else 0) + 97 * (int(step) if step.isdecimal() else 0)
    return PORTS[number % len(PORTS)]


def _slurm_devices(environ: Environ) -> list[int] | None:
    """Returns one GPU for each of several tasks of a node; None with one task per node."""
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS")
    nodes = environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES")
    if tasks == nodes or environ.get("SLURM_GPUS_PER_TASK"):
        return None
    return _own_gpu(environ, "SLURM_LOCALID")


def _open_mpi_host(environ: Environ) -> str | None:
    """Returns the host of rank 0: this host, the first of a SLURM job, or that of mpirun."""
    size = environ.get("OMPI_COMM_WORLD_SIZE")
    if size and size == environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"):
        return "127.0.0.1"
    if node := _first_node(environ, "SLURM_JOB_NODELIST"):
        return node
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")  # 12.0;tcp://10.0.0.1,10.1.0.1:34911
    match = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
    return match and (match[1] or match[2])


def _open_mpi_port(environ: Environ) -> int:
    """Returns a port that depends on the job of mpirun."""
    return PORTS[zlib.crc32(environ.get("PMIX_NAMESPACE", "").encode()) % len(PORTS)]


def _open_mpi_devices(environ: Environ) -> list[int] | None:
    """Returns one GPU for each of several ranks of a host; None with one rank per host."""
    if environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1":
        return None
    return _own_gpu(environ, "OMPI_COMM_WORLD_LOCAL_RANK")


def _own_gpu(environ: Environ, local_index: str) -> list[int] | None:
    """Returns the GPU of this process among those of the host; None if it sees only its own."""
    index = environ.get(local_index, "")
    sees_one = "," not in environ.get("CUDA_VISIBLE_DEVICES", ",")
    return None if sees_one or not index.isdecimal() else [int(index)]


def _sky_pilot_host(environ: Environ) -> str | None:
    return next(iter(environ.get("SKYPILOT_NODE_IPS", "").split()), None)


# In the order of precedence: variables made for JAX, then those of launchers, the inner one first.
DIALECTS = {
    "kubeflow": Dialect(
        "Kubeflow Trainer",
        number=("JAX_NUM_PROCESSES",),
        index="JAX_PROCESS_ID",
        address=(ADDRESS,),
        note="The address contains the port, 29500.",
    ),
    "xpk_cpu": Dialect(
        "XPK on CPUs (JobSet)",
        number=("JAX_PROCESS_COUNT",),
        index="JOB_COMPLETION_INDEX",
        offset=("JOB_INDEX", "PROCESSES_IN_JOB"),
        address=(ADDRESS,),
        marks=("JAX_PROCESS_COUNT",),
        note=f"The address has no port; {DEFAULT_PORT} is used, as in MaxText.",
    ),
    "maxtext": Dialect(
        "MaxText on GPUs",
        number=("NNODES",),
        index="NODE_RANK",
        address=("JAX_COORDINATOR_IP",),
        marks=("JAX_COORDINATOR_IP",),
        note=f"Port from `{PORT}`.",
    ),
    "xpk_gpu": Dialect(
        "XPK on GPUs (JobSet)",
        number=("NNODES",),
        index="NODE_RANK",
        address=(ADDRESS,),
        beside=ADDRESS,
        note=f"Port from `{PORT}`, 6002. Without an address, `NNODES` and `NODE_RANK` are ignored.",
    ),
    "openmpi": Dialect(
        "Open MPI 4 and 5",
        number=("OMPI_COMM_WORLD_SIZE",),
        index="OMPI_COMM_WORLD_RANK",
        address=("OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_JOB_NODELIST", "OMPI_MCA_orte_hnp_uri"),
        host=_open_mpi_host,
        port=_open_mpi_port,
        devices=_open_mpi_devices,
        outer=("slurm", "skypilot"),
        note="Process 0 is on this host if all are, on the first node of a SLURM job, or, with "
        "version 4, where `mpirun` is; otherwise give `--coordinator`.",
    ),
    "slurm": Dialect(
        "SLURM step",
        number=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        index="SLURM_PROCID",
        address=("SLURM_STEP_NODELIST",),
        marks=("SLURM_STEP_NODELIST",),
        host=_slurm_host,
        port=_slurm_port,
        devices=_slurm_devices,
        note="Process 0 is on the first node. Port from `SLURM_JOB_ID` and `SLURM_STEP_ID`.",
    ),
    "tpu_gke": Dialect(
        "TPU slices on GKE",
        number=("TPU_WORKER_HOSTNAMES",),
        index="TPU_WORKER_ID",
        address=("MEGASCALE_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES"),
        outer=("skypilot",),
        jax_method="gketpu",
        note="JAX reads them, and `MEGASCALE_NUM_SLICES` and `MEGASCALE_SLICE_ID`; port 8482.",
    ),
    "tpu_vm": Dialect(
        "Cloud TPU VMs",
        outer=("skypilot",),
        jax_method="gcetpu",
        note="JAX asks the metadata server; port 8482.",
    ),
    "skypilot": Dialect(
        "SkyPilot",
        number=("SKYPILOT_NUM_NODES",),
        index="SKYPILOT_NODE_RANK",
        address=("SKYPILOT_NODE_IPS",),
        host=_sky_pilot_host,
        note=f"Process 0 is on the first node. Port {DEFAULT_PORT}.",
    ),
    "kubernetes": Dialect(
        "Kubernetes indexed Job",
        index="JOB_COMPLETION_INDEX",
        note="Needs `--coordinator` and `--num_processes`; without them, each pod is a run.",
    ),
}
