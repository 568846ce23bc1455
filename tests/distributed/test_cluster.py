"""Tests of `detect_cluster` with flags and with the environment variables of every engine."""

import pytest

from tests.support import launchers
from vit_jax.distributed.cluster import Cluster, detect_cluster
from vit_jax.distributed.dialects import DIALECTS
from vit_jax.errors import ConfigError

ONLY_GPU = {"CUDA_VISIBLE_DEVICES": "0"}
ROWS = {  # Name of a dialect and a case -> variables of process 1 of 2, address, GPUs.
    "kubeflow": (launchers.kubeflow(1, 29500, "vit-node-0-0.vit"), "vit-node-0-0.vit:29500", None),
    "xpk_cpu": (launchers.xpk_cpu(1, host="vit-job-0-0.vit"), "vit-job-0-0.vit:1234", None),
    "xpk_gpu": (launchers.xpk_gpu(1, 6002, "vit-job-0-0.vit"), "vit-job-0-0.vit:6002", None),
    "maxtext": (launchers.maxtext(1, 1234, "10.0.0.1"), "10.0.0.1:1234", None),
    "skypilot": (launchers.skypilot(1, host="10.0.0.1"), "10.0.0.1:1234", None),
    "skypilot ipv6": (launchers.skypilot(1, host="fe80::1"), "[fe80::1]:1234", None),
    "openmpi 5, one host": (launchers.open_mpi_5(1), "127.0.0.1:62363", [1]),
    "openmpi 4, one host": (launchers.open_mpi_4(1), "127.0.0.1:62580", [1]),
    "openmpi 4, two hosts": (launchers.open_mpi_4(1, local_size=1), "10.96.0.1:62580", None),
    "openmpi 5 in a SLURM job": (
        launchers.slurm_batch() | launchers.open_mpi_5(1) | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
        "n1:62363",
        None,
    ),
    "slurm, a task per node": (launchers.slurm(1), "n1:61447", None),
    "slurm, a task per GPU": (launchers.slurm(1, tasks_per_node=2), "n1:61447", [1]),
    "slurm, a GPU per task": (launchers.slurm(1, tasks_per_node=2) | ONLY_GPU, "n1:61447", None),
    "slurm, GPUs per task": (
        launchers.slurm(1, tasks_per_node=2, SLURM_GPUS_PER_TASK="2"),
        "n1:61447",
        None,
    ),
}


@pytest.mark.parametrize(("environ", "address", "devices"), ROWS.values(), ids=ROWS)
def test_detect_cluster_reads_the_variables_of_an_engine(environ, address, devices):
    cluster = detect_cluster(environ=environ)
    assert (cluster.num_processes, cluster.process_id) == (2, 1)
    assert cluster.coordinator == address
    assert cluster.local_device_ids == devices
    assert cluster.jax_method == "deactivate"


def test_detect_cluster_names_the_engine():
    rows = {name.split()[0].strip(","): row for name, row in ROWS.items()}
    for name, (environ, *_) in rows.items():
        assert detect_cluster(environ=environ).source == DIALECTS[name].engine


def test_every_dialect_has_a_row():
    tested = {name.split()[0].strip(",") for name in ROWS} | {"tpu_gke", "tpu_vm", "kubernetes"}
    assert tested == set(DIALECTS)


def test_xpk_cpu_index_counts_the_pods_of_earlier_jobs():
    environ = launchers.xpk_cpu(0) | {
        "JOB_INDEX": "2",
        "PROCESSES_IN_JOB": "4",
        "JOB_COMPLETION_INDEX": "3",
        "JAX_PROCESS_COUNT": "12",
    }
    assert detect_cluster(environ=environ).process_id == 11


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[007,009-015]", "node007"),
        ("rack[2-3]n[05-08],host2", "rack2n05"),
        ("n[1-2]-ib,n[4-5]", "n1-ib"),
    ],
)
def test_slurm_coordinator_is_the_first_node(node_list, host):
    environ = launchers.slurm(1) | {"SLURM_STEP_NODELIST": node_list}
    assert detect_cluster(environ=environ).coordinator == f"{host}:61447"


