"""Jobs of two nodes that `launch --engine=slurm` wrote, in a real SLURM cluster."""

import os
import pathlib
import signal

import pytest

from tests.support import slurm
from tests.support.launched_runs import CONFIG, assert_equal_to_the_bit, environment, num_steps
from vit_jax import main
from vit_jax.checkpoints import layout

REASON = slurm.reason_to_skip()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(REASON), reason=str(REASON))]


@pytest.fixture(scope="module")
def cluster():
    with slurm.running_cluster() as cluster:
        yield cluster


class SlurmJob:
    """A job of two nodes, submitted from a folder of its own."""

    def __init__(self, cluster, folder: pathlib.Path, *flags: str, engine_flags=()):
        folder = folder / "a folder"
        self.cluster, self.folder, self.workdir = cluster, folder, folder / "run"
        folder.mkdir()
        (folder / "config.py").write_text(CONFIG)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            launch = ["launch", "--engine=slurm", "--nodes=2", "--workdir=run", *engine_flags]
            assert main.run([*launch, "--config=config.py", "--cpus_per_node=1", *flags]) == 0
        cluster.environment |= environment()
        script = folder / "run.sbatch"
        out = cluster.run("sbatch", "--parsable", str(script))
        self.number = out.strip()

    def state(self) -> dict[str, str]:
        return self.cluster.job(self.number)

    def log(self) -> str:
        path = self.folder / f"run-{self.number}.log"
        return path.read_text() if path.exists() else ""

    def wait_for_step(self, step: int) -> None:
        def is_reached():
            assert self.state()["JobState"] in ("PENDING", "RUNNING"), self.log()
            return num_steps(self.workdir) >= step

        slurm.wait_until(is_reached, describe=self.log)

    def wait_for_end(self) -> dict[str, str]:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        slurm.wait_until(lambda: self.state()["JobState"] in ended, describe=self.log)
        return self.state()

    def resume(self) -> None:
        """Starts the job again, which SLURM has requeued, and checks that it ends well."""
        self.cluster.start_pending(self.number)
        state = self.wait_for_end()
        assert state["JobState"] == "COMPLETED", self.log()
        assert state["Restarts"] == "1"


@pytest.fixture(scope="module")
def reference(cluster, tmp_path_factory) -> pathlib.Path:
    """Workdir of a job that nothing interrupts."""
    job = SlurmJob(cluster, tmp_path_factory.mktemp("reference"))
    state = job.wait_for_end()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "0"), job.log()
    return job.workdir


def saved_step(job: SlurmJob) -> int:
    return layout.list_steps(job.workdir / layout.FOLDER)[-1]


def test_slurm_job_requeues_itself_after_sigterm(cluster, reference, tmp_path):
    job = SlurmJob(cluster, tmp_path)
    job.wait_for_step(14)
    cluster.run("scancel", "--signal=TERM", job.number)
    cluster.start_pending(job.number)
    assert f"SIGTERM: step {saved_step(job)} is saved" in job.log()
    assert "exit code 143; requeued" in job.log()
    job.wait_for_end()
    assert_equal_to_the_bit(job.workdir, reference)


def test_slurm_job_survives_scontrol_requeue(cluster, reference, tmp_path):
    job = SlurmJob(cluster, tmp_path)
    job.wait_for_step(14)
    cluster.run("scontrol", "requeue", job.number)
    job.resume()
    assert_equal_to_the_bit(job.workdir, reference)


def test_slurm_job_survives_the_loss_of_a_node(cluster, reference, tmp_path):
    job = SlurmJob(cluster, tmp_path)
    job.wait_for_step(14)
    lost = slurm.NODES[1]
    cluster.kill_node(lost)
    cluster.run("scontrol", "update", f"nodename={lost}", "state=down", "reason=lost")
    job.resume()
    assert job.state()["NodeList"] == "127.0.0.[1,3]"
    assert_equal_to_the_bit(job.workdir, reference)
    cluster.start_node(lost)
    slurm.wait_until(lambda: cluster.idle_nodes() == 3, describe=cluster.logs)


def test_slurm_job_requeues_itself_after_a_killed_process(cluster, reference, tmp_path):
    job = SlurmJob(cluster, tmp_path)
    job.wait_for_step(14)
    for pid in slurm.processes_with(SLURM_JOB_ID=job.number, SLURM_PROCID="1"):
        os.kill(pid, signal.SIGKILL)
    job.resume()
    assert "exit code 137; requeued" in job.log()
    assert_equal_to_the_bit(job.workdir, reference)


def test_slurm_job_requeues_itself_before_its_time_limit(cluster, reference, tmp_path):
    job = SlurmJob(cluster, tmp_path, engine_flags=["--time=1", "--grace=5"])
    slurm.wait_until(lambda: job.state()["JobState"] == "PENDING" and job.log(), describe=job.log)
    assert "exit code 143; requeued" in job.log()
    cluster.run("scontrol", "update", f"jobid={job.number}", "timelimit=60")  # To end soon.
    job.resume()
    assert_equal_to_the_bit(job.workdir, reference)


def test_slurm_job_is_not_requeued_after_scancel(cluster, tmp_path):
    job = SlurmJob(cluster, tmp_path)
    job.wait_for_step(14)
    cluster.run("scancel", job.number)
    state = job.wait_for_end()
    assert state["JobState"] == "CANCELLED"
    slurm.wait_until(lambda: cluster.idle_nodes() == 3, describe=cluster.logs)
    assert f"SIGTERM: step {saved_step(job)} is saved" in job.log()
    assert job.state()["JobState"] == "CANCELLED"


def test_slurm_job_is_not_requeued_after_an_error(cluster, tmp_path):
    job = SlurmJob(cluster, tmp_path, "--config.data.source=folder", "--config.data.dir=nowhere")
    state = job.wait_for_end()
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "3:0", "0")
