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
from conftest import ROOT, run_main

from vit_jax import checkpoint, main, trees
from vit_jax.errors import DataError, NonFiniteError, VitJaxError

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
# Tests that share slow runs stay in one process, where those are made once.
share_runs = pytest.mark.xdist_group("interrupted runs")
share_learnt = pytest.mark.xdist_group("a finished run")
TIMINGS = ("train/img_per_sec", "train/data_wait")


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


def records(folder: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def final_state(folder: pathlib.Path) -> dict[str, dict]:
    """The checksum of every array of the newest checkpoint, optimiser included."""
    return checkpoint.read_manifest(checkpoint.find(folder))["leaves"]


def run_until(step: int, number: int, *arguments: str, folder: pathlib.Path) -> int:
    """Starts a run, sends a signal once the step stands in metrics.jsonl; returns the code."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vit_jax.main", *arguments, f"--workdir={folder}"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            path = folder / "metrics.jsonl"
            if path.is_file() and path.read_text().count("\n") >= step:
                process.send_signal(number)
                break
            time.sleep(0.005)
        return process.wait()


@pytest.fixture(scope="module")
def interrupted(noisy, tmp_path_factory) -> pathlib.Path:
    """A run killed before its first checkpoint, and ended by SIGTERM between two."""
    folder = tmp_path_factory.mktemp("interrupted")
    run = f"--config={noisy}"
    assert run_until(3, signal.SIGKILL, run, folder=folder) == -signal.SIGKILL
    assert run_until(11, signal.SIGKILL, run, folder=folder) == -signal.SIGKILL
    assert run_until(17, signal.SIGTERM, run, folder=folder) == 143
    return folder


@share_runs
def test_sigterm_saves_the_last_finished_step(interrupted):
    stopped_at = checkpoint.steps_in(interrupted / checkpoint.FOLDER)[-1]
    assert stopped_at >= 17
    assert records(interrupted)[-1]["step"] == stopped_at


@share_runs
def test_interrupted_runs_go_on_to_the_same_bits(interrupted, uninterrupted, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(interrupted, folder)
    done = run_main(f"--workdir={folder}")
    assert done.code == 0, done.err
    assert records(folder) == records(uninterrupted)
    assert final_state(folder) == final_state(uninterrupted)


@share_runs
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


@share_runs
def test_every_step_is_logged_once_with_ids_in_global_order(uninterrupted):
    lines = records(uninterrupted)
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert len({line["train/ids_crc"] for line in lines}) == 30
    assert [line["step"] for line in lines if "val/n" in line] == [10, 20, 30]
    assert {line["val/n"] for line in lines if "val/n" in line} == {359}


@share_runs
@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8"])
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


def tiny_flags(workdir, *overrides: str) -> list[str]:
    """A run of a few steps on noise that can be learnt."""
    tiny = {
        "model.num_layers": 1,
        "model.hidden_size": 16,
        "model.mlp_size": 32,
        "data.source": "fake",
        "data.num_classes": 3,
        "data.num_examples": 48,
        "batch_size": 16,
        "steps": 8,
        "checkpoint_every": 4,
    }
    flags = [f"--config.{key}={value}" for key, value in tiny.items()]
    config = f"--config={ROOT / 'configs' / 'finetune.py'}:data=x,smoke"
    return [config, f"--workdir={workdir}", *flags, *(f"--config.{each}" for each in overrides)]


def test_a_loss_that_is_no_number_ends_with_code_5_and_a_finite_checkpoint(tmp_path, capsys):
    flags = tiny_flags(tmp_path, "optimizer.lr=1e38", "optimizer.clip_norm=None", "steps=40")
    with pytest.raises(NonFiniteError, match="3 steps in a row") as caught:
        main.run([*flags, "--config.checkpoint_every=1"])
    assert caught.value.exit_code == 5
    step = checkpoint.find(tmp_path)
    params = checkpoint.restore(step, checkpoint.stored_params(step))
    for name, array in trees.flatten(params).items():
        assert np.isfinite(array).all(), name


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> pathlib.Path:
    """A run of 60 steps, with checkpoints at 56 and 60."""
    folder = tmp_path_factory.mktemp("learnt")
    assert main.run(tiny_flags(folder, "steps=60", "optimizer.lr=0.05")) == 0
    return folder


def unfinished_copy(run: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """The flags that go on with a copy of a run whose summary was never written."""
    shutil.copytree(run, folder)
    (folder / "summary.json").unlink()
    return tiny_flags(folder, "steps=60", "optimizer.lr=0.05")


@share_learnt
def test_training_learns_what_can_be_learnt(learnt):
    assert json.loads((learnt / "summary.json").read_text())["metrics"]["val/top1"] == 1.0


@share_learnt
def test_the_summary_accounts_for_the_run(learnt):
    summary = json.loads((learnt / "summary.json").read_text())
    leaves = final_state(learnt)
    sizes = [np.prod(v["shape"], dtype=int) for k, v in leaves.items() if k.startswith("params/")]
    assert summary["parameters"] == sum(sizes)
    assert summary["step"] == 60
    assert summary["metrics"]["val/n"] == 48
    assert {"jax", "flax", "python"} <= set(summary["versions"])
    parts = ("start", "data", "train", "eval", "save")
    assert summary["seconds"]["wall"] == pytest.approx(sum(summary["seconds"][p] for p in parts))


@share_learnt
def test_a_damaged_newest_step_is_refused_or_with_fallback_set_aside(learnt, tmp_path, capsys):
    folder = tmp_path / "copy"
    flags = unfinished_copy(learnt, folder)
    (folder / "checkpoints" / "60" / "meta" / "metadata").write_text("{}")
    with pytest.raises(VitJaxError, match="checkpoints/60/meta is damaged") as caught:
        main.run(flags)
    assert caught.value.exit_code == 4
    assert main.run([*flags, "--fallback"]) == 0
    assert "going on from step 56" in capsys.readouterr().out
    assert records(folder) == records(learnt)
    assert final_state(folder) == final_state(learnt)
    assert (folder / "damaged" / "60" / "meta").is_dir()


def rewrite(step: pathlib.Path, name: str, item: dict) -> None:
    """Puts another item into a checkpoint, with a manifest that agrees."""
    manifest = checkpoint.read_manifest(step)
    manifest["items"][name] = checkpoint._crc_of_json(item)
    body = {part: manifest[part] for part in ("leaves", "items")}
    body["crc32c"] = checkpoint._crc_of_json(body)
    (step / name / "metadata").write_text(json.dumps(item))
    (step / "manifest" / "metadata").write_text(json.dumps(body))


@share_learnt
def test_other_classes_than_the_run_began_with_are_refused(learnt, tmp_path):
    flags = unfinished_copy(learnt, tmp_path / "copy")
    step = tmp_path / "copy" / "checkpoints" / "60"
    meta = checkpoint.read_item(step, "meta")
    meta["classes"][1] = "crane"
    rewrite(step, "meta", meta)
    with pytest.raises(DataError, match="class 1 is 'crane' in the checkpoint, 'class 1' in the"):
        main.run(flags)


@share_learnt
def test_changed_data_is_told_of_when_a_run_goes_on(learnt, tmp_path):
    flags = unfinished_copy(learnt, tmp_path / "copy")
    step = tmp_path / "copy" / "checkpoints" / "60"
    fingerprints = checkpoint.read_item(step, "data")["fingerprints"]
    assert set(fingerprints) == {"train", "val"}
    changed = {"train": fingerprints["train"] + 1, "val": fingerprints["val"]}
    rewrite(step, "data", checkpoint.read_item(step, "data") | {"fingerprints": changed})
    with pytest.raises(DataError, match="other names, labels or images"):
        main.run(flags)


def test_stages_start_from_each_other_and_are_done_once(tmp_path, capsys):
    flags = [f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke", f"--workdir={tmp_path}"]
    stages = ("pretrain", "finetune", "scratch")
    flags += [f"--config.stages.{name}.model.num_layers=1" for name in stages]
    bigger = "--config.stages.finetune.data.image_size=42"  # A grid of 6x6 from one of 4x4.
    assert main.run([*flags, bigger]) == 0
    out = capsys.readouterr().out
    assert "finetune  " in out
    assert "position embeddings resized from 4x4 to 6x6" in out
    assert "head replaced by zeros" in out
    last = out.splitlines()[-1]
    assert last.startswith("done: stages=3 pretrain/top1=0.")
    assert " finetune/top1=0." in last
    assert last.endswith(f" workdir={tmp_path}")
    first_loss = records(tmp_path / "finetune")[0]["train/loss"]
    assert first_loss == pytest.approx(np.log(10), abs=1e-6)  # A head of zeros.
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert tuple(summary["stages"]) == stages

    assert main.run([f"--workdir={tmp_path}"]) == 0  # Finished: told again, nothing run.
    assert capsys.readouterr().out.splitlines() == [last]
    with pytest.raises(VitJaxError, match="holds the stages pretrain, finetune, scratch"):
        main.run(["evaluate", f"--workdir={tmp_path}"])
    assert main.run(["evaluate", f"--workdir={tmp_path / 'finetune'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("n=359/359")
