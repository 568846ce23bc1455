"""Weights of self-distillation: encoders of runs, and runs that start from encoders."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.support.tiny import some_params
from vit_jax import config as config_lib
from vit_jax import save_params
from vit_jax.checkpoints import checkpoint, layout
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.models.registry import build, param_shapes
from vit_jax.tasks.registry import build_model
from vit_jax.weights import load

SHAPE = {"name": "vit_ti16", "patch": 4, "num_layers": 1, "hidden_size": 8, "mlp_size": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The config, the parameters and the folder of a run."""
    folder = tmp_path_factory.mktemp("dino")
    config = config_lib.base_config()
    config.steps = 1
    config.model.update(**SHAPE, num_heads=2)
    config.data.image_size = (8, 12)
    config.task.update(name="dino", prototypes=6, head_hidden=5, bottleneck=4)
    config.task.update(patch_weight=1.0, patch_prototypes=7)
    config.optimizer.ema = 0.9
    config = config_lib.check(config)[""]
    params = some_params(build_model(config, num_classes=3))
    meta = {"config": config_lib.to_dict({"": config}), "classes": ["a", "b", "c"]}
    steps = checkpoint.Checkpoints(folder / layout.FOLDER)
    steps.save(7, {"params": jax.device_put(params)}, data={}, meta=meta)
    steps.close()
    return config, trees.flatten(params), folder


def is_same(tree, params) -> bool:
    found = trees.flatten(tree)
    assert set(found) == set(params)
    return all(np.array_equal(found[name], array) for name, array in params.items())


def encoder(params):
    return {n: a for n, a in params.items() if "_head/" not in n and n != "mask_token"}


def test_a_run_is_loaded_as_the_encoder_of_its_teacher(run):
    _, params, folder = run
    loaded = load.load(folder)
    assert (loaded.model.num_classes, loaded.classes) == (0, ())
    assert param_shapes(loaded.model) == loaded.weights.shapes
    assert is_same(loaded.params(), encoder(params))
    text = r"a run of task\.name=.dino. without classes; use the command features, evaluate"
    with pytest.raises(CheckpointError, match=text):
        loaded.require_head()


def test_a_classifier_needs_permission_to_drop_the_heads(run):
    config, params, folder = run
    model = build(config.model, num_classes=2, image_size=(8, 12))
    with pytest.raises(CheckpointError, match=r"layer_0/bias is not in the model \(new_head=True"):
        load.load_params(folder, model)
    started = load.load_params(folder, model, new_head=True)
    head = {"head/kernel": np.zeros((8, 2)), "head/bias": np.zeros(2)}
    assert is_same(started, encoder(params) | head)


def test_a_run_starts_from_another_with_all_parameters(run):
    config, params, folder = run
    assert is_same(load.load_params(folder, build_model(config, num_classes=9)), params)


@pytest.mark.parametrize("has_heads", [False, True])
def test_a_run_starts_from_an_encoder_or_other_heads_with_new_ones(
    run, tmp_path, has_heads, capsys
):
    config, params, folder = run
    task = dataclasses.replace(config.task, prototypes=9)
    model = build_model(dataclasses.replace(config, task=task), num_classes=9)
    vit = build(config.model, num_classes=0, image_size=(8, 12))
    where = folder if has_heads else tmp_path / "encoder.npz"
    if not has_heads:
        save_params(where, vit, trees.unflatten(encoder(params)))
        with pytest.raises(CheckpointError, match="class_head/layer_0/bias is missing"):
            load.load_params(where, model)
    started = load.load_params(where, model, new_head=True)
    found = trees.flatten(started)
    assert {name: array.shape for name, array in found.items()} == param_shapes(model)
    kept = {name: found[name] for name in encoder(params) | {"mask_token": None}}
    assert is_same(kept, encoder(params) | {"mask_token": np.zeros((1, 1, 8))})
    assert np.any(found["class_head/last_layer/kernel"])
    output = capsys.readouterr().out
    assert "a new class_head with random initial values" in output
    assert "a new patch_head with random initial values" in output
