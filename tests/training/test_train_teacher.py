"""Runs of a task with a teacher and a state: resumed, evaluated, inspected and converted."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.runs import final_state, records
from tests.support.tiny_flags import tiny_flags
from vit_jax import main
from vit_jax.checkpoints import layout
from vit_jax.checkpoints.checkpoint import crc32c
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.losses import softmax_cross_entropy

MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class MeanTeacher(Classification):
    """Learns from labels and from the centred outputs of the averaged parameters."""

    def init_task_state(self):
        return {"center": jnp.zeros(self.model.num_classes)}

    def teacher_targets(self, teacher_params, task_state, batch, step, key):
        logits = self.model.apply({"params": teacher_params}, batch["image"])  # B K
        center = MOMENTUM * task_state["center"] + (1 - MOMENTUM) * logits.mean(0)
        targets = jax.nn.softmax((logits - task_state["center"][None]) / 0.5)
        entropy = -jnp.mean(jnp.sum(targets * jnp.log(targets), axis=1))
        return {"soft": targets}, {"center": center}, {"teacher_entropy": entropy}

    def loss(self, params, batch, key):
        loss, metrics = super().loss(params, batch, key)
        logits = self.model.apply({"params": params}, batch["image"])
        return loss + jnp.mean(softmax_cross_entropy(logits, batch["soft"])), metrics


FLAGS = (
    f"task.name={__name__}:MeanTeacher",
    "optimizer.ema=0.9",
    "optimizer.end_ema=1.0",
    "optimizer.weight_decay=0.1",
    "optimizer.end_weight_decay=0.3",
    "optimizer.clip_per=module",
    "optimizer.freeze_steps=(('^head/', 2),)",
    "log_every=1",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert main.run(tiny_flags(folder, *FLAGS)) == 0
    return folder


def test_metrics_of_the_teacher_are_logged(finished):
    entropies = [record["train/teacher_entropy"] for record in records(finished)[:8]]
    assert len(entropies) == 8
    assert all(0 < entropy <= np.log(3) + 1e-5 for entropy in entropies)


def test_a_resumed_run_has_the_same_bits_with_its_task_state(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / layout.FOLDER / "8")  # As if it had been stopped before.
    assert main.run(tiny_flags(folder, *FLAGS)) == 0
    assert "task/center" in final_state(folder)
    assert final_state(folder) == final_state(finished)
    assert records(folder) == records(finished)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [("mesh.data=1", "mesh.fsdp=8"), ("accumulate=2",)])
def test_other_meshes_and_micro_batches_have_the_same_losses(finished, tmp_path, fields):
    assert main.run(tiny_flags(tmp_path / "run", *FLAGS, *fields)) == 0
    for a, b in zip(records(tmp_path / "run")[:8], records(finished)[:8], strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)


def test_the_weights_of_a_checkpoint_with_task_state_are_the_averaged_ones(finished, tmp_path):
    """They are evaluated, listed, loaded and converted as those of other runs."""
    assert main.run(["evaluate", f"--workdir={finished}"]) == 0
    assert main.run(["inspect", str(finished)]) == 0
    out = tmp_path / "weights.npz"
    assert main.run(["convert", str(finished), str(out)]) == 0
    stored = layout.read_manifest(layout.find_step_folder(finished))["leaves"]
    assert {"params/head/kernel", "ema/head/kernel", "task/center"} <= stored.keys()
    with np.load(out) as arrays:
        assert not [name for name in arrays if "center" in name]
        kernel = arrays["head/kernel"]
    assert crc32c(kernel) == stored["ema/head/kernel"]["crc32c"]
    assert crc32c(kernel) != stored["params/head/kernel"]["crc32c"]
