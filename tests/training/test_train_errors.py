"""Runs that end with an error: the last finished step is saved, and the error says so."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from tests.support.runs import ROOT, final_state, records
from tests.support.tiny_flags import tiny_flags
from vit_jax import main
from vit_jax.checkpoints import layout
from vit_jax.data.sources import FakeSource
from vit_jax.errors import ConfigError, DataError, Interrupted, NonFiniteError, StalledError
from vit_jax.training import metrics, saver


def steps(folder: pathlib.Path) -> list[int]:
    return layout.list_steps(folder / layout.FOLDER)


def notes(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", []))


def write_images(root: pathlib.Path, bad: str) -> pathlib.Path:
    """Writes 12 images of training and 4 of val in two colours; one file is empty."""
    for split, count in (("train", 6), ("val", 2)):
        for shade, name in ((60, "dark"), (200, "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((8, 8, 3), shade + i, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    (root / bad).write_bytes(b"")
    return root


def folder_flags(folder: pathlib.Path, photos: pathlib.Path, *overrides: str) -> list[str]:
    of_folder = ("data.source=folder", f"data.dir={photos}", "log_every=1", "batch_size=8")
    return tiny_flags(folder, *of_folder, "checkpoint_every=1000", *overrides)


def test_each_checkpoint_is_on_disk_before_the_next_step(tmp_path, monkeypatch):
    found, save = [], saver.Saver.save

    def save_and_look(self, step, state):
        save(self, step, state)
        found.append((step, steps(tmp_path / "run")[-1:]))

    monkeypatch.setattr(saver.Saver, "save", save_and_look)
    assert main.run(tiny_flags(tmp_path / "run", "steps=6", "checkpoint_every=2")) == 0
    assert found == [(2, [2]), (4, [4]), (6, [6])]


def test_a_bad_image_of_val_loses_no_step_and_can_be_skipped(tmp_path, capsys):
    flags = folder_flags(tmp_path / "run", write_images(tmp_path / "photos", "val/dark/1.png"))
    with pytest.raises(DataError, match=r"val/dark/1\.png: .*on_bad_image=skip") as caught:
        main.run(flags)
    assert caught.value.exit_code == 3
    assert notes(caught.value) == "Step 8 is saved."
    assert steps(tmp_path / "run") == [8]
    trained = records(tmp_path / "run")
    capsys.readouterr()
    assert main.run([*flags, "--config.data.on_bad_image=skip"]) == 0
    out = capsys.readouterr().out
    assert "step 8/8  val/top1" in out
    assert "n=3/4 bad_images=1" in out
    assert "img/s" not in out  # Nothing is trained again.
    *before, last = records(tmp_path / "run")
    assert before == trained[:-1]
    assert (last["val/n"], last["val/bad_images"]) == (3, 1)
    assert {name: last[name] for name in trained[-1]} == trained[-1]


@pytest.mark.slow
def test_a_bad_image_of_training_loses_no_step_and_can_be_skipped(tmp_path):
    photos = write_images(tmp_path / "photos", "train/light/3.png")
    flags = folder_flags(tmp_path / "run", photos)
    with pytest.raises(DataError, match=r"train/light/3\.png: .*on_bad_image=skip") as caught:
        main.run(flags)
    (step,) = steps(tmp_path / "run") or [0]
    assert notes(caught.value) == (f"Step {step} is saved." if step else "")
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, step + 1))
    skip = "data.on_bad_image=skip"
    assert main.run([*flags, f"--config.{skip}"]) == 0
    assert main.run(folder_flags(tmp_path / "whole", photos, skip)) == 0
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


@pytest.fixture
def blocked(monkeypatch):
    """Events: a data worker stands still after 5 batches of 16, until the test is over."""
    has_blocked, is_over, reads = threading.Event(), threading.Event(), []
    read = FakeSource.__getitem__

    def read_or_block(source, index):
        reads.append(index)
        if len(reads) > 80:
            has_blocked.set()
            is_over.wait()
        return read(source, index)

    monkeypatch.setattr(FakeSource, "__getitem__", read_or_block)
    yield has_blocked
    is_over.set()


@pytest.mark.slow
def test_a_worker_without_progress_ends_the_run_with_code_6(tmp_path, blocked):
    flags = tiny_flags(tmp_path, "data.timeout=0.5", "checkpoint_every=1000", "log_every=1")
    with pytest.raises(StalledError, match=r"no progress for 0\.5 s at ") as caught:
        main.run(flags)
    assert caught.value.exit_code == 6
    (step,) = steps(tmp_path)
    assert 1 <= step <= 5
    assert notes(caught.value) == f"Step {step} is saved."
    assert records(tmp_path)[-1]["step"] == step


@pytest.mark.slow
def test_sigterm_ends_a_run_that_waits_for_a_worker(tmp_path, blocked):
    def send():
        blocked.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Interrupted, match=r"SIGTERM: step \d is saved") as caught:
        main.run(tiny_flags(tmp_path, "checkpoint_every=1000"))
    assert caught.value.exit_code == 143
    assert len(steps(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(5, "Input/output error", "metrics.jsonl"), OSError),
        (KeyError(1), KeyError),  # A bug.
        (MemoryError(), ConfigError),
    ],
)
def test_an_error_in_the_metrics_loses_no_step(tmp_path, monkeypatch, error, kind):
    write = metrics.MetricWriter.write

    def write_or_fail(writer, step, values):
        if step == 6:
            raise error
        write(writer, step, values)

    monkeypatch.setattr(metrics.MetricWriter, "write", write_or_fail)
    flags = tiny_flags(tmp_path, "checkpoint_every=1000", "log_every=1")
    with pytest.raises(kind) as caught:
        main.run(flags)
    (step,) = steps(tmp_path)
    assert step >= 6
    assert notes(caught.value) == f"Step {step} is saved."
    monkeypatch.undo()
    assert main.run(flags) == 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_loses_no_step(tmp_path):
    diverging = ("optimizer.lr=1e38", "optimizer.clip_norm=None", "steps=40")
    flags = tiny_flags(tmp_path, *diverging, "checkpoint_every=1000", "log_every=1")
    with pytest.raises(NonFiniteError, match=r"init\.path=") as caught:
        main.run(flags)
    (step,) = steps(tmp_path)
    assert notes(caught.value) == f"Step {step} is saved."
    assert records(tmp_path)[-1]["step"] == step
    with pytest.raises(NonFiniteError):  # The resumed run knows of the steps before.
        main.run(flags)
    assert steps(tmp_path)[-1] <= step + 3


LIMITED = """
import resource, signal, sys
from vit_jax import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
main.main()
"""


@pytest.mark.slow
def test_a_disk_too_small_for_a_checkpoint_is_reported_at_the_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 8, 1000))
    assert main.run(tiny_flags(tmp_path)) == 0  # It is compressed, so it may fit.
    line = next(line for line in capsys.readouterr().out.splitlines() if "may not fit" in line)
    leaves = final_state(tmp_path)
    sizes = [np.prod(leaf["shape"]) * np.dtype(leaf["dtype"]).itemsize for leaf in leaves.values()]
    assert f"({int(sum(sizes)):,} bytes needed, 1,000 bytes free)" in line


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_the_run_before_the_next_one(tmp_path):
    larger = ("model.hidden_size=64", "model.mlp_size=128", "checkpoint_every=300")
    flags = tiny_flags(tmp_path, *larger, "steps=600", "log_every=10")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr
    assert "cannot save a checkpoint in" in done.stderr
    assert " bytes needed, " in done.stderr
    assert " bytes free)" in done.stderr
    assert 300 <= records(tmp_path)[-1]["step"] < 600
    assert not steps(tmp_path)
