"""Tests of `detect_cluster` with flags and with the environment variables of launchers."""

import re

import pytest

from vit_jax.distributed.cluster import detect_cluster
from vit_jax.errors import ConfigError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SLURM | {"SLURM_NTASKS": "1"},
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"},
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"JOB_COMPLETION_INDEX": "2"},  # May be a job of independent runs.
    ],
)
def test_detect_cluster_of_a_single_process_is_none(environ):
    assert detect_cluster(environ=environ) is None


def test_detect_cluster_with_num_processes_1_is_none():
    assert detect_cluster("here:1", 1, 0, environ={}) is None


@pytest.mark.parametrize(
    ("environ", "options"),
    [
        (SLURM, {"cluster_detection_method": "slurm"}),
        (
            SLURM | {"SLURM_GPUS_ON_NODE": "4"},  # One process uses all of them.
            {"cluster_detection_method": "slurm", "local_device_ids": [0, 1, 2, 3]},
        ),
        (
            SLURM | {"SLURM_GPUS_ON_NODE": "4", "SLURM_NNODES": "1"},
            {"cluster_detection_method": "slurm"},
        ),
        (
            OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://1.2.3.4:5"},
            {"cluster_detection_method": "ompi"},
        ),
    ],
)
def test_detect_cluster_uses_jax_detection_of_known_launchers(environ, options):
    assert detect_cluster(environ=environ) == options


def test_jax_reads_size_and_index_from_launcher_variables(monkeypatch):
    """JAX reads the same variables as `detect_cluster`."""
    from jax._src import clusters

    for name, value in (SLURM | OPEN_MPI).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1:34911")
    by_name = {cluster.name: cluster for cluster in clusters.ClusterEnv._cluster_types}
    for name, host, size, index in (("slurm", "node1", 2, 1), ("ompi", "10.96.0.1", 4, 3)):
        cluster = by_name[name]
        assert cluster.is_env_present()
        assert re.match(rf"{re.escape(host)}:\d+$", cluster.get_coordinator_address(1, None))
        assert (cluster.get_process_count(), cluster.get_process_id()) == (size, index)


@pytest.mark.parametrize(("names", "options"), [("a,b", {}), ("a", None)])
def test_detect_cluster_of_a_tpu_slice_needs_no_flags(monkeypatch, names, options):
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", names)
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "1")  # Otherwise JAX asks a metadata server.
    assert detect_cluster(environ={}) == options


@pytest.mark.parametrize(
    ("environ", "size", "index"),
    [(SLURM, 2, 1), (OPEN_MPI, 4, 3), ({"JOB_COMPLETION_INDEX": "2"}, 8, 2)],
)
def test_detect_cluster_prefers_flags_over_launcher_variables(environ, size, index):
    given = size if "JOB_COMPLETION_INDEX" in environ else None
    options = detect_cluster("head:1234", given, None, environ=environ)
    assert options == {
        "coordinator_address": "head:1234",
        "num_processes": size,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }
    assert detect_cluster("head:1234", 9, 0, environ=environ)["process_id"] == 0


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (("head:1", None, None), {}, "--num_processes, --process_id missing"),
        ((None, 2, 0), {}, "--coordinator missing"),
        ((None, 2, None), SLURM, "--coordinator missing"),
        (("head", 2, 0), {}, "--coordinator=head is invalid; expected HOST:PORT"),
        (("head:1", 2, 2), {}, "--process_id=2 is invalid with --num_processes=2; expected 0 to 1"),
        (("head:1", 2, -1), {}, "--process_id=-1 is invalid with --num_processes=2"),
        ((None, None, None), OPEN_MPI, "only versions below 5 do"),
    ],
)
def test_detect_cluster_rejects_invalid_flags(flags, environ, message):
    with pytest.raises(ConfigError, match=message):
        detect_cluster(*flags, environ=environ)
