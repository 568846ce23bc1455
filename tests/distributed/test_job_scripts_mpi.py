"""Scripts that `launch --engine=mpi` wrote, with a real Open MPI on this machine."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from tests.support.launched_runs import CONFIG, assert_equal_to_the_bit, environment, num_steps
from tests.support.slurm import TIMEOUT, processes_with, wait_until
from vit_jax.checkpoints import layout

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        not shutil.which("mpirun"), reason="mpirun missing: apt-get install openmpi-bin"
    ),
]
# Two processes on this machine, without ssh.
OPEN_MPI = {
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_btl": "self,tcp",
    "OMPI_MCA_plm": "isolated",
}


class Script:
    """The script of a run of two processes, in a folder of its own."""

    def __init__(self, folder: pathlib.Path, *flags: str):
        self.folder, self.workdir = folder, folder / "run"
        (folder / "config.py").write_text(CONFIG)
        self.launch = ["launch", "--engine=mpi", "--nodes=2", "--workdir=run", "--grace=10", *flags]
        self.launch.append("--config=config.py")

    def start(self) -> subprocess.Popen:
        """Writes the script and starts it, which is the same command at every start."""
        self.variables = environment() | OPEN_MPI | {"SCRIPT_OF_TEST": str(self.folder)}
        with open(self.folder / "log", "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "vit_jax.main", *self.launch, "--submit"],
                cwd=self.folder,
                env=self.variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """Kills all processes of the script, which a failed test has left."""
        for pid in processes_with(SCRIPT_OF_TEST=str(self.folder)):
            os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait_for_step(self, process: subprocess.Popen, step: int) -> None:
        def is_reached():
            assert process.poll() is None, self.log()
            return num_steps(self.workdir) >= step

        wait_until(is_reached, describe=self.log)

    def ranks(self, rank: int) -> list[int]:
        name = str(self.folder)
        return processes_with(SCRIPT_OF_TEST=name, OMPI_COMM_WORLD_RANK=str(rank))


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> pathlib.Path:
    """Workdir of a run that nothing interrupts."""
    script = Script(tmp_path_factory.mktemp("reference"))
    try:
        assert script.start().wait(TIMEOUT) == 0, script.log()
    finally:
        script.stop()
    return script.workdir


@pytest.fixture
def script(tmp_path):
    script = Script(tmp_path)
    yield script
    script.stop()


def test_mpi_script_starts_again_after_a_killed_process(reference, script):
    process = script.start()
    script.wait_for_step(process, 14)
    for pid in script.ranks(1):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(TIMEOUT) == 0, script.log()
    restarts = (script.folder / "run.restarts").read_text().splitlines()
    assert restarts == ["saved: run 10 "]
    assert_equal_to_the_bit(script.workdir, reference)


def test_mpi_script_saves_after_sigterm_and_the_same_command_resumes(reference, script):
    process = script.start()
    script.wait_for_step(process, 14)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 143, script.log()
    step = layout.list_steps(script.workdir / layout.FOLDER)[-1]
    assert f"SIGUSR1: step {step} is saved" in script.log()
    assert step >= 14
    assert script.start().wait(TIMEOUT) == 0, script.log()
    assert_equal_to_the_bit(script.workdir, reference)


def test_mpi_script_ends_with_the_code_of_an_error(tmp_path):
    script = Script(tmp_path, "--config.data.source=folder", "--config.data.dir=nowhere")
    assert script.start().wait(TIMEOUT) == 3, script.log()
    assert not (tmp_path / "run.restarts").read_text()
