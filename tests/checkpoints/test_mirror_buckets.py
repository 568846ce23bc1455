"""Runs whose workdir is in an emulated bucket: kills, resumes, faults, and all commands on it."""

import contextlib
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support.buckets import Emulator, Fault, compiled_programs, contents, emulator, proxy
from tests.support.runs import ROOT, final_state, records
from tests.support.runs import run_main as run_main_for_300_s
from tests.support.tiny_flags import tiny_flags
from vit_jax.checkpoints import layout
from vit_jax.checkpoints import local_copy as local_copy_lib
from vit_jax.checkpoints.lease import NAME
from vit_jax.checkpoints.local_copy import MARKER, open_folder
from vit_jax.data.object_store import ObjectStore

pytestmark = pytest.mark.cluster
STEPS, EVERY = 30, 5
OPTIONS = (f"steps={STEPS}", f"checkpoint_every={EVERY}", "log_every=1", "eval_every=10")
TIMEOUT = 600  # Seconds, on a machine with other work.
OPTIONS += ("keep_every=10", "select=best", "model.dropout=0.1")
run_main = functools.partial(run_main_for_300_s, timeout=TIMEOUT)


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request):
    with emulator(request.param) as found:
        yield found


@pytest.fixture(autouse=True)
def environment(bucket, monkeypatch, tmp_path_factory):
    programs = compiled_programs(tmp_path_factory.getbasetemp() / "programs")
    for name, value in (bucket.environment() | programs).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(local_copy_lib, "_copies", {})


@pytest.fixture(scope="module")
def local_run(tmp_path_factory) -> pathlib.Path:
    """An uninterrupted run in a local workdir."""
    folder = tmp_path_factory.mktemp("local") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in compiled_programs(tmp_path_factory.getbasetemp() / "programs").items():
            patch.setenv(name, value)
        assert run_main(*tiny_flags(folder, *OPTIONS)).code == 0
    return folder


@pytest.fixture(scope="module")
def run_in_bucket(bucket, tmp_path_factory) -> str:
    """The URL of the same run in the bucket."""
    url = f"{bucket.url}/runs/whole"
    with pytest.MonkeyPatch.context() as patch:
        programs = compiled_programs(tmp_path_factory.getbasetemp() / "programs")
        for name, value in (bucket.environment() | programs).items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        done = run_main(*tiny_flags(url, *OPTIONS))
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].endswith(f" workdir={url}")
    return url


def assert_same_run(url: str, local: pathlib.Path) -> None:
    """Compares metrics, steps, best weights and every array, to the bit."""
    folder = open_folder(url)
    assert records(folder) == records(local)
    assert final_state(folder / layout.FOLDER) == final_state(local / layout.FOLDER)
    assert final_state(folder / layout.BEST) == final_state(local / layout.BEST)
    for kind in (layout.FOLDER, layout.BEST):
        assert layout.list_steps(folder / kind) == layout.list_steps(local / kind)
    summaries = [json.loads((each / "summary.json").read_text()) for each in (folder, local)]
    scores = [{k: v for k, v in s["metrics"].items() if "train" not in k} for s in summaries]
    assert scores[0] == scores[1]
    marker = ObjectStore(url).read(f"{layout.FOLDER}/{STEPS}/{MARKER}")
    assert json.loads(marker)["files"]


@contextlib.contextmanager
def started(url: str, *options: str, port: int | None = None, bucket: Emulator):
    """Starts a run, which is killed at the end of the block."""
    variables = {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "vit_jax.main", *tiny_flags(url, *(options or OPTIONS))],
        cwd=ROOT,
        env=os.environ | variables | bucket.environment(port),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_in_a_bucket_equals_a_local_run(run_in_bucket, local_run):
    assert_same_run(run_in_bucket, local_run)
    names = set(contents(run_in_bucket))
    assert {"config.json", "metrics.jsonl", "summary.json", "report.html"} <= names
    assert NAME not in names


def test_a_finished_run_is_not_trained_again(run_in_bucket):
    before = contents(run_in_bucket)
    done = run_main(f"--workdir={run_in_bucket}")
    assert done.code == 0, done.err
    assert "step 1/" not in done.out
    after = contents(run_in_bucket)
    assert {name for name in before if before[name] != after.get(name)} <= {"report.html"}


