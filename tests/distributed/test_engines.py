"""The table of engines: job files as stored, and jobs that an engine cannot run."""

import dataclasses

import pytest

from tests.support.job_examples import JOBS, golden_file, job_file
from vit_jax.distributed import engines
from vit_jax.distributed.engines import ENGINES, check_job
from vit_jax.errors import ConfigError


@pytest.mark.parametrize("engine", ENGINES)
def test_job_file_of_an_engine_is_the_stored_one(engine):
    assert job_file(engine) == golden_file(engine).read_text(encoding="utf-8")


@pytest.mark.parametrize("engine", ENGINES)
def test_check_job_accepts_the_examples(engine):
    check_job(engine, JOBS[engine])


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        (
            "mpi",
            {"time": "1:00:00"},
            "--time has no effect with --engine=mpi; leave it out, or use",
        ),
        ("slurm", {"image": "vit:1"}, "--image has no effect with --engine=slurm"),
        ("skypilot", {"grace": 30}, "--grace has no effect with --engine=skypilot"),
        ("mpi", {"cpus": 3}, "--cpus_per_node has no effect with --engine=mpi"),
        ("jobset", {"image": ""}, "--engine=jobset needs --image=IMAGE"),
        ("jobset", {"gpu_type": "h100"}, "--gpus_per_node=h100:8 has a type, which Kubernetes"),
        ("skypilot", {"gpu_type": ""}, "SkyPilot needs the type of the GPUs, as in --gpus_per_no"),
        ("ray", {"config": None}, "--engine=ray needs --config=FILE"),
        (
            "ray",
            {"workdir": "gs://b/runs/l16"},
            "--workdir=gs://b/runs/l16 is in a bucket; --engine=ray",
        ),
        ("slurm", {"time": "2"}, "--time=2 is not longer than --grace=120 seconds"),
        ("kubeflow", {"volume": None}, "--workdir=/shared/runs/l16 is lost when a node of Kubefl"),
        ("kubeflow", {"volume": ("claim", "/sha")}, "is lost when .*; PATH is /sha now"),
        ("skypilot", {"workdir": "runs/l16"}, "SOURCE is a bucket such as gs://bucket"),
    ],
)
def test_check_job_rejects_a_job_that_cannot_run(engine, changes, message):
    with pytest.raises(ConfigError, match=message):
        check_job(engine, dataclasses.replace(JOBS[engine], **changes))


@pytest.mark.parametrize("engine", ["kubeflow", "jobset"])
def test_check_job_accepts_the_url_of_a_workdir_without_a_volume(engine):
    check_job(engine, dataclasses.replace(JOBS[engine], volume=None, workdir="gs://b/runs/l16"))


def test_submit_names_a_tool_that_is_not_installed(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for engine, tool in {"slurm": "sbatch", "jobset": "kubectl", "mpi": "mpirun"}.items():
        with pytest.raises(ConfigError, match=f"--submit: {tool} is not installed on this machine"):
            engines.submit(engine, "l16.sbatch")


def test_submit_runs_the_tool_with_the_file_and_reports_its_failure(tmp_path, monkeypatch):
    tool = tmp_path / "sbatch"
    tool.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\nexit "$(wc -l < {tmp_path}/calls)"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigError, match=r"sbatch a\.sbatch failed with exit code 1"):
        engines.submit("slurm", "a.sbatch")
    assert (tmp_path / "calls").read_text() == "a.sbatch\n"
    tool.write_text("#!/bin/bash\nexit 0\n")
    engines.submit("slurm", "a.sbatch")
