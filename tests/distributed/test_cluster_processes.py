"""Two processes with the variables of an engine train one run, as pods and nodes do."""

import contextlib
import fcntl
import os
import pathlib
import tempfile

import numpy as np
import pytest

from tests.support import launchers
from tests.support.processes import (
    CONFIG,
    environment_of_runs,
    free_port,
    printed_lines,
    run_processes,
)
from tests.support.runs import records
from vit_jax.distributed.dialects import DIALECTS

PODS = {  # Dialect -> the variables of a process.
    "kubeflow": launchers.kubeflow,
    "xpk_gpu": launchers.xpk_gpu,
    "xpk_cpu": launchers.xpk_cpu,
    "maxtext": launchers.maxtext,
    "skypilot": launchers.skypilot,
    "openmpi": launchers.open_mpi_5,
    "tpu_gke": launchers.gke_tpu,
}
FIXED_PORTS = {"xpk_cpu": 1234, "skypilot": 1234}  # These engines set none.
LAUNCHER_VARIABLES = ("SLURM_", "OMPI_", "PMIX_", "JAX_COORDINATOR", "SKYPILOT_", "TPU_")


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG)
    flags = {"model.num_layers": 1, "optimizer.warmup_steps": 2, "steps": 4, "eval_every": 4}
    options = [f"--config.{name}={value}" for name, value in flags.items()]
    return ["-m", "vit_jax.main", f"--config={path}", *options]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Environment of a process with one device and without a launcher."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}
    return environment_of_runs(own, tmp_path_factory.mktemp("programs"), devices=1)


@pytest.fixture(scope="module")
def single_process_run(command, environment, tmp_path_factory) -> pathlib.Path:
    """Workdir of a run of one process with both devices."""
    folder = tmp_path_factory.mktemp("alone")
    environment = environment | {"JAX_NUM_CPU_DEVICES": "2"}
    (done,) = run_processes([[*command, f"--workdir={folder}"]], environment)
    assert done.code == 0, done.err
    return folder


@contextlib.contextmanager
def reserved(port: int):
    """Waits until no other test uses a port."""
    with open(f"{tempfile.gettempdir()}/vit_jax_port_{port}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield port


@pytest.mark.cluster
@pytest.mark.parametrize("name", PODS)
def test_processes_with_the_variables_of_an_engine_train_one_run(
    name, command, environment, single_process_run, tmp_path
):
    with reserved(FIXED_PORTS.get(name, free_port())) as port:
        pods = [environment | PODS[name](i, port) for i in range(2)]
        first, second = run_processes([[*command, f"--workdir={tmp_path}"]] * 2, pods)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    start = f"2 processes ({DIALECTS[name].engine}); process 0 is at 127.0.0.1:"
    assert printed_lines(first)[0].startswith(start)
    assert printed_lines(second) == []
    run, reference = records(tmp_path), records(single_process_run)
    assert [line["step"] for line in run] == [1, 2, 3, 4]
    assert [line["train/ids_crc"] for line in run] == [line["train/ids_crc"] for line in reference]
    losses = [[line["train/loss"] for line in each] for each in (run, reference)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.cluster
def test_contradictory_variables_end_the_command_before_the_workdir_exists(
    command, environment, tmp_path
):
    variables = launchers.kubeflow(1, 29500) | launchers.slurm(0)
    folder = tmp_path / "run"
    (done,) = run_processes([[*command, f"--workdir={folder}"]], environment | variables)
    assert done.code == 2
    assert "JAX_PROCESS_ID=1 (Kubeflow Trainer) and SLURM_PROCID=0 (SLURM step" in done.error
    assert not folder.exists()
