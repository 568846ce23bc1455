"""Which process of how many this is: by flags, or as the launcher that started it tells."""

import os
import re
from collections.abc import Mapping

from vit_jax.errors import ConfigError

LAUNCHERS = (  # How many processes there are, and which of them this is.
    ("SLURM_NTASKS", "SLURM_PROCID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    (None, "JOB_COMPLETION_INDEX"),  # A Kubernetes indexed job.
)
# What JAX's detection of SLURM wants; a batch script outside of `srun` lacks the node list.
SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")


def find(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> dict | None:
    """How `jax.distributed.initialize` is to be called; None for a run of one process.

    What the flags leave open, the launcher tells. Raises ConfigError where something is
    missing or does not fit.
    """
    if coordinator is num_processes is process_id is None:
        return _launched(environ)
    size, index = _told_by_launcher(environ)
    flags = {
        "--coordinator": coordinator,
        "--num_processes": size if num_processes is None else num_processes,
        "--process_id": index if process_id is None else process_id,
    }
    missing = [flag for flag, value in flags.items() if value is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} missing: several processes need --coordinator=HOST:PORT, "
            "--num_processes=N and --process_id=I, where no launcher tells the last two."
        )
    coordinator, num_processes, process_id = flags.values()
    if not re.fullmatch(r"(\[[^\]]+\]|[^:\s]+):\d{1,5}", coordinator):
        raise ConfigError(f"--coordinator={coordinator} is not HOST:PORT.")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id} with --num_processes={num_processes}; "
            "ids go from 0 to one less than the number."
        )
    if num_processes == 1:
        return None
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",  # Would hide all devices but one.
    }


def _told_by_launcher(environ: Mapping[str, str]) -> tuple[int | None, int | None]:
    for size, index in LAUNCHERS:
        if index in environ:
            return int(environ[size]) if size in environ else None, int(environ[index])
    return None, None


def _launched(environ: Mapping[str, str]) -> dict | None:
    """What JAX has to be told where a launcher has started several processes."""
    if int(environ.get("SLURM_NTASKS", 1)) > 1 and all(name in environ for name in SLURM_STEP):
        return {"cluster_detection_method": "slurm"} | _devices_of_a_node(environ)
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environ:
            raise ConfigError(
                "this Open MPI does not tell where process 0 is (version 5 does not); "
                "give --coordinator=HOST:PORT, with the host of rank 0."
            )
        return {"cluster_detection_method": "ompi"}
    return {} if _is_tpu_slice() else None


def _devices_of_a_node(environ: Mapping[str, str]) -> dict:
    """All GPUs of a node for its one process; JAX would give each process of SLURM's but one."""
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    if environ["SLURM_NTASKS"] != environ.get("SLURM_NNODES") or not gpus.isdecimal():
        return {}
    return {"local_device_ids": list(range(int(gpus)))}


def _is_tpu_slice() -> bool:
    """Whether this is one of several hosts of a TPU slice, by JAX's own ways of finding out."""
    from jax._src import clusters  # Nothing public tells without starting the runtime.

    for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
        if cluster.is_env_present():
            return cluster.get_process_count() > 1
    return False
