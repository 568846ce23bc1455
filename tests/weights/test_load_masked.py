"""A masked patch run behind WHERE: a start for other models, features, and no classes."""

import dataclasses

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import trees
from vit_jax.checkpoints import checkpoint
from vit_jax.errors import CheckpointError
from vit_jax.models.registry import build, param_shapes
from vit_jax.tasks.registry import build_model
from vit_jax.weights import load
from vit_jax.weights.adapt import MASKED

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
    steps = checkpoint.Checkpoints(folder / checkpoint.FOLDER)
    steps.save(7, {"params": jax.device_put(trees.unflatten(params))}, data={}, meta=meta)
    steps.close()
    return config, params, folder


def same_arrays(tree, params) -> bool:
    found = trees.flatten(tree)
    assert set(found) == set(params)
    return all(np.array_equal(found[name], array) for name, array in params.items())


def test_it_loads_as_features_and_tells_that_it_has_no_classes(run):
    _, params, folder = run
    loaded = load.load(folder)
    assert (loaded.model.num_classes, loaded.classes) == (0, ())
    body = {name: array for name, array in params.items() if name not in MASKED}
    assert param_shapes(loaded.model) == loaded.weights.shapes
    assert same_arrays(loaded.params(), body)
    words = r"7 is a masked patch run: it has no classes; fine-tune it first\.$"
    with pytest.raises(CheckpointError, match=words):
        loaded.refuse_without_head()


def test_a_classifier_starts_from_it_where_a_new_head_is_permitted(run):
    config, params, folder = run
    model = build(config.model, num_classes=2, image_size=(8, 12))
    with pytest.raises(CheckpointError, match=r"mask_token has no place .* init\.new_head=True"):
        load.load_params(folder, model)
    started = load.load_params(folder, model, new_head=True)
    head = {"head/kernel": np.zeros((8, 2)), "head/bias": np.zeros(2)}
    body = {name: array for name, array in params.items() if name not in MASKED}
    assert same_arrays(started, body | head)


def test_a_new_head_of_a_classifier_has_the_models_own_bias(run):
    section = dataclasses.replace(run[0].model, head_bias=-10.0)
    model = build(section, num_classes=2, image_size=(8, 12))
    started = load.load_params(run[2], model, new_head=True)
    np.testing.assert_array_equal(started["head"]["bias"], [-10.0, -10.0])


def test_other_masked_patches_start_from_it_with_all_that_it_learnt(run):
    config, params, folder = run
    assert same_arrays(load.load_params(folder, build_model(config, num_classes=9)), params)
