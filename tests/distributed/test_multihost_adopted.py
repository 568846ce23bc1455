"""`vit_jax.train` in processes whose JAX runtime the program, or Ray, has initialised."""

import os
import pathlib
import shutil
import signal

import pytest

from tests.support.processes import CONFIG, environment_of_runs, free_address, run_processes
from tests.support.runs import Finished, records
from vit_jax.checkpoints import layout
from vit_jax.data import loader

PROGRAM = """
import os, signal, sys
import jax

index, address, config, folder, case = sys.argv[1:]
index = int(index)
jax.distributed.initialize(address, 2, index)  # With JAX's preemption service, the default.
assert jax.config.jax_enable_preemption_service
os.environ["JAX_NUM_PROCESSES"] = "7"  # Variables do not matter to a runtime that is initialised.

import vit_jax
from vit_jax.distributed import multihost
from vit_jax.errors import ConfigError, DataError, Interrupted


def train(name, **overrides):
    return vit_jax.train(config, f"{folder}/{name}", overrides=overrides)


def raised_by(error_type, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except error_type as error:
        return error
    raise AssertionError(f"no {error_type.__name__}")


def catches_sigterm():
    status = open("/proc/self/status").read()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


if case == "two runs":
    assert catches_sigterm()  # JAX's preemption service does.
    with multihost.attached():
        assert not catches_sigterm()
    message = str(raised_by(ConfigError, vit_jax.connect, num_processes=3))
    assert "--num_processes=3 contradicts" in message, message
    vit_jax.connect()
    raised_by(ConfigError, train, "first", batch_size=17)  # All processes raise it.
    raised_by(ConfigError, train, "first", seed=index)  # Process 1 differs; the others learn of it.
    for name in ("first", "second"):
        summary = train(name, steps=6)
        assert summary["step"] == 6 and len(summary["devices"]) == 4, summary["devices"]
if case == "signal":
    error = raised_by(Interrupted, train, "first")
    print(error, flush=True)
    assert jax.distributed.is_initialized()
    sys.exit(error.exit_code)
if case == "error":
    data = {"data.source": "folder", "data.dir": f"{folder}/photos"}
    error = raised_by(DataError, vit_jax.train, config, f"{folder}/first", overrides=data)
    print(error, flush=True)
assert jax.distributed.is_initialized()
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    return environment_of_runs(os.environ, tmp_path_factory.mktemp("programs"), devices=2)


def run_program(case: str, config_file, parent, environment, **options) -> list[Finished]:
    arguments = [free_address(), str(config_file), str(parent), case]
    commands = [["-c", PROGRAM, str(i), *arguments] for i in range(2)]
    return run_processes(commands, environment, **options)


@pytest.mark.cluster
def test_train_uses_a_runtime_that_is_initialised_and_leaves_it_running(
    config_file, tmp_path, environment
):
    ends = run_program("two runs", config_file, tmp_path, environment)
    assert [end.code for end in ends] == [0, 0], ends[0].err + ends[1].err
    for name in ("first", "second"):
        assert len(records(tmp_path / name)) == 6


@pytest.mark.cluster
def test_signal_to_one_process_saves_the_run_in_spite_of_the_preemption_service(
    config_file, tmp_path, environment
):
    folder = tmp_path / "first"
    ends = run_program(
        "signal",
        config_file,
        tmp_path,
        environment,
        folder=folder,
        step=5,
        signals=(None, signal.SIGTERM),
    )
    assert [end.code for end in ends] == [143, 143], ends[0].err + ends[1].err
    step = layout.list_steps(folder / layout.FOLDER)[-1]
    assert step == records(folder)[-1]["step"]
    for end in ends:
        assert f"SIGTERM: step {step} is saved in {folder}" in end.out


@pytest.mark.cluster
def test_error_in_one_process_is_raised_there_and_ends_the_other(
    config_file, photo_folder, tmp_path, environment
):
    photos, sampler = tmp_path / "photos", loader.IndexSampler(48, seed=0)
    shutil.copytree(photo_folder, photos)
    image = sorted((photos / "train").rglob("*.jpg"))[sampler[12]]  # Row 12: of process 1.
    image.write_bytes(b"<html>not found</html>")
    first, second = run_program("error", config_file, tmp_path, environment)
    assert first.code == 3, first.err
    assert f"vit_jax: process 1: {image}: unreadable image" in first.err
    assert f"{image}: unreadable image" in second.out
