"""Runs of two processes, without a shared folder, whose workdir is in an emulated bucket."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support.buckets import compiled_programs, emulator, free_port
from tests.support.runs import ROOT, final_state, records
from tests.support.tiny_flags import tiny_flags
from vit_jax.checkpoints import layout
from vit_jax.checkpoints import local_copy as local_copy_lib
from vit_jax.checkpoints.lease import NAME
from vit_jax.checkpoints.local_copy import MARKER, open_folder
from vit_jax.data.object_store import ObjectStore

pytestmark = pytest.mark.cluster
OPTIONS = ("steps=24", "checkpoint_every=4", "log_every=1", "eval_every=8", "select=best")
TIMEOUT = 600  # Seconds, on a machine with other work.
MESHES = {"replicated": "mesh.data=8", "sharded": "mesh.fsdp=8"}


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request):
    with emulator(request.param) as found:
        yield found


@pytest.fixture(autouse=True)
def environment(bucket, monkeypatch, tmp_path_factory):
    variables = bucket.environment() | {
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "PYTHONPATH": str(ROOT),
    }
    variables |= compiled_programs(tmp_path_factory.getbasetemp() / "programs")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(local_copy_lib, "_copies", {})


def flags(workdir, mesh: str) -> list[str]:
    sizes = ("mesh.data=1", MESHES[mesh]) if mesh == "sharded" else (MESHES[mesh],)
    return tiny_flags(workdir, *OPTIONS, *sizes)


def start(arguments: list[str], count: int) -> list[subprocess.Popen]:
    """Starts a run of one or two processes with eight CPU devices in total."""
    together = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "vit_jax.main", *arguments]
            + ([*together, f"--process_id={i}"] if count > 1 else []),
            cwd=ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(8 // count)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(count)
    ]


def run(arguments: list[str], count: int) -> str:
    """Runs to the end; returns what process 0 printed."""
    processes = start(arguments, count)
    try:
        ends = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, ends
    return ends[0][0]


@pytest.fixture(scope="module", params=MESHES)
def local_run(request, tmp_path_factory) -> tuple[str, pathlib.Path]:
    """The mesh, and a whole run of two processes in a local workdir."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    with pytest.MonkeyPatch.context() as patch:
        programs = compiled_programs(tmp_path_factory.getbasetemp() / "programs")
        for name, value in {"PYTHONPATH": str(ROOT), **programs}.items():
            patch.setenv(name, value)
        run(flags(folder, request.param), 2)
    return request.param, folder


def test_two_processes_kill_and_resume_to_the_same_bits(bucket, local_run):
    mesh, local = local_run
    url = f"{bucket.url}/runs/{mesh}"
    store = ObjectStore(url)
    processes = start(flags(url, mesh), 2)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not store.read(f"{layout.FOLDER}/8/{MARKER}"):
            assert all(process.poll() is None for process in processes), processes[0].communicate()
            assert time.monotonic() < deadline
            time.sleep(0.3)
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    out = run(flags(url, mesh), 2)
    assert "resuming from step " in out
    folder = open_folder(url)
    assert records(folder) == records(local)
    assert final_state(folder / layout.FOLDER) == final_state(local / layout.FOLDER)
    assert final_state(folder / layout.BEST) == final_state(local / layout.BEST)
    assert NAME not in store.list()
    names = [name for name in store.list(f"{layout.FOLDER}/24/state") if "ocdbt" in name]
    assert not names

    store.delete([f"{layout.FOLDER}/24/{MARKER}", "summary.json"])
    out = run(flags(url, mesh), 1)  # All parts of the arrays are there.
    assert "resuming from step 20" in out
    losses = [
        [line["train/loss"] for line in records(where)] for where in (open_folder(url), local)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)


def test_stages_of_two_processes_read_the_weights_of_each_other(bucket, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(STAGES)
    arguments = [f"--config={config}", "--config.stages.first.mesh.fsdp=8"]
    run([*arguments, f"--workdir={bucket.url}/runs/stages"], 2)
    run([*arguments, f"--workdir={tmp_path / 'local'}"], 2)
    folder = open_folder(f"{bucket.url}/runs/stages")
    for stage in ("first", "second"):
        assert records(folder / stage) == records(tmp_path / "local" / stage)
        assert final_state(folder / stage) == final_state(tmp_path / "local" / stage)


STAGES = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config("first", "second")
    for stage in config.stages.values():
        stage.model.update(name="vit_ti16", patch=14, num_layers=1, hidden_size=16, mlp_size=32)
        stage.model.num_heads = 2
        stage.data.update(image_size=28, num_classes=3, num_examples=48)
        stage.optimizer.warmup_steps = 2
        stage.update(batch_size=16, steps=4, log_every=1, checkpoint_every=2)
    config.stages.first.mesh.data = 1
    config.stages.second.init.stage = "first"
    return config
"""