def test_slurm_ports_of_two_jobs_and_of_two_steps_differ():
    environs = [
        launchers.slurm(1) | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step}
        for job, step in (("7", "0"), ("8", "0"), ("7", "1"), ("4095", "9"))
    ]
    ports = [int(detect_cluster(environ=each).coordinator[3:]) for each in environs]
    assert len(set(ports)) == 4
    assert all(61440 <= port <= 65535 for port in ports)


@pytest.mark.parametrize(
    "uri",
    ["1.0;tcp6://[fe80::b9b,2620:10d::2]:43370", "1.0;tcp6://[fe80::b9b]:43370"],
)
def test_open_mpi_4_host_may_be_an_ipv6_address(uri):
    environ = launchers.open_mpi_4(1, local_size=1) | {"OMPI_MCA_orte_hnp_uri": uri}
    assert detect_cluster(environ=environ).coordinator == "[fe80::b9b]:62580"


SINGLE = {
    "nothing": {},
    "one SLURM task": launchers.slurm(0) | {"SLURM_STEP_NUM_TASKS": "1"},
    "one MPI rank": launchers.open_mpi_5(0) | {"OMPI_COMM_WORLD_SIZE": "1"},
    "one Kubeflow pod": launchers.kubeflow(0, 29500) | {"JAX_NUM_PROCESSES": "1"},
    "one SkyPilot node": launchers.skypilot(0) | {"SKYPILOT_NUM_NODES": "1"},
    "torchrun": {"NNODES": "2", "NODE_RANK": "1"},
    "indexed Job": {"JOB_COMPLETION_INDEX": "2"},  # May be a job of independent runs.
    "port": {"JAX_COORDINATOR_PORT": "6002"},
    "empty variables": {"JAX_NUM_PROCESSES": "", "JAX_PROCESS_ID": ""},
}


@pytest.mark.parametrize("environ", SINGLE.values(), ids=SINGLE)
def test_detect_cluster_of_a_single_process_is_none(environ):
    assert detect_cluster(environ=environ) is None


def test_num_processes_1_makes_every_process_a_run_of_its_own():
    assert detect_cluster("here:1", 1, 0, environ={}) is None
    assert detect_cluster(None, 1, None, environ=launchers.slurm(1)) is None


@pytest.mark.parametrize(
    "environ",
    [
        launchers.slurm_batch(),
        launchers.slurm(0) | {"SLURM_STEP_NUM_TASKS": "1"},  # Shell in an interactive step.
    ],
)
def test_a_process_of_a_slurm_job_without_srun_is_single_and_warns(environ, capsys):
    assert detect_cluster(environ=environ) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vit_jax: SLURM_NTASKS=2, but this process was not started by srun")


def test_a_single_slurm_task_does_not_warn(capsys):
    environ = launchers.slurm_batch() | {"SLURM_NTASKS": "1", "SLURM_NPROCS": "1"}
    assert detect_cluster(environ=environ) is None
    assert not capsys.readouterr().err


PRECEDENCE = {  # The first engine is used; the variables of the second are others', or agree.
    "kubeflow over slurm": ("Kubeflow Trainer", launchers.kubeflow(1, 1) | launchers.slurm(1)),
    "maxtext over slurm": ("MaxText on GPUs", launchers.maxtext(1, 1) | launchers.slurm(1)),
    "mpirun over its sbatch": (
        "Open MPI 4 and 5",
        launchers.open_mpi_5(1) | launchers.slurm_batch(),
    ),
    "rank over the srun of its daemon": (
        "Open MPI 4 and 5",
        launchers.open_mpi_5(1) | launchers.slurm(0),
    ),
    "srun over a shell of one rank": (
        "SLURM step",
        launchers.open_mpi_5(0) | {"OMPI_COMM_WORLD_SIZE": "1"} | launchers.slurm(1),
    ),
    "mpirun over SkyPilot": (
        "Open MPI 4 and 5",
        launchers.skypilot(0) | {"SKYPILOT_NUM_NODES": "4"} | launchers.open_mpi_5(1),
    ),
    "slurm over skypilot": ("SLURM step", launchers.slurm(1) | launchers.skypilot(1)),
    "kubeflow beside half of xpk": (
        "Kubeflow Trainer",
        launchers.kubeflow(1, 1) | {"NNODES": "2"},
    ),
}


