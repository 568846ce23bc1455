"""Which process of how many this is: by flags, or by what launchers leave in the environment."""

import re

import pytest

from vit_jax.distributed import cluster as cluster_lib
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
        {"JOB_COMPLETION_INDEX": "2"},  # Of a job of independent runs, for all we know.
    ],
)
def test_a_process_that_is_alone_starts_nothing(environ):
    assert cluster_lib.find(environ=environ) is None


def test_one_process_of_one_is_alone():
    assert cluster_lib.find("here:1", 1, 0, environ={}) is None


@pytest.mark.parametrize(
    ("environ", "how"),
    [
        (SLURM, {"cluster_detection_method": "slurm"}),
        (
            SLURM | {"SLURM_GPUS_ON_NODE": "4"},  # One process has them all.
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
def test_launchers_that_jax_knows_are_left_to_it(environ, how):
    assert cluster_lib.find(environ=environ) == how


def test_jax_finds_its_way_in_what_launchers_leave(monkeypatch):
    """JAX's own reading of the variables that `launchers` goes by."""
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


@pytest.mark.parametrize(("names", "how"), [("a,b", {}), ("a", None)])
def test_a_tpu_slice_of_several_hosts_needs_no_flags(monkeypatch, names, how):
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", names)
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "1")  # Else it asks a server of Google's.
    assert cluster_lib.find(environ={}) == how


@pytest.mark.parametrize(
    ("environ", "size", "index"),
    [(SLURM, 2, 1), (OPEN_MPI, 4, 3), ({"JOB_COMPLETION_INDEX": "2"}, 8, 2)],
)
def test_flags_go_before_what_a_launcher_tells(environ, size, index):
    given = size if "JOB_COMPLETION_INDEX" in environ else None
    how = cluster_lib.find("head:1234", given, None, environ=environ)
    assert how == {
        "coordinator_address": "head:1234",
        "num_processes": size,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }
    assert cluster_lib.find("head:1234", 9, 0, environ=environ)["process_id"] == 0


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        (("head:1", None, None), {}, "--num_processes, --process_id missing"),
        ((None, 2, 0), {}, "--coordinator missing"),
        ((None, 2, None), SLURM, "--coordinator missing"),
        (("head", 2, 0), {}, "--coordinator=head is not HOST:PORT"),
        (("head:1", 2, 2), {}, "--process_id=2 with --num_processes=2"),
        (("head:1", 2, -1), {}, "--process_id=-1 with --num_processes=2"),
        ((None, None, None), OPEN_MPI, "version 5 does not"),
    ],
)
def test_flags_that_do_not_fit_are_told_in_one_line(flags, environ, words):
    with pytest.raises(ConfigError, match=words):
        cluster_lib.find(*flags, environ=environ)
