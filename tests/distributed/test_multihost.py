"""Several processes as one run: they count, agree, fail and end together."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support.runs import ROOT, Finished, records, run_main
from vit_jax.checkpoints import checkpoint
from vit_jax.data import loader
from vit_jax.distributed import multihost

# Dropout, stochastic depth and mixup on: all that randomness and the order of rows can hide in.
NOISY = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=14, num_layers=1, hidden_size=16, mlp_size=32)
    config.model.update(num_heads=2, dropout=0.1, drop_path=0.1)
    config.data.update(image_size=28, num_classes=3, num_examples=100, mixup=0.3)
    config.optimizer.update(warmup_steps=5, weight_decay=0.1)
    config.update(batch_size=16, steps=60, log_every=1, checkpoint_every=20, eval_every=25)
    return config
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("config") / "noisy.py"
    path.write_text(NOISY)
    return path


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Of a process with four devices; it compiles in haste, and the next one finds what it did."""
    return os.environ | {
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
    }


def run(commands: list[list[str]], environment, *, folder=None, step=0, signals=()) -> list:
    """Runs processes to their end; when `step` is logged, each gets its signal, if any."""
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for command in commands
    ]
    try:
        while signals and not any(process.poll() is not None for process in started):
            path = folder / "metrics.jsonl"
            if path.is_file() and path.read_text().count("\n") >= step:
                for process, number in zip(started, signals):
                    if number:
                        process.send_signal(number)
                break
            time.sleep(0.01)
        ends = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Finished(p.returncode, out, err) for p, (out, err) in zip(started, ends)]


def train_as_two(*flags: str, environment, **options) -> list[Finished]:
    together = [f"--coordinator={free_address()}", "--num_processes=2", *map(str, flags)]
    commands = [["-m", "vit_jax.main", *together, f"--process_id={i}"] for i in range(2)]
    return run(commands, environment, **options)


def train_as_one(*flags: str, environment, devices: int) -> None:
    command = ["-m", "vit_jax.main", *map(str, flags)]
    (done,) = run([command], environment | {"JAX_NUM_CPU_DEVICES": str(devices)})
    assert done.code == 0, done.err


def told(finished: Finished) -> list[str]:
    """What a process printed, without what Gloo says of its connections."""
    return [line for line in finished.out.splitlines() if "peer ranks" not in line]


@pytest.fixture(scope="module")
def alone(noisy, tmp_path_factory, environment) -> pathlib.Path:
    """The whole run in one process of eight devices."""
    folder = tmp_path_factory.mktemp("alone")
    train_as_one(f"--config={noisy}", f"--workdir={folder}", environment=environment, devices=8)
    return folder


