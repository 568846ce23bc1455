"""Whole runs with averaged weights, the best weights, a teacher, mixing and SAM."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.support.runs import final_state, records
from tests.support.tiny_flags import tiny_flags
from vit_jax import main
from vit_jax.checkpoints import checkpoint, layout
from vit_jax.errors import ConfigError, DataError
from vit_jax.models import trees
from vit_jax.weights import load


def run(folder, *overrides: str) -> dict:
    """A tiny run's summary."""
    assert main.run(tiny_flags(folder, *overrides)) == 0
    return json.loads((folder / "summary.json").read_text())


def stored(folder, kind: str) -> dict[str, np.ndarray]:
    """The arrays of one part of the newest checkpoint's state."""
    step = layout.find_step_folder(folder)
    like = {
        name: jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"])
        for name, leaf in layout.read_manifest(step)["leaves"].items()
        if name.startswith(f"{kind}/")
    }
    return trees.flatten(checkpoint.restore(step, trees.unflatten(like))[kind])


@pytest.mark.stress
def test_averaged_weights_are_saved_evaluated_and_used(tmp_path):
    summary = run(tmp_path, "optimizer.ema=0.5", "optimizer.lr=0.05")
    average, last = stored(tmp_path, "ema"), stored(tmp_path, "params")
    assert not np.array_equal(average["head/kernel"], last["head/kernel"])
    used = dict(load.open_weights(tmp_path).read(None))
    for name, array in average.items():
        np.testing.assert_array_equal(used[name], array)
    assert main.run(["evaluate", f"--workdir={tmp_path}"]) == 0
    report = json.loads((tmp_path / "eval-val.json").read_text())
    assert report["loss"] == pytest.approx(summary["metrics"]["val/loss"], rel=1e-6)


@pytest.mark.stress
def test_a_large_parameter_that_fsdp_cannot_split_is_named(tmp_path, capsys):
    wide = ["model.hidden_size=516", "model.mlp_size=516", "model.num_heads=2", "steps=2"]
    run(tmp_path, *wide, "mesh.data=1", "mesh.fsdp=8")
    told = "encoderblock_*/MlpBlock_0/Dense_0/kernel is not sharded"
    assert told in capsys.readouterr().out  # 516 is no multiple of 8.


@pytest.mark.stress
def test_the_best_weights_are_kept_told_and_used(tmp_path):
    # A rate that rises until it breaks what was learnt: the best is not the last.
    harm = ["optimizer.name=adamw", "optimizer.lr=5", "optimizer.warmup_steps=24"]
    flags = [*harm, "optimizer.schedule=constant", "steps=24", "eval_every=4", "select=best"]
    summary = run(tmp_path, *flags)
    told = {line["step"]: line for line in records(tmp_path) if "val/top1" in line}
    best = max(told, key=lambda step: (told[step]["val/top1"], -step))
    assert best < 24, "the last is the best; choose a larger rate"
    assert summary["metrics"]["best_step"] == best
    assert summary["metrics"]["val/top1"] == told[best]["val/top1"]
    assert summary["metrics"]["val/loss"] == told[best]["val/loss"]
    assert layout.find_step_folder(tmp_path) == tmp_path / "best" / str(best)
    assert main.run(["evaluate", f"--workdir={tmp_path}"]) == 0
    report = json.loads((tmp_path / "eval-val.json").read_text())
    assert report["top1"] == told[best]["val/top1"]


@pytest.mark.stress
def test_best_weights_that_a_kill_has_lost_are_saved_again(tmp_path):
    flags = ["steps=8", "checkpoint_every=8", "eval_every=8", "select=best"]
    summary, whole = run(tmp_path, *flags), final_state(tmp_path)
    shutil.rmtree(tmp_path / "best")  # Killed before its commit, after that of checkpoints/8.
    (tmp_path / "summary.json").unlink()
    again = run(tmp_path, *flags)
    assert again["metrics"]["best_step"] == 8
    assert again["metrics"]["val/top1"] == summary["metrics"]["val/top1"]
    assert layout.find_step_folder(tmp_path) == tmp_path / "best" / "8"
    assert final_state(tmp_path) == whole


@pytest.mark.stress
def test_the_best_needs_something_to_judge_by(tmp_path):
    with pytest.raises(ConfigError, match="select is 'best', but eval_every is None"):
        main.run(tiny_flags(tmp_path, "select=best", "eval_every=None"))


@pytest.mark.stress
def test_a_student_learns_from_a_teacher_of_its_own_classes(tmp_path):
    run(tmp_path / "teacher", "steps=40", "optimizer.lr=0.05")
    teacher = f"task.teacher={tmp_path / 'teacher'}"
    flags = [teacher, "task.distill_weight=1.0", "data.mixup=0.5", "steps=40", "optimizer.lr=0.05"]
    student = run(tmp_path / "student", *flags)  # No label has a share in the loss.
    assert student["metrics"]["val/top1"] > 0.9
    parts = {name.partition("/")[0] for name in final_state(tmp_path / "student")}
    assert parts == {"step", "params", "opt_state"}, "the teacher is no part of a run"
    with pytest.raises(ConfigError, match="has 3 classes; the data has 4"):
        main.run(tiny_flags(tmp_path / "other", teacher, "data.num_classes=4"))


@pytest.mark.parametrize(
    "options",
    [
        [
            *("data.mixup=0.8", "data.cutmix=1.0", "accumulate=2", "optimizer.name=lamb"),
            *("optimizer.sam_rho=0.2", "optimizer.sam_rho_min=0.1", "optimizer.gsam_alpha=0.5"),
        ],
        [
            "data.repeats=2",
            "data.augment=inception_crop|flip|randaug_increasing(2,10)|erase(0.5)",
            *("optimizer.name=adafactor", "optimizer.schedule=rsqrt"),
            *("optimizer.lr_factors=((r'embedding', 0.0),)", "optimizer.layer_decay=0.7"),
        ],
        [
            *("optimizer.name=schedule_free_adamw", "optimizer.kwargs.b2=0.98"),
            *("optimizer.schedule=constant", "optimizer.lr_factors=((r'embedding', 0.0),)"),
        ],
    ],
    ids=["lamb", "adafactor", "schedule_free"],
)
@pytest.mark.stress
def test_a_run_that_was_cut_goes_on_to_the_same_bits(tmp_path, options):
    flags = [*options, "optimizer.ema=0.9", "model.dropout=0.1"]
    run(tmp_path / "whole", *flags)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "8")
    run(tmp_path / "cut", *flags)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "whole")


@pytest.mark.stress
def test_too_many_images_that_cannot_be_read_end_a_run(tmp_path, photo_folder):
    shutil.copytree(photo_folder, tmp_path / "photos")
    for path in sorted((tmp_path / "photos" / "train" / "flower").iterdir())[:5]:
        path.write_bytes(b"<html>not found</html>")
    data = ["data.source=folder", f"data.dir={tmp_path / 'photos'}", "data.on_bad_image=skip"]
    with pytest.raises(DataError, match=r"could not be read, more than data\.max_bad"):
        main.run(tiny_flags(tmp_path / "few", *data))
    run(tmp_path / "many", *data, "data.max_bad=0.2", "log_every=1")
    assert records(tmp_path / "many")[-1]["train/bad_images"] > 0