def test_a_killed_run_resumes_to_the_same_bits(bucket, local_run):
    url = f"{bucket.url}/runs/killed"
    store = ObjectStore(url)
    with started(url, bucket=bucket) as process:
        wait_for(lambda: store.read(f"{layout.FOLDER}/10/{MARKER}"), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert store.read(NAME) is not None
    done = run_main(*tiny_flags(url, *OPTIONS))  # The lease of a dead process of this machine.
    assert done.code == 0, done.err
    assert re.search(r"resuming from step (10|15|20|25)", done.out)
    assert_same_run(url, local_run)


@pytest.mark.parametrize("name", ["state/", MARKER])
def test_a_run_killed_during_an_upload_resumes_from_the_step_before(bucket, local_run, name):
    url = f"{bucket.url}/runs/cut-{name.strip('/')}"
    part = f"{layout.FOLDER}/15/{name}"

    def is_upload(method: str, request: str) -> bool:
        return method in ("PUT", "POST") and part in request.replace("%2F", "/")

    with proxy(bucket.port) as between:
        between.faults.append(Fault("stall", 10**6, is_upload))
        with started(url, port=between.server_port, bucket=bucket) as process:
            wait_for(lambda: between.met, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert f"{layout.FOLDER}/15/{MARKER}" not in ObjectStore(url).list()
    done = run_main(*tiny_flags(url, *OPTIONS))
    assert done.code == 0, done.err
    assert "resuming from step 10" in done.out
    assert_same_run(url, local_run)


def test_sigterm_saves_the_last_step_in_the_bucket(bucket, local_run):
    url = f"{bucket.url}/runs/stopped"
    store = ObjectStore(url)
    with started(url, bucket=bucket) as process:
        wait_for(lambda: store.read(f"{layout.FOLDER}/5/{MARKER}"), process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGTERM
    assert "is saved in" in err
    assert f"is the local copy of {url}." in err
    steps = layout.list_steps(open_folder(url) / layout.FOLDER)
    assert f"step {steps[-1]} is saved" in err
    done = run_main(f"--workdir={url}")
    assert done.code == 0, done.err
    assert records(open_folder(url)) == records(local_run)


def test_faults_that_pass_change_no_bit(bucket, local_run):
    url = f"{bucket.url}/runs/faults"
    with proxy(bucket.port) as between:
        between.stall = 40
        between.faults += [
            Fault(503, 4, lambda method, request: len(between.requests) > 20),
            Fault(429, 2, lambda method, request: len(between.requests) > 60),
            Fault("reset", 3, lambda method, request: len(between.requests) > 100),
            Fault("stall", 1, lambda method, request: len(between.requests) > 150),
        ]
        with started(url, port=between.server_port, bucket=bucket) as process:
            _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err
        assert set(between.met) == {503, 429, "reset", "stall"}
    assert_same_run(url, local_run)


def test_truncated_reads_are_read_again(bucket, run_in_bucket, monkeypatch, capsys):
    with proxy(bucket.port) as between:
        between.faults.append(
            Fault("cut", 5, lambda method, request: method == "GET" and "state" in request)
        )
        for name, value in bucket.environment(between.server_port).items():
            monkeypatch.setenv(name, value)
        done = run_main("evaluate", f"--checkpoint={run_in_bucket}", "--config.data.split=val")
        assert done.code == 0, done.err
        assert between.met == ["cut"] * 5


def test_lost_credentials_are_one_line_with_exit_code_4(bucket):
    url = f"{bucket.url}/runs/lost"
    with proxy(bucket.port) as between:
        between.faults.append(
            Fault(
                403,
                10**6,
                lambda method, request: any(
                    "checkpoints" in r and "15" in r for _, r in between.requests
                ),
            )
        )
        with started(url, port=between.server_port, bucket=bucket) as process:
            _, err = process.communicate(timeout=TIMEOUT)
    lines = [line for line in err.splitlines() if line.startswith("vit_jax: ")]
    assert process.returncode == 4, err
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert "Check the credentials of this process and the rights on the bucket." in lines[0]


def test_a_second_run_is_refused_while_the_first_renews_its_lease(bucket):
    if bucket.scheme == "gs":
        pytest.skip("gcp-storage-emulator ignores the condition that an object must not exist")
    url = f"{bucket.url}/runs/shared"
    store = ObjectStore(url)
    options = ("steps=100000", "checkpoint_every=1000", "log_every=10")
    with started(url, *options, bucket=bucket) as process:
        wait_for(lambda: store.read("config.json") and store.read(NAME), process)
        done = run_main(*tiny_flags(url, *options, "seed=1"))
        assert done.code == 2
        assert f"workdir {url} is in use by process {process.pid} on " in done.error
        assert process.poll() is None


def test_commands_read_a_workdir_in_a_bucket(run_in_bucket, local_run, tmp_path):
    url = run_in_bucket
    scores = [run_main("evaluate", f"--workdir={where}") for where in (url, local_run)]
    assert [done.code for done in scores] == [0, 0], scores[0].err
    assert scores[0].out.splitlines()[-1] == scores[1].out.splitlines()[-1]
    report = json.loads(ObjectStore(url).read("eval-val.json"))
    assert report["checkpoint"].startswith(f"{url}/{layout.BEST}/")
    assert ObjectStore(url).read("predictions-val.csv")

    lists = [
        run_main("inspect", f"{where}/{layout.FOLDER}/{STEPS}", "--json")
        for where in (url, local_run)
    ]
    found = [json.loads(done.out) for done in lists]
    assert found[0]["leaves"] == found[1]["leaves"]
    assert found[0]["checkpoint"] == f"{url}/{layout.FOLDER}/{STEPS}"

    done = run_main("report", url)
    assert (done.code, done.out.splitlines()[-1]) == (0, f"done: {url}/report.html"), done.err
    assert b"s3://" in ObjectStore(url).read("report.html") or url.startswith("gs")

    done = run_main("features", f"--checkpoint={url}", f"--out={tmp_path / 'f.npz'}")
    assert done.code == 0, done.err
    done = run_main("tables", "figure5", url)
    assert done.code == 0, done.err
    done = run_main("report", url, "--out=s3://bucket/x.html")
    assert done.code == 2
    assert "give a local path" in done.error


def test_convert_reads_and_writes_buckets(bucket, run_in_bucket, local_run, tmp_path):
    outputs = f"{bucket.url}/converted"
    for name in ("w.npz", "w.safetensors", "hf", "orbax"):
        flags = ["--format=orbax"] if name == "orbax" else []
        if name == "hf":
            continue  # This tiny model has no form in transformers.
        done = run_main("convert", run_in_bucket, f"{outputs}/{name}", *flags)
        assert done.code == 0, done.err
        assert done.out.splitlines()[-1].endswith(f"destination={outputs}/{name}")
        again = run_main("convert", run_in_bucket, f"{outputs}/{name}", *flags)
        assert again.code == 2
        assert f"{outputs}/{name} exists" in again.error
        done = run_main("convert", f"{outputs}/{name}", str(tmp_path / f"{name}.npz"))
        assert done.code == 0, done.err
        assert "features_difference=0.0e+00" in done.out or "difference=" in done.out
    local = run_main("convert", str(local_run), str(tmp_path / "local.npz"))
    assert local.code == 0, local.err
    expected = (tmp_path / "local.npz").read_bytes()
    assert ObjectStore(outputs).read("w.npz") == expected


def test_training_reads_data_and_weights_from_buckets(
    bucket, run_in_bucket, photo_folder, tmp_path
):
    store = ObjectStore(f"{bucket.url}/photos")
    for path in photo_folder.rglob("*.jpg"):
        store.write(path.relative_to(photo_folder).as_posix(), path.read_bytes())
    options = ("data.source=folder", f"data.dir={store.url}", "init.new_head=True", "steps=4")
    options += (f"init.path={run_in_bucket}", "init.resize=True")
    done = run_main(*tiny_flags(tmp_path / "run", *options))
    assert done.code == 0, done.err
    assert f"{store.url} has 62 files" in done.out
    local = (*options[:1], f"data.dir={photo_folder}", *options[2:])
    assert run_main(*tiny_flags(tmp_path / "local", *local)).code == 0
    assert final_state(tmp_path / "run") == final_state(tmp_path / "local")


def test_a_missing_bucket_and_workdir_are_one_line(bucket):
    done = run_main(f"--workdir={bucket.url}/runs/none")
    assert done.code == 2
    assert "runs/none: no such object or folder." in done.error
    done = run_main("evaluate", f"--workdir={bucket.url}/runs/none")
    assert done.code == 4
    assert "runs/none: no such object or folder." in done.error
    done = run_main(*tiny_flags(f"{bucket.scheme}://no-such-bucket-here/run"))
    assert done.code == 4
    assert "no-such-bucket-here" in done.error


def test_a_sweep_with_shards_is_refused(bucket):
    done = run_main(*tiny_flags(f"{bucket.url}/runs/sweep"), "--shard=0/2")
    assert done.code == 2
    assert "--shard needs a workdir on a file system that all processes share" in done.error


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\n\n--", b""])
def test_objects_keep_every_byte(bucket, tmp_path, end):
    store = ObjectStore(f"{bucket.url}/bytes")
    (tmp_path / "file").write_bytes(b"\n\n\0" + end)
    store.upload("x", tmp_path / "file")
    store.write("y", b"\n\n\0" + end)
    assert store.read("x") == store.read("y") == b"\n\n\0" + end
