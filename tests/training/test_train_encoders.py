"""Fine-tuning from every family of published encoders, with the recipe of the project."""

import shutil

import jax
import numpy as np
import pytest

from tests.support.runs import ROOT, final_state, records
from tests.support.tiny import some_params, tiny_encoder
from vit_jax import main, save_params
from vit_jax.checkpoints import layout
from vit_jax.distributed import mesh
from vit_jax.models.encoders import ENCODERS
from vit_jax.training import build

STEPS = 20
FLAGS = {
    "data.source": "digits",
    "data.per_class": 3,  # All in every batch and not augmented: the loss is no noise.
    "data.augment": "resize",
    "data.val_split": "",
    "model.scan": True,  # Compiles one layer instead of two.
    "batch_size": 30,
    "log_every": 1,
    "checkpoint_every": STEPS // 2,
}


@pytest.fixture
def one_device(monkeypatch):
    only = mesh.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(build, "build_mesh", lambda config: only)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("family", ENCODERS)
def test_finetuning_from_a_family_learns_and_resumes_to_the_same_bits(family, tmp_path):
    """The file is one of random weights, whose head is replaced."""
    model = tiny_encoder(family, image_size=32, patch=8, projection=12 * ("clip" in family) or None)
    weights, folder, copy = (tmp_path / name for name in ("own.npz", "run", "copy"))
    save_params(weights, model, some_params(model))
    config = (
        f"--config={ROOT / 'configs' / 'finetune.py'}:init={weights},size=32,steps={STEPS},lr=0.03"
    )
    flags = [f"--config.{name}={value}" for name, value in FLAGS.items()]
    assert main.run([config, f"--workdir={folder}", *flags]) == 0
    losses = [record["train/loss"] for record in records(folder)]
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < losses[0] == pytest.approx(np.log(10), rel=1e-4)
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / layout.FOLDER / str(STEPS))  # As if it had been stopped before.
    assert main.run([config, f"--workdir={copy}", *flags]) == 0
    assert records(copy) == records(folder)
    assert final_state(copy) == final_state(folder)
