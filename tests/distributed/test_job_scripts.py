"""Job scripts: their syntax, their quoting, and when they start a run again."""

import ast
import dataclasses
import shlex
import subprocess

import pytest

from tests.support.job_examples import JOBS, job_file
from vit_jax.distributed import job_scripts
from vit_jax.distributed.engines import ENGINES
from vit_jax.distributed.job import AGAIN

ODD = {"data.dir": "/data/it's $HOME; `x`", "sweep.grid": "(('optimizer.lr',(0.1,1)),)"}


@pytest.mark.parametrize("engine", ["slurm", "mpi"])
def test_job_script_is_valid_bash(engine):
    subprocess.run(["bash", "-n"], input=job_file(engine), text=True, check=True)


@pytest.mark.parametrize("engine", ["slurm", "mpi"])
def test_job_script_quotes_the_command(engine):
    job = dataclasses.replace(JOBS[engine], overrides=ODD)
    text = ENGINES[engine].write(job, "a b.sh")
    assert shlex.join([job.python, *job.command]) in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_slurm_script_takes_whole_nodes_unless_cpus_are_given():
    job = dataclasses.replace(JOBS["slurm"], cpus=0, gpus=0, gpu_type="", time="", queue="")
    options = [
        line.removeprefix("#SBATCH ")
        for line in job_scripts.write_slurm(job, "x").splitlines()
        if line.startswith("#SBATCH ")
    ]
    assert "--exclusive" in options
    assert not [each for each in options if each.startswith(("--cpus", "--gpus", "--time"))]
    assert "--signal=TERM@120" in options


def test_ray_program_passes_the_job_to_fit():
    tree = ast.parse(job_file("ray"))
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "ray_train.fit"
    ]
    job = JOBS["ray"]
    assert [ast.literal_eval(each) for each in call.args] == [job.config, job.workdir]
    assert {each.arg: ast.literal_eval(each.value) for each in call.keywords} == {
        "num_workers": 4,
        "max_failures": 5,
        "overrides": dict(job.overrides),
        "use_gpu": True,
        "resources_per_worker": {"CPU": 64, "GPU": 8},
        "accelerator_type": "H100",
    }


class Again:
    """The function `again` of job scripts, with a Python that prints the contents of a file."""

    def __init__(self, folder, max_restarts: int):
        python = folder / "python"
        python.write_text('#!/bin/bash\n[ "$4" = --steps ] && cat "$5/steps"\n')
        python.chmod(0o755)
        changes = {"python": str(python), "workdir": str(folder), "max_restarts": max_restarts}
        script = job_scripts.write_slurm(dataclasses.replace(JOBS["slurm"], **changes), "x")
        begin, end = script.index("again() {"), script.index("\n}\n") + 3
        self.program, self.folder = script[begin:end], folder

    def __call__(self, code: int, *steps: str) -> tuple[bool, str]:
        (self.folder / "steps").write_text("".join(f"{each}\n" for each in steps))
        program = f"restarts={self.folder}/restarts\n{self.program}\nagain {code}"
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
        return done.returncode == 0, done.stderr


def test_job_script_starts_again_only_after_the_codes_of_preemptions_and_failures(tmp_path):
    again = Again(tmp_path, max_restarts=999)
    assert [code for code in range(256) if again(code)[0]] == list(AGAIN)


def test_job_script_ends_after_restarts_without_a_saved_step(tmp_path):
    again = Again(tmp_path, max_restarts=2)
    assert [again(143)[0] for _ in range(2)] == [True, True]
    assert [again(6, "run/a 10")[0] for _ in range(2)] == [True, True]
    assert [again(6, "run/a 10", "run/b 5")[0] for _ in range(2)] == [True, True]
    goes_on, message = again(6, "run/a 10", "run/b 5")
    assert not goes_on
    assert message == "l16: 2 restarts have saved no step; not restarted.\n"
