"""Whole runs in this process: what they learn, leave behind and refuse."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.support.json_steps import rewrite_item
from tests.support.runs import ROOT, final_state, records
from tests.support.tiny_flags import tiny_flags
from vit_jax import main
from vit_jax.checkpoints import checkpoint, layout
from vit_jax.errors import CheckpointError, DataError, NonFiniteError, VitJaxError
from vit_jax.models import trees


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_with_code_5_and_a_finite_checkpoint(tmp_path, capsys):
    diverging = ("optimizer.lr=1e38", "optimizer.clip_norm=None", "steps=40", "checkpoint_every=1")
    with pytest.raises(NonFiniteError, match="3 steps in a row") as caught:
        main.run(tiny_flags(tmp_path, *diverging))
    assert caught.value.exit_code == 5
    step = layout.find_step_folder(tmp_path)
    params = checkpoint.restore(step, checkpoint.stored_param_shapes(step))
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


def test_training_learns_what_can_be_learnt(learnt):
    assert json.loads((learnt / "summary.json").read_text())["metrics"]["val/top1"] == 1.0


def test_the_summary_accounts_for_the_run(learnt):
    summary = json.loads((learnt / "summary.json").read_text())
    leaves = final_state(learnt)
    sizes = [np.prod(v["shape"], dtype=int) for k, v in leaves.items() if k.startswith("params/")]
    assert summary["parameters"] == sum(sizes)
    assert summary["step"] == 60
    assert summary["metrics"]["val/n"] == 48
    assert {"jax", "flax", "python"} <= set(summary["versions"])
    parts = ("start", "compile", "data", "train", "eval", "save")
    assert summary["seconds"]["wall"] == pytest.approx(sum(summary["seconds"][p] for p in parts))


def test_a_damaged_newest_step_is_refused_or_with_fallback_set_aside(learnt, tmp_path, capsys):
    folder = tmp_path / "copy"
    flags = unfinished_copy(learnt, folder)
    (folder / "checkpoints" / "60" / "meta" / "metadata").write_text("{}")
    with pytest.raises(VitJaxError, match="checkpoints/60/meta is damaged") as caught:
        main.run(flags)
    assert caught.value.exit_code == 4
    assert main.run([*flags, "--fallback"]) == 0
    assert "resuming from step 56" in capsys.readouterr().out
    assert records(folder) == records(learnt)
    assert final_state(folder) == final_state(learnt)
    assert (folder / "damaged" / "60" / "meta").is_dir()


@pytest.mark.parametrize(
    ("renames", "message"),
    [
        ([("60", "61")], r"checkpoints/61 contains the checkpoint of step 60; expected"),
        (
            [("60", "a"), ("56", "60"), ("a", "56")],
            r"checkpoints/60 contains the checkpoint of step 56",
        ),
    ],
    ids=["renamed", "swapped"],
)
def test_a_step_under_another_name_is_refused(learnt, tmp_path, renames, message):
    flags = unfinished_copy(learnt, tmp_path / "copy")
    for old, new in renames:
        path = tmp_path / "copy" / "checkpoints" / old
        path.rename(path.with_name(new))
    with pytest.raises(CheckpointError, match=message) as caught:
        main.run(flags)
    assert caught.value.exit_code == 4


def test_a_forged_summary_and_an_edited_config_change_nothing(learnt, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(learnt, folder)
    shutil.rmtree(folder / "checkpoints" / "60")  # Steps 57 to 60 are not finished.
    config = json.loads((folder / "config.json").read_text()) | {"seed": 5, "batch_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    assert main.run([f"--workdir={folder}"]) == 0
    out = capsys.readouterr().out
    assert "config.json differs from the checkpoint in batch_size, seed;" in out
    assert "resuming from step 56" in out
    assert records(folder) == records(learnt)
    assert final_state(folder) == final_state(learnt)


def test_other_classes_than_the_run_began_with_are_refused(learnt, tmp_path):
    flags = unfinished_copy(learnt, tmp_path / "copy")
    step = tmp_path / "copy" / "checkpoints" / "60"
    meta = layout.read_item(step, "meta")
    meta["classes"][1] = "crane"
    rewrite_item(step, "meta", meta)
    with pytest.raises(DataError, match="class 1 is 'crane' in the checkpoint, 'class 1' in the"):
        main.run(flags)


def test_changed_data_is_told_of_when_a_run_goes_on(learnt, tmp_path):
    flags = unfinished_copy(learnt, tmp_path / "copy")
    step = tmp_path / "copy" / "checkpoints" / "60"
    fingerprints = layout.read_item(step, "data")["fingerprints"]
    assert set(fingerprints) == {"train", "val"}
    changed = {"train": fingerprints["train"] + 1, "val": fingerprints["val"]}
    rewrite_item(step, "data", layout.read_item(step, "data") | {"fingerprints": changed})
    with pytest.raises(DataError, match="images, names or labels have changed"):
        main.run(flags)


@pytest.mark.slow
def test_a_run_resumes_on_moved_data_and_without_an_image_that_was_removed(
    photo_folder, tmp_path, capsys
):
    shutil.copytree(photo_folder, tmp_path / "old")
    bad = pathlib.Path("train", "flower", "07.jpg")
    (tmp_path / "old" / bad).write_bytes(b"")
    images = ("data.source=folder", "batch_size=24", "steps=6", "checkpoint_every=1")
    images = [f"--config.{each}" for each in (*images, "data.image_size=32", "data.workers=0")]
    flags = [f"--config={ROOT / 'configs' / 'finetune.py'}:data={tmp_path / 'old'},smoke"]
    flags += [f"--workdir={tmp_path / 'run'}", *images]
    with pytest.raises(DataError, match=r"07\.jpg: unreadable image"):
        main.run(flags)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = [flag.replace("/old", "/new") for flag in flags]
    (tmp_path / "new" / bad).unlink()
    assert main.run(moved) == 0
    out = capsys.readouterr().out
    assert "1 of 48 training images have been removed" in out
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "new" / "train" / "flower")
    with pytest.raises(DataError):
        main.run(moved)


@pytest.mark.slow
def test_stages_start_from_each_other_and_are_done_once(tmp_path, capsys):
    flags = [f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke", f"--workdir={tmp_path}"]
    stages = ("pretrain", "finetune", "scratch")
    flags += [f"--config.stages.{name}.model.num_layers=1" for name in stages]
    bigger = "--config.stages.finetune.data.image_size=48"  # A grid of 6x6 from one of 4x4.
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
    with pytest.raises(VitJaxError, match="has the stages pretrain, finetune, scratch"):
        main.run(["evaluate", f"--workdir={tmp_path}"])
    assert main.run(["evaluate", f"--workdir={tmp_path / 'finetune'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("n=359/359")
