"""Tests of runs of two processes: same numbers, common stop, common exit after a failure."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket

import pytest

from tests.support.processes import (
    CONFIG,
    assert_same_run,
    environment_of_runs,
    free_address,
    printed_lines,
    run_processes,
)
from tests.support.runs import Finished, records, run_main
from vit_jax.checkpoints import layout
from vit_jax.data import loader


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Environment of a process with four devices; all share a compilation cache."""
    return environment_of_runs(os.environ, tmp_path_factory.mktemp("programs"), devices=4)


def train_on_two_processes(*flags: str, environment, **options) -> list[Finished]:
    together = [f"--coordinator={free_address()}", "--num_processes=2", *map(str, flags)]
    commands = [["-m", "vit_jax.main", *together, f"--process_id={i}"] for i in range(2)]
    return run_processes(commands, environment, **options)


def train_on_one_process(*flags: str, environment, devices: int) -> None:
    command = ["-m", "vit_jax.main", *map(str, flags)]
    (done,) = run_processes([command], environment | {"JAX_NUM_CPU_DEVICES": str(devices)})
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def single_process_run(config_file, tmp_path_factory, environment) -> pathlib.Path:
    """Workdir of an uninterrupted run of one process with eight devices."""
    folder = tmp_path_factory.mktemp("alone")
    train_on_one_process(
        f"--config={config_file}", f"--workdir={folder}", environment=environment, devices=8
    )
    return folder


@pytest.fixture(scope="module")
def killed_run(config_file, tmp_path_factory, environment) -> pathlib.Path:
    """Workdir of two processes with four devices each and fsdp over all eight, both killed."""
    folder = tmp_path_factory.mktemp("killed")
    ends = train_on_two_processes(
        f"--config={config_file}",
        f"--workdir={folder}",
        "--config.mesh.data=1",
        "--config.mesh.fsdp=8",
        environment=environment,
        folder=folder,
        step=24,
        signals=(signal.SIGKILL, signal.SIGKILL),
    )
    assert [end.code for end in ends] == [-signal.SIGKILL] * 2
    return folder


@pytest.fixture(scope="module")
def stopped_run(killed_run, tmp_path_factory, environment) -> tuple[pathlib.Path, list[Finished]]:
    """The killed run resumed by two processes, until process 1 receives a SIGTERM."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    shutil.copytree(killed_run, folder)
    ends = train_on_two_processes(
        f"--workdir={folder}",
        environment=environment,
        folder=folder,
        step=52,
        signals=(None, signal.SIGTERM),
    )
    return folder, ends


@pytest.mark.slow
def test_two_processes_of_4_devices_have_the_losses_of_one_process_of_8(
    stopped_run, single_process_run
):
    folder, _ = stopped_run
    assert len(records(folder)) >= 50
    assert_same_run(folder, single_process_run)


@pytest.mark.slow
def test_signal_to_one_process_stops_all_after_the_same_step(stopped_run):
    folder, ends = stopped_run
    assert [end.code for end in ends] == [143, 143], ends
    step = layout.list_steps(folder / layout.FOLDER)[-1]
    assert step == records(folder)[-1]["step"]
    assert f"SIGTERM: step {step} is saved in {folder}" in ends[0].error


@pytest.mark.slow
def test_only_process_0_prints(stopped_run):
    _, (first, second) = stopped_run
    assert any(line.startswith("step 50/60  val/") for line in printed_lines(first))
    assert printed_lines(second) == []


@pytest.mark.slow
def test_run_of_two_killed_processes_resumes_as_one_process(
    killed_run, single_process_run, tmp_path, environment
):
    folder = tmp_path / "copy"
    shutil.copytree(killed_run, folder)
    mesh = ["--config.mesh.data=8", "--config.mesh.fsdp=1"]
    train_on_one_process(f"--workdir={folder}", *mesh, environment=environment, devices=8)
    assert len(records(folder)) == 60
    assert_same_run(folder, single_process_run)


@pytest.mark.stress
def test_run_of_8_devices_resumes_on_4_devices(
    stopped_run, single_process_run, tmp_path, environment
):
    folder = tmp_path / "copy"
    shutil.copytree(stopped_run[0], folder)
    mesh = ["--config.mesh.data=4", "--config.mesh.fsdp=1"]
    train_on_one_process(f"--workdir={folder}", *mesh, environment=environment, devices=4)
    assert len(records(folder)) == 60
    assert_same_run(folder, single_process_run)


@pytest.mark.stress
def test_error_on_one_process_ends_all_with_its_message_and_exit_code(
    config_file, photo_folder, tmp_path, environment
):
    photos, sampler = tmp_path / "photos", loader.IndexSampler(48, seed=0)
    shutil.copytree(photo_folder, photos)
    image = sorted((photos / "train").rglob("*.jpg"))[sampler[12]]  # Row 12: of process 1.
    image.write_bytes(b"<html>not found</html>")
    ends = train_on_two_processes(
        f"--config={config_file}",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.source=folder",
        f"--config.data.dir={photos}",
        environment=environment,
    )
    assert [end.code for end in ends] == [3, 3], ends
    assert f"process 1: {image}: unreadable image" in ends[0].error
    assert f"vit_jax: {image}: unreadable image" in ends[1].error


PROGRAM = """
import os, signal, sys, time
from vit_jax.distributed import multihost
from vit_jax.errors import ConfigError, HostError, DataError

