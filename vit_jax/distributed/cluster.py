"""Number and index of this process, from flags or from the launcher's environment variables."""

import os
import re
from collections.abc import Mapping

from vit_jax.errors import ConfigError

LAUNCHERS = (  # Variables with the number of processes and the index of this process.
    ("SLURM_NTASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    (None, "JOB_COMPLETION_INDEX"),  # Kubernetes indexed job.
)
# Variables that JAX's SLURM detection reads; a batch script outside `srun` has no node list.
SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")


def detect_cluster(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> dict | None:
    """Returns arguments for `jax.distributed.initialize`, or None for a run of one process.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes; None to read it from the environment.
      process_id: index of this process; None to read it from the environment.
      environ: environment variables.

    Raises:
      ConfigError: a flag is missing or invalid.
    """
    if coordinator is num_processes is process_id is None:
        return _detect_launcher(environ)
    launcher_size, launcher_index = _launcher_size_and_index(environ)
    flags = {
        "--coordinator": coordinator,
        "--num_processes": launcher_size if num_processes is None else num_processes,
        "--process_id": launcher_index if process_id is None else process_id,
    }
    missing = [flag for flag, value in flags.items() if value is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} missing: a run of several processes needs "
            "--coordinator=HOST:PORT, --num_processes=N and --process_id=I; SLURM and Open MPI "
            "set the last two, a Kubernetes indexed job the last one."
        )
    coordinator, num_processes, process_id = flags.values()
    if not re.fullmatch(r"(\[[^\]]+\]|[^:\s]+):\d{1,5}", coordinator):
        raise ConfigError(f"--coordinator={coordinator} is invalid; expected HOST:PORT.")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id} is invalid with --num_processes={num_processes}; "
            f"expected 0 to {num_processes - 1}."
        )
    if num_processes == 1:
        return None
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        # JAX's detection would leave only one device visible to the process.
        "cluster_detection_method": "deactivate",
    }


def _launcher_size_and_index(environ: Mapping[str, str]) -> tuple[int | None, int | None]:
    for size, index in LAUNCHERS:
        if index in environ:
            return int(environ[size]) if size in environ else None, int(environ[index])
    return None, None


def _detect_launcher(environ: Mapping[str, str]) -> dict | None:
    """Returns arguments for JAX if a launcher has started several processes, else None."""
    if int(environ.get("SLURM_NTASKS", 1)) > 1 and all(name in environ for name in SLURM_STEP):
        return {"cluster_detection_method": "slurm"} | _all_gpus_of_node(environ)
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environ:
            raise ConfigError(
                "this version of Open MPI does not provide the address of process 0 (only "
                "versions below 5 do); give --coordinator=HOST:PORT with the host of rank 0."
            )
        return {"cluster_detection_method": "ompi"}
    return {} if _is_tpu_slice() else None


def _all_gpus_of_node(environ: Mapping[str, str]) -> dict:
    """Returns `local_device_ids` of all GPUs if SLURM runs one process per node.

    JAX would make only one GPU visible to a process started by SLURM.
    """
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    if environ["SLURM_NTASKS"] != environ.get("SLURM_NNODES") or not gpus.isdecimal():
        return {}
    return {"local_device_ids": list(range(int(gpus)))}


def _is_tpu_slice() -> bool:
    """Returns True on one of several hosts of a TPU slice."""
    from jax._src import clusters  # No public function detects this without starting the runtime.

    for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
        if cluster.is_env_present():
            return cluster.get_process_count() > 1
    return False
