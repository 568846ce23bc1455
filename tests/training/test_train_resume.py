"""Runs that are killed and go on, on one device and on eight, to the same numbers."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support.runs import ROOT, final_state, records, run_main, run_until
from vit_jax import main
from vit_jax.checkpoints import layout
from vit_jax.errors import VitJaxError
from vit_jax.training import attempts

# Dropout, stochastic depth, augmentation and shuffling on: all that randomness can hide in.
NOISY = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=7, num_layers=2, hidden_size=32, mlp_size=64)
    config.model.update(num_heads=2, dropout=0.1, drop_path=0.1)
    config.data.update(source="digits", image_size=28, per_class=9)
    config.optimizer.update(warmup_steps=5, weight_decay=0.1)
    config.update(batch_size=16, steps=30, log_every=1, checkpoint_every=7, eval_every=10)
    return config
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("config") / "noisy.py"
    path.write_text(NOISY)
    return path


@pytest.fixture(scope="module")
def uninterrupted(noisy, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run_main(f"--config={noisy}", f"--workdir={folder}")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def interrupted(noisy, tmp_path_factory) -> pathlib.Path:
    """A run killed before its first checkpoint, and ended by SIGTERM between two."""
    folder = tmp_path_factory.mktemp("interrupted")
    run = f"--config={noisy}"
    assert run_until(3, signal.SIGKILL, run, folder=folder) == -signal.SIGKILL
    assert run_until(11, signal.SIGKILL, run, folder=folder) == -signal.SIGKILL
    assert run_until(17, signal.SIGTERM, run, folder=folder) == 143
    return folder


@pytest.mark.slow
def test_sigterm_saves_the_last_finished_step(interrupted):
    stopped_at = layout.list_steps(interrupted / layout.FOLDER)[-1]
    assert stopped_at >= 17
    assert records(interrupted)[-1]["step"] == stopped_at


@pytest.mark.slow
def test_interrupted_runs_go_on_to_the_same_bits(interrupted, uninterrupted, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(interrupted, folder)
    done = run_main(f"--workdir={folder}")
    assert done.code == 0, done.err
    assert records(folder) == records(uninterrupted)
    assert final_state(folder) == final_state(uninterrupted)


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_at_the_same_example(
    noisy, interrupted, uninterrupted, tmp_path
):
    folder = tmp_path / "copy"
    shutil.copytree(interrupted, folder)
    flags = ["--config.mesh.data=2", "--config.mesh.fsdp=4"]
    assert main.run([f"--config={noisy}", f"--workdir={folder}", *flags]) == 0
    one, mixed = records(uninterrupted), records(folder)
    assert [r["train/ids_crc"] for r in one] == [r["train/ids_crc"] for r in mixed]
    losses = [[record["train/loss"] for record in run] for run in (one, mixed)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_every_step_is_logged_once_with_ids_in_global_order(uninterrupted):
    lines = records(uninterrupted)
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert len({line["train/ids_crc"] for line in lines}) == 30
    assert [line["step"] for line in lines if "val/n" in line] == [10, 20, 30]
    assert {line["val/n"] for line in lines if "val/n" in line} == {359}


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8"])
@pytest.mark.stress
def test_eight_devices_lose_as_one_does(noisy, uninterrupted, tmp_path, mesh):
    axis, _, size = mesh.partition("=")
    sizes = {"data": 1, "fsdp": 1} | {axis: int(size)}
    flags = [f"--config.mesh.{name}={value}" for name, value in sizes.items()]
    assert main.run([f"--config={noisy}", f"--workdir={tmp_path}", *flags]) == 0
    one, eight = records(uninterrupted), records(tmp_path)
    assert [r["train/ids_crc"] for r in one] == [r["train/ids_crc"] for r in eight]
    losses = [[record["train/loss"] for record in run] for run in (one, eight)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert [r.get("val/n") for r in one] == [r.get("val/n") for r in eight]


@pytest.mark.slow
def test_a_workdir_in_use_is_refused_and_its_process_named(noisy, tmp_path):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    flags = [f"--config={noisy}", f"--workdir={tmp_path}", "--config.steps=100000"]
    command = [sys.executable, "-m", "vit_jax.main", *flags]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as first:
        while not (tmp_path / ".lock").exists() or not (tmp_path / ".lock").read_text():
            assert first.poll() is None
            time.sleep(0.01)
        with pytest.raises(VitJaxError, match=rf"in use by process {first.pid} ") as caught:
            main.run(flags)
        first.kill()
    assert caught.value.exit_code == 2


@pytest.mark.slow
def test_goodput_counts_the_time_of_all_killed_attempts(interrupted, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(interrupted, folder)
    done = run_main(f"--workdir={folder}")
    assert done.code == 0, done.err
    found = json.loads((folder / "summary.json").read_text())["goodput"]
    processes = attempts.read(folder)
    assert [each.end for each in processes] == ["", "", "SIGTERM", "finished"]
    assert [each.resumed_step for each in processes[:3]] == [0, 0, 7]
    assert processes[3].resumed_step == processes[2].step >= 17
    first, second, third, _ = attempts.parts_of(processes)
    assert first["train"] == third["lost"] == 0
    # The line of a killed attempt is up to a second old; what it lacks counts as `down`.
    assert first["lost"] + first["down"] > 0 < second["lost"] + second["down"]
    assert third["train"] > 0
    assert found["attempts"] == 4
    assert sum(found["seconds"].values()) == pytest.approx(found["wall"], rel=0.01)
    assert found["wall"] == pytest.approx(processes[-1].ended - processes[0].started, rel=0.01)
    # Clocks of processes and the wall clock agree: a file is written when an attempt ends.
    written = (folder / attempts.FILE).stat().st_mtime
    assert written == pytest.approx(processes[-1].ended, abs=0.01 * found["wall"])
