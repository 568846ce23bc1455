"""Environment variables of one process of two, as each engine sets them."""

HOST = "127.0.0.1"


def kubeflow(index: int, port: int, host: str = HOST) -> dict[str, str]:
    """Pod of the runtime jax-distributed of Kubeflow Trainer (pkg/runtime/.../plugins/jax)."""
    return {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "JOB_COMPLETION_INDEX": str(index),
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
        "JAX_COORDINATOR_ADDRESS": f"{host}:{port}",
    }


def xpk_gpu(index: int, port: int, host: str = HOST) -> dict[str, str]:
    """Pod of a GPU workload of XPK (core/docker_resources.py)."""
    return {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "JOB_COMPLETION_INDEX": str(index),
        "REPLICATED_JOB_NAME": "slice-job",
        "JOBSET_NAME": "vit",
        "JAX_COORDINATOR_ADDRESS": host,
        "NNODES": "2",
        "NODE_RANK": str(index),
        "USE_GPUDIRECT": "tcpxo",
        "GPUS_PER_NODE": "8",
        "JAX_COORDINATOR_PORT": str(port),
        "COMMAND": "python -m vit_jax.main",
    }


def xpk_cpu(index: int, port: int = 1234, host: str = HOST) -> dict[str, str]:
    """Pod of a CPU workload of XPK with two slices of one machine; XPK sets no port."""
    port_variable = {} if port == 1234 else {"JAX_COORDINATOR_PORT": str(port)}
    return port_variable | {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "REPLICATED_JOB_NAME": "slice-job",
        "JOB_INDEX": str(index),
        "JOB_COMPLETION_INDEX": "0",
        "PROCESSES_IN_JOB": "1",
        "JAX_PROCESS_COUNT": "2",
        "JAX_COORDINATOR_ADDRESS": host,
    }


def maxtext(index: int, port: int, host: str = HOST) -> dict[str, str]:
    """Process started for MaxText on GPUs (utils/max_utils.py)."""
    return {
        "JAX_COORDINATOR_IP": host,
        "JAX_COORDINATOR_PORT": str(port),
        "NNODES": "2",
        "NODE_RANK": str(index),
    }


def skypilot(index: int, port: int = 1234, host: str = HOST) -> dict[str, str]:
    """Command of a SkyPilot task on two nodes; SkyPilot sets no port."""
    port_variable = {} if port == 1234 else {"JAX_COORDINATOR_PORT": str(port)}
    return port_variable | {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": str(index),
        "SKYPILOT_NODE_IPS": f"{host}\n127.0.0.2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "0",
        "SKYPILOT_TASK_ID": "sky-2026-01-01-00-00-00-000000_vit_1",
    }


def open_mpi_5(index: int, *_) -> dict[str, str]:
    """Rank of `mpirun -np 2` of Open MPI 5 on one host."""
    return {
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
        "OMPI_COMM_WORLD_NODE_RANK": str(index),
        "OMPI_UNIVERSE_SIZE": "2",
        "PMIX_RANK": str(index),
        "PMIX_NAMESPACE": "prterun-node001-4711@1",
    }


def open_mpi_4(index: int, *_, local_size: int = 2) -> dict[str, str]:
    """Rank of `mpirun -np 2` of Open MPI 4."""
    return open_mpi_5(index) | {
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local_size),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index % local_size),
        "PMIX_NAMESPACE": "1531576320",
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    }


def slurm(index: int, *_, tasks_per_node: int = 1, **others: str) -> dict[str, str]:
    """Task of `srun --ntasks=2`, seen with SLURM 22.05."""
    nodes = 2 // tasks_per_node
    names = {1: "n1", 2: "n[1-2]"}[nodes]
    return others | {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_NODELIST": names,
        "SLURM_STEP_NODELIST": names,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NPROCS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index % tasks_per_node),
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
        "SLURM_SUBMIT_HOST": "login",
    }


def slurm_batch() -> dict[str, str]:
    """Batch script of a SLURM job with two tasks, outside of `srun`."""
    step = ("SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS")
    return {name: value for name, value in slurm(0).items() if name not in step}


def gke_tpu(index: int, *_) -> dict[str, str]:
    """Host of a TPU slice on GKE; JAX_FORCE_TPU_INIT replaces the chips."""
    return {
        "JAX_FORCE_TPU_INIT": "1",
        "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.2",
        "TPU_WORKER_ID": str(index),
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
        "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
    }
