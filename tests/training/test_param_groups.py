"""Groups of parameters by name: layers, factors, frozen parameters, and their errors."""

import pytest

from tests.support.tiny import tiny
from vit_jax.config import base_config, check
from vit_jax.config.schema import Optimizer
from vit_jax.errors import ConfigError
from vit_jax.models.registry import create_model, param_shapes
from vit_jax.training.param_groups import (
    check_groups,
    count_trained,
    factor_of,
    frozen_names,
    layer_of,
    module_of,
    num_layers_of,
)

SHAPES = param_shapes(tiny())  # Two layers of width 32, five classes.
HEAD = 5 * 32 + 5
HEADS = ("head", "head_dist")


def test_factor_of_is_that_of_the_first_pattern_found():
    factors = ((r"^head/", 100.0), (r"kernel$", 1.0), (r"", 0.0))
    names = ("head/kernel", "head/bias", "Dense_0/kernel", "Dense_0/bias")
    assert [factor_of(name, factors) for name in names] == [100.0, 100.0, 1.0, 0.0]
    assert factor_of("anything", ()) == 1.0


def test_count_trained_counts_the_values_of_the_head_and_of_blocks():
    total = sum(count_trained(Optimizer(), SHAPES))
    assert count_trained(Optimizer(), SHAPES) == (total, 0)
    assert count_trained(Optimizer(freeze="all but head"), SHAPES) == (HEAD, total - HEAD)
    block = 4 * 32 * 32 + 2 * 32 * 64 + 64 + 5 * 32 + 4 * 32  # Kernels, biases, LayerNorms.
    after_encoder = 2 * 32 + HEAD
    assert count_trained(Optimizer(freeze="first 1 blocks"), SHAPES)[0] == block + after_encoder
    assert count_trained(Optimizer(freeze="first 2 blocks"), SHAPES)[0] == after_encoder
    assert num_layers_of(SHAPES) == 2


def test_both_heads_of_a_distilled_model_are_heads():
    shapes = param_shapes(tiny(distill_token=True))
    trained = shapes.keys() - frozen_names(Optimizer(freeze="all but head"), shapes)
    assert trained == {f"{head}/{leaf}" for head in HEADS for leaf in ("kernel", "bias")}
    assert {layer_of(f"{head}/kernel", 2) for head in HEADS} == {3}


@pytest.mark.parametrize(
    ("options", "names", "layer"),
    [
        ({"pre_norm": True}, ["Transformer/pre_norm/scale", "Transformer/pre_norm/bias"], 0),
        ({"distill_token": True}, ["dist_token", "head_dist/kernel"], (0, 3)),
        ({"registers": 2}, ["registers"], 0),
        ({"projection": 7}, ["projection/kernel"], 3),
        ({"fc_norm": True}, ["fc_norm/scale", "fc_norm/bias"], 3),
        ({"mlp": "swiglu"}, ["Transformer/encoderblock_1/MlpBlock_0/Dense_gate/kernel"], 2),
        ({"mlp_norm": True}, ["Transformer/encoderblock_0/MlpBlock_0/LayerNorm_0/scale"], 1),
    ],
    ids=str,
)
def test_layer_of_places_the_parameters_of_encoders(options, names, layer):
    shapes = param_shapes(tiny(**options))
    layers = layer if isinstance(layer, tuple) else (layer,) * len(names)
    assert shapes.keys() >= set(names)
    assert [layer_of(name, 2) for name in names] == list(layers)


def test_module_of_is_a_head_or_the_encoder():
    modules = {name: module_of(name) for name in SHAPES if name.startswith("head")}
    assert modules == {"head/kernel": "head", "head/bias": "head"}
    assert {module_of(name) for name in SHAPES.keys() - modules.keys()} == {"encoder"}
    assert module_of("class_head/last_layer/kernel") == "class_head"
    assert module_of("patch_head/layer_0/bias") == "patch_head"


def test_freeze_and_factors_of_zero_add_up():
    config = Optimizer(freeze="all but head", lr_factors=(("head/bias", 0.0),))
    assert set(SHAPES) - frozen_names(config, SHAPES) == {"head/kernel"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr_factors": (("(?!head).*", 0.0),)}, "factor 0 for every parameter"),
        ({"lr_factors": (("encoderblok", 0.1),)}, "lr_factors: 'encoderblok' matches no param"),
        ({"lr_factors": (("head", 0.1), ("head/bias", 0.2))}, "that an earlier pattern matches"),
        ({"decay_factors": (("relative", 0.0),)}, "decay_factors: 'relative' matches no"),
        ({"freeze_steps": (("last_layer", 3),)}, "freeze_steps: 'last_layer' matches no param"),
        ({"freeze": "first 3 blocks"}, "freeze is 'first 3 blocks'; the model has only 2"),
        ({"freeze": "all but head", "lr_factors": (("head", 0.0),)}, "factor 0 for every"),
    ],
)
def test_check_groups_refuses_patterns_of_nothing_and_of_everything(fields, message):
    with pytest.raises(ConfigError, match=message):
        check_groups(Optimizer(weight_decay=0.1, **fields), SHAPES)


def test_check_groups_accepts_what_trains_something():
    factors = ((".*kernel", 1.0), (".*", 0.0))
    check_groups(Optimizer(weight_decay=0.1, decay_factors=factors), SHAPES)
    check_groups(Optimizer(lr_factors=(("^(?!head/)", 0.0),)), SHAPES)
    check_groups(Optimizer(freeze="first 2 blocks"), SHAPES)


def test_model_without_blocks_freezes_no_blocks():
    shapes = param_shapes(create_model("bit_r26x1", num_classes=3, image_size=32))
    check_groups(Optimizer(freeze="all but head"), shapes)
    with pytest.raises(ConfigError, match="the model has only 0 blocks"):
        check_groups(Optimizer(freeze="first 1 blocks"), shapes)


@pytest.mark.parametrize("text", ["head", "first blocks", "all", "first 0 blocks", "last 2 blocks"])
def test_config_refuses_another_word_for_freeze(text):
    config = base_config()
    config.steps = 1
    config.optimizer.freeze = text
    with pytest.raises(ConfigError, match=r"config\.optimizer\.freeze is .*'all but head', 'first"):
        check(config)


def test_config_accepts_freeze_in_any_case():
    config = base_config()
    config.steps = 1
    config.optimizer.freeze = "First 6  blocks"
    assert check(config)[""].optimizer.freeze == "first 6 blocks"
