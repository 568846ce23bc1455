"""Tests of `prepare` after a kill, a signal and a full disk: the same command resumes."""

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support.image_files import encode_image, file_digests, make_tar
from tests.support.runs import ROOT, run_main
from vit_jax.prepare.prepare import prepare_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> pathlib.Path:
    """Folder with a tar file of 2,600 images (three shards) and its data set `expected`."""
    root = tmp_path_factory.mktemp("many")
    noise = np.random.default_rng(0).integers(0, 256, (2600, 12, 12, 3)).astype(np.uint8)
    files = {f"c{i % 5}/{i}.png": encode_image(image, "PNG") for i, image in enumerate(noise)}
    (root / "many.tar").write_bytes(make_tar(files))
    prepare_dataset(str(root / "many.tar"), str(root / "expected"), workers=2)
    return root


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_prepare_resumes_a_killed_run_with_the_same_bytes(many, number, tmp_path):
    source, folder = many / "many.tar", tmp_path / "set"
    partial = tmp_path / "set.partial"
    command = [sys.executable, "-m", "vit_jax.main", "prepare", source, folder, "--workers=1"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(partial.glob("parts/*.jsonl")):  # Until the first shard is finished.
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    assert "Traceback" not in err
    assert not folder.exists()
    if number == signal.SIGTERM:
        assert not list(partial.rglob(".vit_jax-*"))
    first = [p.name for p in partial.glob("parts/*.jsonl")]
    assert 1 <= len(first) < 3
    shards = {p.name: p.stat() for p in partial.glob("data/*-of-00003")}
    done = run_main("prepare", source, folder, "--workers=2")
    assert done.code == 0, done.err
    assert f"resuming: {len(first)}/3 shards are complete" in done.out
    assert file_digests(folder) == file_digests(many / "expected")
    finished = {name.replace("train-", "images-train.array_record-")[:-6] for name in first}
    for name in finished:
        now = (folder / name).stat()  # Not written again or copied.
        assert (now.st_ino, now.st_mtime_ns) == (shards[name].st_ino, shards[name].st_mtime_ns)
    assert not partial.exists()


def test_prepare_on_a_full_disk_leaves_no_partial_files(many, tmp_path):
    source, folder, partial = many / "many.tar", tmp_path / "set", tmp_path / "set.partial"
    limit = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
        "runpy.run_module('vit_jax.main', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", limit, "prepare", source, folder, "--workers=1"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2  # 4 if the disk is full; here the file is too large.
    assert "images-train.array_record-0000" in done.stderr
    assert done.stderr.endswith("File too large.\n")
    assert "Traceback" not in done.stderr
    assert not folder.exists()
    assert not list(partial.glob("data/*"))
    prepare_dataset(str(source), str(folder), workers=1)
    assert file_digests(folder) == file_digests(many / "expected")