@pytest.mark.parametrize(("engine", "environ"), PRECEDENCE.values(), ids=PRECEDENCE)
def test_detect_cluster_uses_the_first_engine(engine, environ):
    cluster = detect_cluster(environ=environ)
    assert (cluster.source, cluster.num_processes, cluster.process_id) == (engine, 2, 1)


@pytest.mark.parametrize("environ", [launchers.slurm(1), launchers.open_mpi_5(1)])
def test_flags_replace_variables_one_by_one(environ):
    assert detect_cluster("head:1234", None, None, environ).coordinator == "head:1234"
    assert detect_cluster("head:1234", None, None, environ).process_id == 1
    assert detect_cluster(None, 9, None, environ).num_processes == 9
    assert detect_cluster(None, None, 0, environ).process_id == 0
    cluster = detect_cluster("head:1234", 9, 5, environ)
    assert cluster == Cluster("flags", "head:1234", 9, 5)


def test_a_flag_for_the_index_makes_all_gpus_visible():
    environ = launchers.slurm(1, tasks_per_node=2)
    assert detect_cluster("head:1", 2, None, environ).local_device_ids == [1]
    assert detect_cluster(None, 2, 1, environ).local_device_ids is None


def test_local_device_ids_of_the_user_take_precedence():
    environ = launchers.slurm(1, tasks_per_node=2) | {"JAX_LOCAL_DEVICE_IDS": "2,3"}
    assert detect_cluster(environ=environ).local_device_ids is None  # JAX reads the variable.


def test_index_of_a_kubernetes_job_completes_the_flags():
    cluster = detect_cluster("vit-0.vit:1234", 4, None, {"JOB_COMPLETION_INDEX": "3"})
    assert cluster == Cluster("flags", "vit-0.vit:1234", 4, 3)


@pytest.mark.parametrize("environ", [launchers.slurm(1), launchers.open_mpi_4(1, local_size=1)])
def test_variables_of_jax_replace_the_address_of_a_launcher(environ):
    port = environ | {"JAX_COORDINATOR_PORT": "6002"}
    assert detect_cluster(environ=port).coordinator.endswith(":6002")
    address = environ | {"JAX_COORDINATOR_ADDRESS": "head:29500"}
    assert detect_cluster(environ=address).coordinator == "head:29500"
    both = port | {"JAX_COORDINATOR_ADDRESS": "head"}
    assert detect_cluster(environ=both).coordinator == "head:6002"


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    assert set(names) <= set(environ)
    return {name: value for name, value in environ.items() if name not in names}


