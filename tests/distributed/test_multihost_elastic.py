"""Runs that are continued on other numbers of processes, and self-distillation on two."""

import os
import pathlib
import signal

import numpy as np
import pytest

from tests.support.processes import (
    assert_same_run,
    environment_of_runs,
    free_address,
    run_processes,
)
from tests.support.runs import Finished, records
from vit_jax.checkpoints import layout

pytestmark = pytest.mark.cluster

STEPS = 60
# Every number of devices divides the batch; some of them split it and the arrays unevenly.
CONFIG = """
from vit_jax.config import base_config

PHOTOS = {photos!r}


def get_config(arg):
    config = base_config()
    config.model.update(name="vit_ti16", patch=7, num_layers=2, hidden_size=24, mlp_size=48)
    config.model.update(num_heads=2, dropout=0.1, drop_path=0.1)
    config.data.update(image_size=14, val_split="")
    config.optimizer.update(warmup_steps=5, weight_decay=0.1)
    config.update(batch_size=24, steps={steps}, log_every=1, checkpoint_every=12)
    if arg == "mixture":
        config.data.update(source="folder", mix=((PHOTOS + "/train", 3), (PHOTOS + "/val", 2)))
        config.data.update(augment="random_resized_crop|flip|erase(0.25)", mixup=0.3)
        return config
    config.data.update(source="digits", augment="random_resized_crop(0.4)|flip")
    config.data.update(local_crops=3, local_size=7, local_augment="random_resized_crop(0.1,0.4)")
    config.task.update(name="dino", prototypes=16, head_hidden=32, bottleneck=8, centering=arg)
    config.task.update(patch_weight=1.0, koleo_weight=0.1, normalize_last_layer=False)
    config.task.update(end_teacher_temperature=0.07, teacher_warmup_steps=9)
    config.optimizer.update(ema=0.9, end_ema=1.0, clip_norm=3.0, clip_per="parameter")
    return config
"""
# The number of processes, each with one device, and the mesh of each part of a run.
PARTS = ((1, (1, 1)), (2, (1, 2)), (4, (2, 2)), (3, (3, 1)), (1, (1, 1)))


@pytest.fixture(scope="module")
def config_file(photo_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG.format(photos=str(photo_folder), steps=STEPS))
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return environment_of_runs(os.environ, tmp_path_factory.mktemp("programs"), devices=1)


def train(count: int, *flags: str, environment, devices: int, **options) -> list[Finished]:
    """Runs a training command on some processes with the same number of devices."""
    command = ["-m", "vit_jax.main", *map(str, flags)]
    commands = [command]
    if count > 1:
        command += [f"--coordinator={free_address()}", f"--num_processes={count}"]
        commands = [[*command, f"--process_id={i}"] for i in range(count)]
    environment = environment | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return run_processes(commands, environment, **options)


def train_to_the_end(count: int, *flags: str, **options) -> None:
    ends = train(count, *flags, **options)
    assert [end.code for end in ends] == [0] * count, ends[0].err


def train_until(step: int, count: int, *flags: str, folder: pathlib.Path, **options) -> None:
    """Sends SIGTERM to the last process after a step; all processes stop."""
    signals = (*[None] * (count - 1), signal.SIGTERM)
    flags = (*flags, f"--workdir={folder}")
    ends = train(count, *flags, folder=folder, step=step, signals=signals, **options)
    assert [end.code for end in ends] == [143] * count, ends[0].err


@pytest.fixture(scope="module")
def unbroken(config_file, tmp_path_factory, environment):
    """Returns the workdir of an uninterrupted run of one process with eight devices."""
    folders = {}

    def run(kind: str):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            flags = (f"--config={config_file}:{kind}", f"--workdir={folders[kind]}")
            train_to_the_end(1, *flags, environment=environment, devices=8)
        return folders[kind]

    return run


@pytest.mark.parametrize("kind", ["mixture", "mean"])
def test_run_continued_on_1_2_4_3_and_1_processes_is_the_unbroken_run(
    kind, unbroken, config_file, tmp_path, environment
):
    options = {"environment": environment, "devices": 1}
    stops = []
    for part, (count, (data, fsdp)) in enumerate(PARTS, 1):
        flags = [f"--config={config_file}:{kind}"]
        flags += [f"--config.mesh.data={data}", f"--config.mesh.fsdp={fsdp}"]
        if part < len(PARTS):
            step = max(STEPS * part // len(PARTS), *(stop + 2 for stop in stops[-1:]), 0)
            train_until(step, count, *flags, folder=tmp_path, **options)
            stops.append(layout.list_steps(tmp_path / layout.FOLDER)[-1])
        else:
            train_to_the_end(count, *flags, f"--workdir={tmp_path}", **options)
    assert [0, *stops, STEPS] == sorted({0, *stops, STEPS}), "each part has trained"
    assert len(records(tmp_path)) == STEPS
    assert_same_run(tmp_path, unbroken(kind))


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_self_distillation_on_two_processes_of_4_devices_equals_one_process_of_8(
    centering, unbroken, config_file, tmp_path, environment
):
    flags = (f"--config={config_file}:{centering}", f"--workdir={tmp_path}")
    train_to_the_end(2, *flags, environment=environment, devices=4)
    assert_same_run(tmp_path, unbroken(centering))
    names = ["class_loss", "patch_loss", "koleo", "kl", "teacher_entropy", "mean_entropy"]
    names += ["center_norm"] if centering == "mean" else []
    ours, expected = (
        np.array([[line[f"train/{name}"] for name in names] for line in records(folder)])
        for folder in (tmp_path, unbroken(centering))
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert (np.ptp(expected, axis=0) > 1e-3).all(), "the run has changed every measure"