@pytest.fixture(scope="module")
def killed(noisy, tmp_path_factory, environment) -> pathlib.Path:
    """Two processes of four devices, every array split over all eight, both killed in mid-run."""
    folder = tmp_path_factory.mktemp("killed")
    ends = train_as_two(
        f"--config={noisy}",
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
def ended(killed, tmp_path_factory, environment) -> tuple[pathlib.Path, list[Finished]]:
    """The killed run taken up by two processes, of which process 1 alone gets a SIGTERM."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    shutil.copytree(killed, folder)
    ends = train_as_two(
        f"--workdir={folder}",
        environment=environment,
        folder=folder,
        step=52,
        signals=(None, signal.SIGTERM),
    )
    return folder, ends


def assert_same_run(folder: pathlib.Path, whole: pathlib.Path) -> None:
    """The same steps on the same examples, and losses within 1e-5 of each other."""
    found = records(folder)
    expected = records(whole)[: len(found)]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    ids, counts = ([line.get(name) for line in found] for name in ("train/ids_crc", "val/n"))
    assert ids == [line["train/ids_crc"] for line in expected]
    # A signal may come between the last step and its evaluation.
    assert counts[:-1] == [line.get("val/n") for line in expected][:-1]
    losses = [[line["train/loss"] for line in run] for run in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_two_processes_of_four_devices_lose_as_one_of_eight_does(ended, alone):
    folder, _ = ended
    assert len(records(folder)) >= 50
    assert_same_run(folder, alone)


def test_a_signal_to_one_process_stops_all_after_the_same_step(ended):
    folder, ends = ended
    assert [end.code for end in ends] == [143, 143], ends
    step = checkpoint.steps_in(folder / checkpoint.FOLDER)[-1]
    assert step == records(folder)[-1]["step"]
    assert f"SIGTERM: step {step} is saved in {folder}" in ends[0].error


def test_one_process_alone_prints_and_writes(ended):
    _, (first, second) = ended
    assert any(line.startswith("step 50/60  val/") for line in told(first))
    assert told(second) == []


def test_two_killed_processes_go_on_as_one(killed, alone, tmp_path, environment):
    folder = tmp_path / "copy"
    shutil.copytree(killed, folder)
    mesh = ["--config.mesh.data=8", "--config.mesh.fsdp=1"]
    train_as_one(f"--workdir={folder}", *mesh, environment=environment, devices=8)
    assert len(records(folder)) == 60
    assert_same_run(folder, alone)


def test_eight_devices_go_on_as_four(ended, alone, tmp_path, environment):
    folder = tmp_path / "copy"
    shutil.copytree(ended[0], folder)
    mesh = ["--config.mesh.data=4", "--config.mesh.fsdp=1"]
    train_as_one(f"--workdir={folder}", *mesh, environment=environment, devices=4)
    assert len(records(folder)) == 60
    assert_same_run(folder, alone)


def test_a_mistake_found_by_one_process_ends_all_with_its_words(
    noisy, photo_folder, tmp_path, environment
):
    photos, order = tmp_path / "photos", loader.Order(48, seed=0)
    shutil.copytree(photo_folder, photos)
    victim = sorted((photos / "train").rglob("*.jpg"))[order[12]]  # Row 12: of process 1.
    victim.write_bytes(b"<html>not found</html>")
    ends = train_as_two(
        f"--config={noisy}",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.source=folder",
        f"--config.data.dir={photos}",
        environment=environment,
    )
    assert [end.code for end in ends] == [3, 3], ends
    assert f"process 1: {victim}: unreadable image" in ends[0].error
    assert f"vit_jax: {victim}: unreadable image" in ends[1].error


STORY = """
import os, signal, sys
from vit_jax.distributed import multihost as hosts
from vit_jax.errors import ConfigError, HostError, DataError

me = int(sys.argv[2])
how = {"coordinator_address": sys.argv[1], "num_processes": 2, "process_id": me}
hosts.start(how, timeout=2)
assert hosts.is_first() == (me == 0)
assert hosts.exchange("letter", "ab"[me]) == ["a", "b"]
assert hosts.exchange("letter", "cd"[me]) == ["c", "d"]
assert hosts.from_first("answer", lambda: {"from": me}) == {"from": 0}
told = hosts.tell(me * 15, 7)
assert told[:, 0].max() == 15 and told[:, 1].sum() == 14, told
hosts.refuse_difference("seed", 3)
for what, kind, words in (
    ("difference", ConfigError, "process 1 has another seed than process 0"),
    ("failure", DataError, "broken on 1"),
    ("barrier", HostError, "barrier 'lunch': process 1 of 2 is missing after 2 s"),
):
    try:
        if what == "difference":
            hosts.refuse_difference("seed", me)
        if what == "failure":
            with hosts.all_or_none("read", DataError):
                if me == 1:
                    raise DataError("broken on 1")
        if what == "barrier" and me == 0:
            hosts.barrier("lunch")  # Process 1 is not hungry.
        assert what == "barrier" and me == 1
    except kind as error:
        assert words in str(error), error
if me == 1:
    hosts.time.sleep(2)
hosts.barrier("dinner")
if me == 1:
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    hosts.time.sleep(1)
"""


def test_processes_agree_and_miss_one_that_dies(environment):
    address = free_address()
    first, second = run([["-c", STORY, address, str(i)] for i in range(2)], environment)
    assert (first.code, second.code) == (6, -signal.SIGKILL), first.err
    assert first.error == (
        "vit_jax: no sign of life for 2 s from process 1 of 2; all processes end."
    )


def test_a_coordinator_that_does_not_answer_is_named(noisy, tmp_path):
    address = free_address()
    flags = [f"--coordinator={address}", "--num_processes=2", "--process_id=1"]
    done = run_main(
        f"--config={noisy}", f"--workdir={tmp_path / 'run'}", *flags, "--host_timeout=1"
    )
    assert done.code == 6
    assert f"process 1 has not met the others at {address} within 1 s" in done.error
    assert not (tmp_path / "run").exists()


def test_an_address_in_use_is_named(noisy, tmp_path):
    with contextlib.closing(socket.create_server(("0.0.0.0", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        flags = [f"--coordinator={address}", "--num_processes=2", "--process_id=0"]
        done = run_main(
            f"--config={noisy}", f"--workdir={tmp_path / 'run'}", *flags, "--host_timeout=20"
        )
    assert done.code == 2
    assert f"--coordinator={address}: process 0 cannot listen there" in done.error


def test_a_process_that_is_alone_agrees_with_itself():
    multihost.start(None)
    assert multihost.is_first()
    assert multihost.exchange("name", 5) == [5]
    np.testing.assert_array_equal(multihost.tell(3, 4), [[3, 4]])
    multihost.refuse_difference("seed", 3)
    multihost.barrier("lunch")
    multihost.finish()


class Places:
    """A sharding whose rows on this process's devices are these."""

    def __init__(self, *spans):
        self.spans = spans

    def addressable_devices_indices_map(self, shape):
        return {place: (slice(*span),) for place, span in enumerate(self.spans)}


@pytest.mark.parametrize(
    ("spans", "places"),
    [
        ([(8, 12), (12, 16)], [8, 9, 10, 11, 12, 13, 14, 15]),  # The second of two hosts.
        ([(4, 8), (0, 4)], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([(0, 4), (8, 12)], [0, 1, 2, 3, 8, 9, 10, 11]),  # Apart, as on a torus.
        ([(0, 8), (0, 8)], [0, 1, 2, 3, 4, 5, 6, 7]),  # Devices that share each example.
        ([(None,)], list(range(16))),
    ],
)
def test_a_host_reads_the_rows_of_its_own_devices(spans, places):
    share = loader.share_of(Places(*spans), 16)
    assert share.rows == len(places)
    own = [share.place(row) for row in range(2 * share.rows)]
    assert own == places + [16 + place for place in places]
