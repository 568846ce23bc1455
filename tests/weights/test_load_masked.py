"""Loading a run of masked patch prediction: for features, classifiers, and further runs."""

import dataclasses

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.checkpoints import checkpoint, layout
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.models.registry import build, param_shapes
from vit_jax.tasks.registry import build_model
from vit_jax.weights import load
from vit_jax.weights.adapt import MASKED_PATCH_PARAMS

SHAPE = {"name": "vit_ti16", "patch": 4, "num_layers": 1, "hidden_size": 8, "mlp_size": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The config, parameters and folder of a run on data with three classes."""
    folder = tmp_path_factory.mktemp("masked")
    config = config_lib.base_config()
    config.steps = 1
    config.model.update(**SHAPE, num_heads=2)
    config.data.update(image_size=(8, 12))
    config.task.update(name="masked_patches")
    config = config_lib.check(config)[""]
    random = np.random.default_rng(0)
    params = {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in param_shapes(build_model(config, num_classes=3)).items()
    }
    meta = {"config": config_lib.to_dict({"": config}), "classes": ["a", "b", "c"]}
    steps = checkpoint.Checkpoints(folder / layout.FOLDER)
    steps.save(7, {"params": jax.device_put(trees.unflatten(params))}, data={}, meta=meta)
    steps.close()
    return config, params, folder


def same_arrays(tree, params) -> bool:
    found = trees.flatten(tree)
    assert set(found) == set(params)
    return all(np.array_equal(found[name], array) for name, array in params.items())


def test_load_gives_features_and_no_classes(run):
    _, params, folder = run
    loaded = load.load(folder)
    assert (loaded.model.num_classes, loaded.classes) == (0, ())
    body = {name: array for name, array in params.items() if name not in MASKED_PATCH_PARAMS}
    assert param_shapes(loaded.model) == loaded.weights.shapes
    assert same_arrays(loaded.params(), body)
    text = r"7 is a run of task\.name=.masked_patches. without classes; use the command features"
    with pytest.raises(CheckpointError, match=text):
        loaded.require_head()


def test_classifier_needs_permission_for_a_new_head(run):
    config, params, folder = run
    model = build(config.model, num_classes=2, image_size=(8, 12))
    with pytest.raises(CheckpointError, match=r"mask_token is not in the model \(new_head"):
        load.load_params(folder, model)
    started = load.load_params(folder, model, new_head=True)
    head = {"head/kernel": np.zeros((8, 2)), "head/bias": np.zeros(2)}
    body = {name: array for name, array in params.items() if name not in MASKED_PATCH_PARAMS}
    assert same_arrays(started, body | head)


def test_new_head_of_a_classifier_has_the_bias_of_the_model(run):
    config = dataclasses.replace(run[0].model, head_bias=-10.0)
    model = build(config, num_classes=2, image_size=(8, 12))
    started = load.load_params(run[2], model, new_head=True)
    np.testing.assert_array_equal(started["head"]["bias"], [-10.0, -10.0])


def test_masked_patch_run_starts_with_all_parameters(run):
    config, params, folder = run
    assert same_arrays(load.load_params(folder, build_model(config, num_classes=9)), params)
