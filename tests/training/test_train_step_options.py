"""Accumulation, averaged weights, SAM and GSAM, each against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import create_model
from vit_jax.config.schema import Optimizer, Task
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models import trees
from vit_jax.models.registry import make_init
from vit_jax.tasks.classification import Classification
from vit_jax.training.schedules import make_schedule
from vit_jax.training.train_step import (
    make_abstract_state,
    make_gradient,
    make_init_state,
    make_train_step,
)

STEPS, RATE, MOMENTUM = 100, 0.02, 0.9
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(8, 3)).astype(np.float32)
Y = RANDOM.normal(size=8).astype(np.float32)
W = np.array([1.0, -2.0, 0.5])


def loss_of(w):
    return np.mean((X @ w - Y) ** 2 + 0.1 * (X @ w) ** 4)


def gradient_of(w):
    """Derivative of `loss_of`."""
    return X.T @ (2 * (X @ w - Y) + 0.4 * (X @ w) ** 3) / len(X)


def toy_loss(params, batch, key):
    del key
    outputs = batch["x"] @ params["w"]
    return jnp.mean((outputs - batch["y"]) ** 2 + 0.1 * outputs**4), {}


def toy_init(key):
    del key
    return {"w": jnp.float32(W)}


def trace(rho=None, accumulate=1, **fields):
    """States after each of 100 steps of SGD with momentum; with `rho(step)`, of SAM."""
    mesh = mesh_lib.make_mesh()
    defaults = {"name": "sgd", "lr": RATE, "schedule": "linear", "clip_norm": None}
    config = Optimizer(**defaults | fields)
    schedule = make_schedule(config, STEPS)
    abstract_state = make_abstract_state(toy_init, config, mesh)
    state = make_init_state(toy_init, config, abstract_state)(jax.random.key(0))
    batches = mesh_lib.batch_sharding(mesh)
    step = make_train_step(toy_loss, config, abstract_state, batches, accumulate=accumulate)
    for i in range(STEPS):
        hyperparams = {"lr": schedule(i)} | ({"rho": rho(i)} if rho else {})
        state, metrics = step(state, {"x": X, "y": Y}, jax.random.key(0), hyperparams)
        yield jax.tree.map(np.array, state), metrics


def momentum_by_hand(gradient):
    """w after each step along `gradient(w, step)`."""
    w, velocity = W.copy(), np.zeros(3)
    for t in range(STEPS):
        velocity = MOMENTUM * velocity + gradient(w, t)
        w = w - RATE * (1 - t / STEPS) * velocity
        yield w


def worst_gradient(w, rho, alpha=0.0):
    """Equations 2 and 3 of arXiv:2010.01412; algorithm 1 of arXiv:2203.08065 for alpha."""
    here = gradient_of(w)
    there = gradient_of(w + rho * here / np.linalg.norm(here))
    across = here - there * (here @ there) / (there @ there)
    return there - alpha * across


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_sam_equals_numpy(alpha):
    expected = momentum_by_hand(lambda w, t: worst_gradient(w, 0.1, alpha))
    before = W
    actual = trace(lambda step: 0.1, gsam_alpha=alpha)
    for (state, metrics), w in zip(actual, expected, strict=True):
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-4, atol=1e-5)
        # The logged loss is that of the parameters, not of the worst ones near them.
        np.testing.assert_allclose(metrics["loss"], loss_of(before), rtol=1e-3)
        before = w


def test_radius_of_sam_can_change_with_the_step():
    def radius(step):
        return 0.2 - 0.001 * step

    expected = momentum_by_hand(lambda w, t: worst_gradient(w, radius(t)))
    for (state, _), w in zip(trace(radius), expected, strict=True):
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-4, atol=1e-5)


def test_averaged_weights_equal_numpy_and_are_evaluated():
    average = W.copy()
    path = momentum_by_hand(lambda w, t: gradient_of(w))
    for (state, _), w in zip(trace(ema=0.95), path, strict=True):
        average = 0.95 * average + 0.05 * w
        np.testing.assert_allclose(state.ema["w"], average, rtol=1e-4, atol=1e-5)
        assert state.eval_params is state.ema
    state, _ = next(trace())
    assert state.ema is None
    assert state.eval_params is state.params


def test_schedule_free_takes_gradients_at_interpolated_points_and_evaluates_the_average():
    x, z, v = W.copy(), W.copy(), np.zeros(3)  # Algorithm 1 of arXiv:2405.15682.
    actual = trace(name="schedule_free_adamw", schedule="constant", weight_decay=0.1)
    for t, (state, metrics) in enumerate(actual, start=1):
        y = 0.1 * z + 0.9 * x
        np.testing.assert_allclose(metrics["loss"], loss_of(y), rtol=1e-3)
        g = gradient_of(y)
        v = 0.999 * v + 0.001 * g**2
        z = z - RATE * (g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.1 * y)
        x = x + (z - x) / t
        np.testing.assert_allclose(state.params["w"], x, rtol=1e-4, atol=1e-5)
        assert state.eval_params is state.params


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_micro_batches_give_the_steps_of_the_whole_batch(accumulate):
    whole = list(trace())
    for (a, metrics), (b, expected) in zip(trace(accumulate=accumulate), whole, strict=True):
        np.testing.assert_allclose(a.params["w"], b.params["w"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)


def test_each_micro_batch_has_its_own_noise():
    def noise(params, batch, key):
        return params * jax.random.uniform(key), {}

    key, batch = jax.random.key(3), {"x": jnp.zeros(4)}
    draws = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(2)]
    (loss, _), gradient = make_gradient(noise, accumulate=2)(jnp.float32(1), batch, key)
    assert float(loss) == pytest.approx(np.mean(draws))
    assert float(gradient) == pytest.approx(np.mean(draws))


@pytest.mark.parametrize("sizes", [(8, 1), (2, 4)])
@pytest.mark.stress
def test_vit_accumulates_the_gradient_of_the_whole_batch_on_any_mesh(sizes):
    model = create_model(
        "vit_ti16", num_classes=4, image_size=8, patch=4, num_layers=2, hidden_size=32, num_heads=2
    )
    images = np.random.default_rng(1).uniform(-1, 1, (32, 8, 8, 3)).astype(np.float32)
    batch = {"image": images, "label": np.arange(32) % 4, "mask": np.ones(32, np.float32)}
    config = Optimizer(name="sgd", lr=0.1, clip_norm=None)
    schedule, init = make_schedule(config, 4), make_init(model)
    results = {}
    for accumulate, mesh in ((1, mesh_lib.make_mesh(1, 1, devices=jax.devices()[:1])), (4, None)):
        mesh = mesh or mesh_lib.make_mesh(*sizes)
        abstract_state = make_abstract_state(init, config, mesh)
        state = make_init_state(init, config, abstract_state)(jax.random.key(0))
        loss, batches = Classification(Task(), model).loss, mesh_lib.batch_sharding(mesh)
        step = make_train_step(loss, config, abstract_state, batches, accumulate=accumulate)
        for i in range(2):
            state, metrics = step(state, batch, jax.random.key(0), {"lr": schedule(i)})
        results[accumulate] = trees.flatten(jax.tree.map(np.array, state.params)), metrics
    (whole, expected), (parts, metrics) = results[1], results[4]
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    assert float(metrics["top1"]) == float(expected["top1"])


def test_non_finite_step_keeps_the_bits_of_the_average():
    mesh = mesh_lib.make_mesh(1, 1, devices=jax.devices()[:1])
    config = Optimizer(name="sgd", ema=0.5)
    abstract_state = make_abstract_state(toy_init, config, mesh)
    state = make_init_state(toy_init, config, abstract_state)(jax.random.key(0))
    step = make_train_step(toy_loss, config, abstract_state, mesh_lib.batch_sharding(mesh))
    before = np.array(state.ema["w"])
    state, _ = step(state, {"x": X, "y": np.full_like(Y, np.nan)}, jax.random.key(0), {"lr": RATE})
    assert np.array(state.ema["w"]).tobytes() == before.tobytes()