index = int(sys.argv[2])
multihost.connect(sys.argv[1], 2, index, timeout=2)
assert multihost.attach(timeout=2)
assert multihost.is_process_0() == (index == 0)
assert multihost.allgather_json("letter", "ab"[index]) == ["a", "b"]
assert multihost.allgather_json("letter", "cd"[index]) == ["c", "d"]
assert multihost.broadcast_from_process_0("answer", lambda: {"from": index}) == {"from": 0}
rows = multihost.allgather(index * 15, 7)
assert rows[:, 0].max() == 15 and rows[:, 1].sum() == 14, rows
multihost.check_equal("seed", 3)
for case, error_type, message in (
    ("difference", ConfigError, "seed of process 1 differs from that of process 0"),
    ("failure", DataError, "broken on 1"),
    ("barrier", HostError, "barrier 'test': process 1 of 2 is missing after 2 s"),
):
    try:
        if case == "difference":
            multihost.check_equal("seed", index)
        if case == "failure":
            with multihost.raise_on_all("read", DataError):
                if index == 1:
                    raise DataError("broken on 1")
        if case == "barrier" and index == 0:
            multihost.barrier("test")  # Process 1 does not call it.
        assert case == "barrier" and index == 1
    except error_type as error:
        assert message in str(error), error
if index == 1:
    time.sleep(2)
multihost.barrier("before the kill")
if index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    time.sleep(1)
"""


@pytest.mark.slow
def test_processes_communicate_and_exit_with_code_6_when_one_dies(environment):
    address = free_address()
    first, second = run_processes([["-c", PROGRAM, address, str(i)] for i in range(2)], environment)
    assert (first.code, second.code) == (6, -signal.SIGKILL), first.err
    assert first.error == ("vit_jax: no heartbeat for 2 s from process 1 of 2; all processes exit.")


@pytest.mark.slow
def test_initialize_names_a_coordinator_that_does_not_respond(config_file, tmp_path):
    address = free_address()
    flags = [f"--coordinator={address}", "--num_processes=2", "--process_id=1"]
    done = run_main(
        f"--config={config_file}", f"--workdir={tmp_path / 'run'}", *flags, "--host_timeout=1"
    )
    assert done.code == 6
    assert (
        f"process 1 could not connect to the other processes at {address} within 1 s" in done.error
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_initialize_names_an_address_in_use(config_file, tmp_path):
    with contextlib.closing(socket.create_server(("0.0.0.0", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        flags = [f"--coordinator={address}", "--num_processes=2", "--process_id=0"]
        done = run_main(
            f"--config={config_file}", f"--workdir={tmp_path / 'run'}", *flags, "--host_timeout=20"
        )
    assert done.code == 2
    assert f"process 0 cannot listen at {address}" in done.error
