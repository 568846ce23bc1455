"""Schedules at their corners, and update rules against hand-written numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.training.optimizer import make_optimizer, make_schedule

STEPS = 100
START = {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]]), "bias": np.array([0.1, -0.2])}


def gradients():
    """Norms of about 0.3 to 5: some are clipped to 1, some are not."""
    random = np.random.default_rng(0)
    sizes = np.geomspace(0.3, 5, STEPS)
    drawn = [{name: random.normal(size=p.shape) for name, p in START.items()} for _ in range(STEPS)]
    norms = [np.sqrt(sum((g**2).sum() for g in grads.values())) for grads in drawn]
    return [
        {name: g * size / norm for name, g in grads.items()}
        for grads, size, norm in zip(drawn, sizes, norms)
    ]


def trace(tx, grads):
    """Parameters after each step of the optimiser under test."""
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), START)
    state, seen = tx.init(params), []
    update = jax.jit(tx.update)
    for each in grads:
        updates, state = update(jax.tree.map(jnp.float32, each), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


def clipped(grads, norm):
    if norm is None:
        return grads
    length = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {name: g * min(1, norm / length) for name, g in grads.items()}


def adamw_by_hand(grads, rates, *, decay, beta1, beta2, clip):
    params = {name: p.copy() for name, p in START.items()}
    m = {name: np.zeros_like(p) for name, p in START.items()}
    v = {name: np.zeros_like(p) for name, p in START.items()}
    for t, (each, rate) in enumerate(zip(grads, rates), start=1):
        for name, g in clipped(each, clip).items():
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            direction = m[name] / (1 - beta1**t) / (np.sqrt(v[name] / (1 - beta2**t)) + 1e-8)
            params[name] = params[name] - rate * direction - rate * decay * params[name]
        yield dict(params)


def sgd_by_hand(grads, rates, *, decay, momentum, clip):
    params = {name: p.copy() for name, p in START.items()}
    velocity = {name: np.zeros_like(p) for name, p in START.items()}
    for each, rate in zip(grads, rates):
        for name, g in clipped(each, clip).items():
            velocity[name] = momentum * velocity[name] + g
            params[name] = params[name] - rate * velocity[name] - rate * decay * params[name]
        yield dict(params)


def cosine_rates(lr, warmup):
    """Linear from 0 at step 0, then half a cosine to 0 at step STEPS."""
    t = np.arange(STEPS)
    return np.where(
        t < warmup,
        lr * t / max(warmup, 1),
        lr * (1 + np.cos(np.pi * (t - warmup) / (STEPS - warmup))) / 2,
    )


def assert_same_trace(actual, expected):
    expected = list(expected)
    assert len(actual) == len(expected) == STEPS
    for step, (a, e) in enumerate(zip(actual, expected)):
        for name in START:
            np.testing.assert_allclose(
                a[name], e[name], rtol=1e-5, atol=1e-6, err_msg=f"{name} after step {step}"
            )


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize(("decay", "warmup"), [(0.3, 4), (0.0, 0)])
def test_adamw_follows_its_equations(decay, warmup, clip):
    schedule = make_schedule(0.05, total_steps=STEPS, warmup_steps=warmup)
    tx = make_optimizer(schedule, weight_decay=decay, beta1=0.8, beta2=0.99, clip_norm=clip)
    expected = adamw_by_hand(
        gradients(), cosine_rates(0.05, warmup), decay=decay, beta1=0.8, beta2=0.99, clip=clip
    )
    assert_same_trace(trace(tx, gradients()), expected)


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("decay", [0.3, 0.0])
def test_sgd_follows_its_equations(decay, clip):
    schedule = make_schedule(0.05, total_steps=STEPS, warmup_steps=4)
    tx = make_optimizer(schedule, name="sgd", weight_decay=decay, momentum=0.8, clip_norm=clip)
    expected = sgd_by_hand(gradients(), cosine_rates(0.05, 4), decay=decay, momentum=0.8, clip=clip)
    assert_same_trace(trace(tx, gradients()), expected)


def test_the_defaults_are_the_papers_betas_momentum_and_clipping():
    rates = np.full(STEPS, 0.01)
    schedule = make_schedule(0.01, total_steps=STEPS, schedule="constant")
    expected = adamw_by_hand(gradients(), rates, decay=0, beta1=0.9, beta2=0.999, clip=1)
    assert_same_trace(trace(make_optimizer(schedule), gradients()), expected)
    expected = sgd_by_hand(gradients(), rates, decay=0, momentum=0.9, clip=1)
    assert_same_trace(trace(make_optimizer(schedule, name="sgd"), gradients()), expected)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_without_gradients_all_parameters_shrink_by_rate_times_decay(name):
    zeros = jax.tree.map(np.zeros_like, START)
    schedule = make_schedule(0.1, total_steps=2, schedule="constant")
    after = trace(make_optimizer(schedule, name=name, weight_decay=0.3), [zeros])[0]
    for each in START:  # Biases too.
        np.testing.assert_allclose(after[each], START[each] * (1 - 0.1 * 0.3), rtol=1e-6)


def test_adams_first_step_is_the_rate_whatever_the_gradients_size():
    grads = jax.tree.map(lambda p: 1e-3 * np.sign(p), START)
    schedule = make_schedule(0.1, total_steps=2, schedule="constant")
    after = trace(make_optimizer(schedule), [grads])[0]
    for each in START:
        np.testing.assert_allclose(START[each] - after[each], 0.1 * np.sign(START[each]), 1e-4)


def test_clipping_looks_at_all_parameters_together():
    grads = {"kernel": np.full((2, 2), 1.5), "bias": np.array([4.0, 0.0])}  # 3 and 4: norm 5.
    schedule = make_schedule(1.0, total_steps=2, schedule="constant")
    after = trace(make_optimizer(schedule, name="sgd", clip_norm=1.0), [grads])[0]
    for each in START:
        np.testing.assert_allclose(START[each] - after[each], grads[each] / 5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_rises_from_zero_and_ends_at_the_rate(schedule):
    rate = make_schedule(0.8, total_steps=100, schedule=schedule, warmup_steps=10)
    assert rate(0) == 0
    np.testing.assert_allclose(rate(1), 0.08, rtol=1e-6)
    np.testing.assert_allclose(rate(5), 0.4, rtol=1e-6)
    np.testing.assert_allclose(rate(10), 0.8, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "warmup", "values"),
    [
        # The updates of a run of 100 steps take their rates at 0 to 99; at 100 it is over.
        ("linear", 10, {11: 0.8 * 89 / 90, 55: 0.4, 99: 0.8 / 90, 100: 0}),
        ("linear", 0, {0: 0.8, 50: 0.4, 99: 0.008, 100: 0}),
        ("cosine", 0, {0: 0.8, 25: 0.4 * (1 + 2**-0.5), 50: 0.4, 100: 0}),
        ("cosine", 10, {55: 0.4, 99: 0.4 * (1 + np.cos(np.pi * 89 / 90)), 100: 0}),
        ("constant", 10, {11: 0.8, 55: 0.8, 99: 0.8, 100: 0.8}),
        ("constant", 0, {0: 0.8, 100: 0.8}),
    ],
)
def test_rates_decay_to_zero_at_the_end_of_the_run(schedule, warmup, values):
    rate = make_schedule(0.8, total_steps=100, schedule=schedule, warmup_steps=warmup)
    for step, expected in values.items():
        np.testing.assert_allclose(rate(step), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_run_may_be_all_warm_up(schedule):
    rate = make_schedule(0.8, total_steps=4, schedule=schedule, warmup_steps=4)
    np.testing.assert_allclose([rate(t) for t in range(4)], [0, 0.2, 0.4, 0.6], rtol=1e-6)
