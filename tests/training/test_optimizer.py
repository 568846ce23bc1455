"""Clipping, weight decay, factors by name, freezing, and optimizers of the user."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config.fields import Kwargs
from vit_jax.config.schema import Optimizer
from vit_jax.errors import ConfigError
from vit_jax.models import trees
from vit_jax.training.optimizer import OPTIMIZERS, UpdateRule, make_optimizer
from vit_jax.training.param_groups import layer_of

START = {
    "kernel": np.array([[1.0, -2.0], [0.5, 3.0]]),
    "narrow": np.array([[2.0, 0.3]]),
    "bias": np.array([0.1, -0.2]),
}
RANDOM = np.random.default_rng(0)
GRADIENTS = [{n: RANDOM.normal(size=p.shape) for n, p in START.items()} for _ in range(3)]
ZEROS = jax.tree.map(np.zeros_like, START)
RATE = 0.1


def after(config, *grads, start=START, lr=RATE):
    """Parameters after a step with each of the gradients, and the optimizer state."""
    tx, params = make_optimizer(config, lr), jax.tree.map(jnp.float32, start)
    state = tx.init(params)
    for step_grads in grads:
        updates, state = tx.update(jax.tree.map(jnp.float32, step_grads), state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(np.array, params), state


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_without_gradients_shrinks_every_parameter_by_rate_times_decay(name):
    params, _ = after(Optimizer(name=name, weight_decay=0.3), ZEROS)
    for each in START:
        np.testing.assert_allclose(params[each], START[each] * (1 - RATE * 0.3), rtol=1e-6)


def test_first_step_of_adam_is_the_rate_for_gradients_of_any_size():
    params, _ = after(Optimizer(), jax.tree.map(lambda p: 1e-3 * np.sign(p), START))
    for each in START:
        np.testing.assert_allclose(START[each] - params[each], RATE * np.sign(START[each]), 1e-4)


def test_clipping_uses_the_norm_of_all_gradients_together():
    grads = ZEROS | {"kernel": np.full((2, 2), 1.5), "bias": np.array([4.0, 0.0])}  # Norm 5.
    params, _ = after(Optimizer(name="sgd", clip_norm=1.0), grads, lr=1.0)
    for each in START:
        np.testing.assert_allclose(START[each] - params[each], grads[each] / 5, atol=1e-6)


def test_learning_rate_can_be_a_schedule():
    config = Optimizer(name="sgd")
    falling, _ = after(config, GRADIENTS[0], ZEROS, lr=lambda step: RATE / (1 + step))
    first, _ = after(config, GRADIENTS[0])
    second, _ = after(config, GRADIENTS[0], ZEROS, lr=RATE / 2)
    for each in START:
        half_steps = second[each] - START[each]  # Momentum 0.9: shares 1 and 0.9 of the velocity.
        expected = first[each] + half_steps * 0.9 / 1.9
        np.testing.assert_allclose(falling[each], expected, rtol=1e-5)


def test_decay_factors_multiply_the_weight_decay_of_a_parameter():
    config = Optimizer(weight_decay=0.03, decay_factors=(("kernel", 100.0), ("bias", 0.0)))
    params, _ = after(config, ZEROS)
    for each, decay in (("kernel", 3.0), ("narrow", 0.03), ("bias", 0.0)):
        np.testing.assert_allclose(params[each], START[each] * (1 - RATE * decay), rtol=1e-5)


def test_lr_factors_multiply_the_step_with_its_weight_decay():
    config = Optimizer(name="sgd", weight_decay=0.5, clip_norm=None)
    plain, _ = after(config, GRADIENTS[0])
    scaled, _ = after(dataclasses.replace(config, lr_factors=(("kernel", 0.1),)), GRADIENTS[0])
    for name, factor in (("kernel", 0.1), ("narrow", 1.0), ("bias", 1.0)):
        step = factor * (plain[name] - START[name])
        np.testing.assert_allclose(scaled[name] - START[name], step, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_keep_their_bits_and_have_no_optimizer_state(name):
    frozen = Optimizer(name=name, weight_decay=0.1, lr_factors=(("kernel|narrow", 0.0),))
    params, state = after(frozen, *GRADIENTS)
    for each in ("kernel", "narrow"):
        assert (params[each] == START[each].astype(np.float32)).all()
    assert not (params["bias"] == START["bias"].astype(np.float32)).any()
    assert not [each for each in trees.flatten(state) if "kernel" in each or "narrow" in each]


def test_gradients_of_frozen_parameters_are_not_part_of_the_norm():
    grads = ZEROS | {"kernel": np.full((2, 2), 1e6), "bias": np.array([0.3, 0.4])}
    config = Optimizer(name="sgd", clip_norm=1.0, lr_factors=(("kernel", 0.0),))
    params, _ = after(config, grads, start=ZEROS, lr=1.0)
    np.testing.assert_allclose(params["bias"], [-0.3, -0.4], rtol=1e-6)


def test_layer_decay_divides_the_rate_for_each_layer_above():
    names = {
        "embedding/kernel": 0,
        "cls": 0,
        "Transformer/posembed_input/pos_embedding": 0,
        "Transformer/encoderblock_0/LayerNorm_0/scale": 1,
        "Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel": 2,
        "Transformer/encoder_norm/scale": 3,
        "head/kernel": 3,
    }
    assert {name: layer_of(name, num_layers=2) for name in names} == names
    start = trees.unflatten({name: np.zeros(2) for name in names})
    grads = trees.unflatten({name: np.ones(2) for name in names})
    config = Optimizer(name="sgd", layer_decay=0.5, clip_norm=None)
    params = trees.flatten(after(config, grads, start=start, lr=1.0)[0])
    for name, layer in names.items():
        np.testing.assert_allclose(params[name], -(0.5 ** (3 - layer)), rtol=1e-6)


def test_layer_decay_of_a_layer_is_the_same_with_layers_above_it_frozen():
    names = [f"Transformer/encoderblock_{i}/Dense/kernel" for i in range(4)] + ["head/kernel"]
    start = trees.unflatten({name: np.zeros(2) for name in names})
    grads = trees.unflatten({name: np.ones(2) for name in names})
    config = Optimizer(name="sgd", layer_decay=0.5, clip_norm=None)
    frozen = dataclasses.replace(config, lr_factors=(("encoderblock_[23]|head", 0.0),))
    whole, part = (
        trees.flatten(after(each, grads, start=start, lr=1.0)[0]) for each in (config, frozen)
    )
    for i, name in enumerate(names):
        np.testing.assert_allclose(whole[name], -(0.5 ** (4 - i)), rtol=1e-6)
        np.testing.assert_array_equal(part[name], whole[name] if i < 2 else 0)


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        ("all but head", {"head/kernel"}),
        ("first 1 blocks", {"Transformer/encoderblock_1/Dense/kernel", "head/kernel"}),
        ("all but last 1 blocks", {"Transformer/encoderblock_1/Dense/kernel", "head/kernel"}),
    ],
)
def test_freeze_trains_the_named_part_only(freeze, trained):
    blocks = [f"Transformer/encoderblock_{i}/Dense/kernel" for i in range(2)]
    names = ["embedding/kernel", *blocks, "head/kernel"]
    start = trees.unflatten({name: np.zeros(2) for name in names})
    grads = trees.unflatten({name: np.ones(2) for name in names})
    params, state = after(Optimizer(freeze=freeze), grads, start=start)
    changed = {name for name, value in trees.flatten(params).items() if np.any(value)}
    assert changed == trained
    stated = {name for name in names if any(name in each for each in trees.flatten(state))}
    assert stated == trained


def sign_descent(scale: float = 1.0):
    return optax.stateless(lambda grads, _: jax.tree.map(lambda g: scale * jnp.sign(g), grads))


def sign_descent_without_decay():
    return UpdateRule(sign_descent(), after_decay=sign_descent())


def learning_rate():
    return RATE


def test_optimizer_of_the_user_gives_the_direction():
    config = Optimizer(name=f"{__name__}:sign_descent", kwargs=Kwargs(scale=2.0), weight_decay=0.3)
    params, _ = after(config, GRADIENTS[0])
    for each, start in START.items():
        expected = start - RATE * (2 * np.sign(GRADIENTS[0][each]) + 0.3 * start)
        np.testing.assert_allclose(params[each], expected, rtol=1e-5)


def test_after_decay_is_applied_to_parameters_that_decay():
    name = f"{__name__}:sign_descent_without_decay"
    config = Optimizer(name=name, weight_decay=9.0, decay_factors=(("bias", 0.0),))
    params, _ = after(config, ZEROS)
    for each in ("kernel", "narrow"):
        np.testing.assert_allclose(params[each], START[each] - RATE * np.sign(START[each]), 1e-5)
    np.testing.assert_allclose(params["bias"], START["bias"], rtol=1e-6)


def test_rule_of_optax_is_an_optimizer(monkeypatch):
    monkeypatch.setenv("VIT_JAX_TRUSTED", "optax")
    config = Optimizer(name="optax:scale_by_sign", clip_norm=None)
    params, _ = after(config, GRADIENTS[0])
    for each in START:
        expected = START[each] - RATE * np.sign(GRADIENTS[0][each])
        np.testing.assert_allclose(params[each], expected, rtol=1e-5)


def test_optimizer_of_the_user_that_is_no_transformation_is_refused():
    with pytest.raises(ConfigError, match=r"returns float; expected an optax\."):
        make_optimizer(Optimizer(name=f"{__name__}:learning_rate"), RATE)