KUBEFLOW, XPK_GPU, XPK_CPU = launchers.kubeflow(1, 1), launchers.xpk_gpu(1, 1), launchers.xpk_cpu(1)
MAXTEXT, SKYPILOT, MPI = launchers.maxtext(1, 1), launchers.skypilot(1), launchers.open_mpi_5(1)
HALF_SET = [  # Variables, and the names of those that are missing.
    (without(KUBEFLOW, "JAX_PROCESS_ID"), "JAX_PROCESS_ID"),
    (without(KUBEFLOW, "JAX_NUM_PROCESSES"), "JAX_NUM_PROCESSES"),
    (without(KUBEFLOW, "JAX_COORDINATOR_ADDRESS"), "JAX_COORDINATOR_ADDRESS"),
    (without(KUBEFLOW, "JAX_PROCESS_ID", "JAX_NUM_PROCESSES"), "JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
    ({"JAX_PROCESS_ID": "1"}, "JAX_NUM_PROCESSES, JAX_COORDINATOR_ADDRESS"),
    (without(XPK_GPU, "NODE_RANK"), "NODE_RANK"),
    (without(XPK_GPU, "NNODES"), "NNODES"),
    (without(XPK_CPU, "JOB_INDEX"), "JOB_INDEX"),
    (without(XPK_CPU, "PROCESSES_IN_JOB", "JOB_COMPLETION_INDEX"), "PROCESSES_IN_JOB, JOB_"),
    (without(XPK_CPU, "JAX_COORDINATOR_ADDRESS"), "JAX_COORDINATOR_ADDRESS"),
    (without(MAXTEXT, "NODE_RANK"), "NODE_RANK"),
    (without(MAXTEXT, "NNODES", "NODE_RANK"), "NNODES, NODE_RANK"),
    (without(SKYPILOT, "SKYPILOT_NODE_RANK"), "SKYPILOT_NODE_RANK"),
    (without(SKYPILOT, "SKYPILOT_NODE_IPS"), "SKYPILOT_NODE_IPS"),
    (without(SKYPILOT, "SKYPILOT_NUM_NODES"), "SKYPILOT_NUM_NODES"),
    (without(MPI, "OMPI_COMM_WORLD_RANK"), "OMPI_COMM_WORLD_RANK"),
    (without(launchers.slurm(1), "SLURM_PROCID"), "SLURM_PROCID"),
    (without(KUBEFLOW, "JAX_PROCESS_ID") | launchers.slurm(1), "JAX_PROCESS_ID"),
]


@pytest.mark.parametrize(("environ", "missing"), HALF_SET)
def test_half_set_variables_are_an_error_that_names_them(environ, missing):
    with pytest.raises(ConfigError) as caught:
        detect_cluster(environ=environ)
    message = str(caught.value)
    assert message.startswith(missing)
    assert "\n" not in message
    set_beside = message.partition(" missing beside ")[2].partition(": ")[0]
    assert all(pair.partition("=")[0] in environ for pair in set_beside.split(", "))


CONTRADICTIONS = [
    (
        KUBEFLOW | launchers.slurm(1) | {"SLURM_STEP_NUM_TASKS": "4"},
        ["JAX_NUM_PROCESSES=2 (Kubeflow", "SLURM_STEP_NUM_TASKS=4 (SLURM", "--num_processes"],
    ),
    (
        KUBEFLOW | launchers.slurm(0),
        ["JAX_PROCESS_ID=1 (Kubeflow", "SLURM_PROCID=0 (SLURM", "--process_id"],
    ),
    (KUBEFLOW | XPK_GPU | {"NNODES": "3"}, ["JAX_NUM_PROCESSES=2", "NNODES=3"]),
    (
        MAXTEXT | XPK_GPU | {"JAX_COORDINATOR_IP": "10.0.0.1"},
        ["JAX_COORDINATOR_IP=10.0.0.1", "JAX_COORDINATOR_ADDRESS=127.0.0.1", "--coordinator"],
    ),
    (
        launchers.slurm(0) | launchers.skypilot(1),
        ["SLURM_PROCID=0", "SKYPILOT_NODE_RANK=1"],
    ),
    (
        KUBEFLOW | {"JAX_COORDINATOR_PORT": "6002"},
        ["JAX_COORDINATOR_ADDRESS=127.0.0.1:1", "JAX_COORDINATOR_PORT=6002"],
    ),
]


@pytest.mark.parametrize(("environ", "parts"), CONTRADICTIONS)
def test_variables_that_contradict_each_other_are_an_error_with_both_values(environ, parts):
    with pytest.raises(ConfigError, match="contradict each other") as caught:
        detect_cluster(environ=environ)
    assert all(part in str(caught.value) for part in parts)


def test_flags_resolve_a_contradiction():
    environ = KUBEFLOW | launchers.slurm(0) | {"SLURM_STEP_NUM_TASKS": "4"}
    cluster = detect_cluster(None, 2, 1, environ)
    assert (cluster.num_processes, cluster.process_id) == (2, 1)


INVALID = [
    (KUBEFLOW | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is invalid; expected a whole"),
    (KUBEFLOW | {"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1 is invalid; expected a whole number"),
    (
        KUBEFLOW | {"JAX_PROCESS_ID": "2"},
        "JAX_PROCESS_ID=2 is invalid with JAX_NUM_PROCESSES=2; expected 0 to 1",
    ),
    (KUBEFLOW | {"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES=0 is invalid; expected at least 1"),
    (
        XPK_CPU | {"JOB_INDEX": "3"},
        "JOB_INDEX x PROCESSES_IN_JOB + JOB_COMPLETION_INDEX=3 is invalid with JAX_PROCESS_COUNT=2",
    ),
    (KUBEFLOW | {"JAX_COORDINATOR_ADDRESS": "a:70000"}, "ADDRESS=a:70000 is invalid; expected a p"),
    (KUBEFLOW | {"JAX_COORDINATOR_ADDRESS": "a:0"}, "ADDRESS=a:0 is invalid; expected a port"),
    (KUBEFLOW | {"JAX_COORDINATOR_ADDRESS": "a:b"}, "ADDRESS=a:b is invalid; expected HOST or HO"),
    (KUBEFLOW | {"JAX_COORDINATOR_ADDRESS": "http://a"}, "http://a is invalid; expected HOST or"),
    (XPK_GPU | {"JAX_COORDINATOR_PORT": "0"}, "JAX_COORDINATOR_PORT=0 is invalid; expected a port"),
    (XPK_GPU | {"JAX_COORDINATOR_PORT": "x"}, "JAX_COORDINATOR_PORT=x is invalid; expected a whol"),
    (SKYPILOT | {"SKYPILOT_NUM_NODES": "2.0"}, "SKYPILOT_NUM_NODES=2.0 is invalid"),
    (
        without(launchers.open_mpi_4(1, local_size=1), "OMPI_MCA_orte_hnp_uri"),
        "--coordinator missing: Open MPI 4 and 5 does not set the address of process 0 here",
    ),
]


@pytest.mark.parametrize(("environ", "message"), INVALID)
def test_invalid_variables_are_an_error_that_shows_the_value(environ, message):
    with pytest.raises(ConfigError) as caught:
        detect_cluster(environ=environ)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (("head:1", None, None), {}, "--num_processes, --process_id missing"),
        ((None, 2, 0), {}, "--coordinator missing"),
        (("head:1", None, None), launchers.slurm_batch(), "--num_processes, --process_id missing"),
        (("head:1", None, None), {"JOB_COMPLETION_INDEX": "1"}, "--num_processes missing"),
        (("head", 2, 0), {}, "--coordinator=head is invalid; expected HOST:PORT"),
        (("head:99999", 2, 0), {}, "--coordinator=head:99999 is invalid; expected a port"),
        (("head:1", 2, 2), {}, "--process_id=2 is invalid with --num_processes=2; expected 0 to 1"),
        (("head:1", 2, -1), {}, "--process_id=-1 is invalid with --num_processes=2"),
        (("head:1", 0, 0), {}, "--num_processes=0 is invalid; expected at least 1"),
        ((None, None, 5), launchers.slurm(1), "--process_id=5 is invalid with SLURM_STEP_NUM_TAS"),
    ],
)
def test_detect_cluster_rejects_invalid_flags(flags, environ, message):
    with pytest.raises(ConfigError, match=message):
        detect_cluster(*flags, environ=environ)


def set_tpu(monkeypatch, environ: dict[str, str]) -> None:
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_jax_detects_a_tpu_slice(monkeypatch):
    set_tpu(monkeypatch, launchers.gke_tpu(1))
    cluster = detect_cluster(environ=launchers.skypilot(0))  # It started both hosts of the slice.
    assert cluster == Cluster("TPU slices on GKE", None, 2, 1, jax_method="gketpu")
    assert detect_cluster("head:1", None, None, {}).coordinator == "head:1"
    assert detect_cluster("head:1", None, None, {}).jax_method == "deactivate"


def test_a_tpu_slice_of_one_host_is_a_single_process(monkeypatch):
    set_tpu(monkeypatch, launchers.gke_tpu(0) | {"TPU_WORKER_HOSTNAMES": "a"})
    assert detect_cluster(environ={}) is None


def test_a_tpu_slice_without_an_index_is_an_error(monkeypatch):
    set_tpu(monkeypatch, launchers.gke_tpu(0))
    monkeypatch.delenv("TPU_WORKER_ID")
    with pytest.raises(ConfigError, match=r"TPU slices on GKE: JAX cannot read .* TPU_WORKER_ID"):
        detect_cluster(environ={})


@pytest.mark.parametrize(
    ("name", "environ"),
    [("slurm", launchers.slurm(1)), ("ompi", launchers.open_mpi_4(1, local_size=1))],
)
def test_jax_reads_the_same_host_number_and_index(monkeypatch, name, environ):
    """JAX's own detection of SLURM and Open MPI 4 is an independent reading of the variables."""
    from jax._src import clusters

    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    by_jax = next(each for each in clusters.ClusterEnv._cluster_types if each.name == name)
    assert by_jax.is_env_present()
    ours = detect_cluster(environ=environ)
    host = by_jax.get_coordinator_address(1, None).rpartition(":")[0]
    assert host == ours.coordinator.rpartition(":")[0]
    assert by_jax.get_process_count() == ours.num_processes
    assert by_jax.get_process_id() == ours.process_id
