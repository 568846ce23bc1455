"""Statistics of frozen features, which are measured before a linear probe."""

import shutil

import jax
import numpy as np
import pytest

from tests.support.runs import final_state, records
from vit_jax import main
from vit_jax.checkpoints import layout
from vit_jax.data.sources import open_both
from vit_jax.distributed import mesh
from vit_jax.evaluation.setup import prepare_setup
from vit_jax.models.registry import build as build_model
from vit_jax.training import build, head_norm

PROBE = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=8, num_layers=1, hidden_size=32, mlp_size=32)
    config.model.update(num_heads=2, head_norm=True, head_std=0.01)
    config.data.update(source="digits", image_size=16, per_class=4, augment="resize")
    config.optimizer.update(name="lars", lr=1.0, kwargs={"trust_coefficient": 0.1})
    config.optimizer.update(freeze="all but head", clip_norm=None)
    config.update(batch_size=40, steps=20, log_every=1, checkpoint_every=10)
    return config
"""


def test_statistics_of_parts_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal([1, 100], [0.5, 0.1], (30, 2))
    masks = [np.ones(10), np.arange(12) % 3 > 0, np.ones(8)]
    features = np.split(rows, [10, 22])
    parts = [
        jax.device_get(head_norm._moments(np.float32(y), np.float32(mask)))
        for y, mask in zip(features, masks, strict=True)
    ]
    kept = rows[np.concatenate(masks) > 0]
    mean, var = head_norm.combine(parts)
    np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var, kept.var(0), rtol=1e-4)


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """The config file and the folder of a finished linear probe, on all devices."""
    folder = tmp_path_factory.mktemp("probe")
    config = folder / "probe.py"
    config.write_text(PROBE)
    assert main.run([f"--config={config}", f"--workdir={folder / 'run'}"]) == 0
    return config, folder / "run"


@pytest.mark.slow
def test_head_norm_has_the_statistics_of_the_training_images_and_nothing_else_moves(probe):
    setup = prepare_setup(str(probe[1]), {})
    source, _ = open_both(setup.config.data)
    images = np.stack([setup.recipe(source[i]["image"]) for i in range(len(source))])
    assert len(images) == 40
    body = build_model(setup.model.config, num_classes=0, image_size=16)
    features = np.float64(body.apply({"params": setup.params}, images))
    found = setup.params["head_norm"]
    np.testing.assert_allclose(found["mean"], features.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], features.var(0), rtol=1e-3, atol=1e-6)
    losses = [record["train/loss"] for record in records(probe[1])]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_a_resumed_probe_is_the_same_to_the_bit(probe, tmp_path):
    config, folder = probe
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / layout.FOLDER / "20")
    assert main.run([f"--config={config}", f"--workdir={copy}"]) == 0
    assert records(copy) == records(folder)
    assert final_state(copy) == final_state(folder)


@pytest.mark.slow
def test_a_probe_on_one_device_has_the_losses_of_several(probe, tmp_path, monkeypatch):
    config, folder = probe
    only = mesh.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(build, "build_mesh", lambda config: only)
    assert main.run([f"--config={config}", f"--workdir={tmp_path / 'one'}"]) == 0
    one, several = (
        [record["train/loss"] for record in records(path)] for path in (tmp_path / "one", folder)
    )
    np.testing.assert_allclose(one, several, rtol=1e-4)


@pytest.mark.slow
def test_a_probe_is_converted_with_its_statistics_in_the_head(probe, tmp_path, capsys):
    destination = tmp_path / "probe.safetensors"
    assert main.run(["convert", str(probe[1]), str(destination)]) == 0
    out = capsys.readouterr().out
    assert "head_norm folded into the head" in out
    assert "logits_difference" in out
