"""Adafactor, LAMB, factors by name, freezing and schedules against hand-written numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import trees
from vit_jax.training.optimizer import factor_of, layer_of, make_optimizer, make_schedule

STEPS = 100
RATE = 0.03
RANDOM = np.random.default_rng(0)
START = {
    "kernel": RANDOM.normal(size=(32, 40)),  # Factored: both sides are at least 32.
    "narrow": RANDOM.normal(size=(3, 40)),
    "bias": RANDOM.normal(size=5),
}
GRADIENTS = [{n: RANDOM.normal(size=p.shape) for n, p in START.items()} for _ in range(STEPS)]


def constant(rate=RATE):
    return make_schedule(rate, total_steps=STEPS, schedule="constant")


def trace(tx, params=START, grads=GRADIENTS):
    """Parameters after each step, and the last optimiser state."""
    params = jax.tree.map(jnp.float32, params)
    state, seen = tx.init(params), []
    update = jax.jit(tx.update)
    for each in grads:
        updates, state = update(jax.tree.map(jnp.float32, each), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(jax.tree.map(np.array, params))
    return seen, state


def assert_same_trace(actual, expected, rtol=2e-4, atol=2e-5):
    expected = list(expected)
    assert len(actual) == len(expected) == STEPS
    for step, (a, e) in enumerate(zip(actual, expected)):
        for name in e:
            message = f"{name} after step {step}"
            np.testing.assert_allclose(a[name], e[name], rtol, atol, err_msg=message)


def adafactor_by_hand(*, decay, beta1=0.9, beta2=0.999):
    """Section 3.4 of arXiv:2106.04560: rows and columns of squares, and a first moment."""
    params = {name: p.copy() for name, p in START.items()}
    row, col = np.zeros(32), np.zeros(40)
    squares = {name: np.zeros_like(START[name]) for name in ("narrow", "bias")}
    m = {name: np.zeros_like(p) for name, p in params.items()}
    for t, grads in enumerate(GRADIENTS, start=1):
        keep = min(beta2, 1 - t**-0.8)
        row = keep * row + (1 - keep) * (grads["kernel"] ** 2).mean(1)
        col = keep * col + (1 - keep) * (grads["kernel"] ** 2).mean(0)
        scale = {"kernel": np.sqrt(np.outer(row, col) / row.mean())}
        for name in squares:
            squares[name] = keep * squares[name] + (1 - keep) * grads[name] ** 2
            scale[name] = np.sqrt(squares[name])
        for name, g in grads.items():
            m[name] = beta1 * m[name] + (1 - beta1) * g / scale[name]  # No correction of bias.
            params[name] = params[name] - RATE * (m[name] + decay * params[name])
        yield dict(params)


@pytest.mark.parametrize("beta2", [0.999, 0.95])
def test_adafactor_follows_its_equations(beta2):
    tx = make_optimizer(
        constant(), name="adafactor", weight_decay=0.03, beta2=beta2, clip_norm=None
    )
    assert_same_trace(trace(tx)[0], adafactor_by_hand(decay=0.03, beta2=beta2))


def test_adafactors_second_moments_of_a_matrix_are_a_row_and_a_column():
    _, state = trace(make_optimizer(constant(), name="adafactor"), grads=GRADIENTS[:1])
    shapes = {name: leaf.shape for name, leaf in trees.flatten(state).items()}
    of_kernel = [shapes[name] for name in shapes if name.endswith("v_row/kernel")]
    of_kernel += [shapes[name] for name in shapes if name.endswith("v_col/kernel")]
    assert sorted(of_kernel) == [(32,), (40,)]


def lamb_by_hand(*, decay, undecayed):
    """Algorithm 2 of arXiv:1904.00962; what does not decay moves as in Adam."""
    params = {name: p.copy() for name, p in START.items()}
    m = {name: np.zeros_like(p) for name, p in params.items()}
    v = {name: np.zeros_like(p) for name, p in params.items()}
    for t, grads in enumerate(GRADIENTS, start=1):
        for name, g in grads.items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            u = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-6)
            if name != undecayed:
                u = u + decay * params[name]
                u = u * np.linalg.norm(params[name]) / np.linalg.norm(u)
            params[name] = params[name] - RATE * u
        yield dict(params)


def test_lamb_follows_its_equations():
    options = {"weight_decay": 0.02, "decay_factors": (("bias", 0.0),), "clip_norm": None}
    tx = make_optimizer(constant(), name="lamb", **options)
    assert_same_trace(trace(tx)[0], lamb_by_hand(decay=0.02, undecayed="bias"))


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lamb"])
def test_a_bfloat16_moment_is_half_the_memory_and_nearly_the_same_path(name):
    exact, state = trace(make_optimizer(constant(1e-3), name=name))
    rounded, small = trace(make_optimizer(constant(1e-3), name=name, moment_dtype="bfloat16"))
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(small)}
    assert "bfloat16" in dtypes
    assert "bfloat16" not in {str(leaf.dtype) for leaf in jax.tree.leaves(state)}
    for each in START:
        moved = np.linalg.norm(exact[-1][each] - START[each])
        assert np.linalg.norm(exact[-1][each] - rounded[-1][each]) < 0.02 * moved


def test_the_first_pattern_that_is_found_gives_the_factor():
    factors = ((r"^head/", 100.0), (r"kernel$", 1.0), (r"", 0.0))
    names = ("head/kernel", "head/bias", "Dense_0/kernel", "Dense_0/bias")
    assert [factor_of(name, factors) for name in names] == [100.0, 100.0, 1.0, 0.0]
    assert factor_of("anything", ()) == 1.0


def test_decay_factors_decide_how_much_each_parameter_shrinks():
    zeros = jax.tree.map(np.zeros_like, START)
    factors = (("kernel", 100.0), ("bias", 0.0))
    tx = make_optimizer(constant(), weight_decay=0.03, decay_factors=factors)
    after = trace(tx, grads=[zeros])[0][0]
    np.testing.assert_allclose(after["kernel"], START["kernel"] * (1 - RATE * 3.0), rtol=1e-5)
    np.testing.assert_allclose(after["narrow"], START["narrow"] * (1 - RATE * 0.03), rtol=1e-5)
    np.testing.assert_allclose(after["bias"], START["bias"], rtol=1e-6)


def test_lr_factors_scale_the_step_decay_included():
    options = {"name": "sgd", "weight_decay": 0.5, "clip_norm": None}
    plain = trace(make_optimizer(constant(), **options), grads=GRADIENTS[:1])[0][0]
    tx = make_optimizer(constant(), lr_factors=(("kernel", 0.1),), **options)
    scaled = trace(tx, grads=GRADIENTS[:1])[0][0]
    for name, factor in (("kernel", 0.1), ("narrow", 1.0), ("bias", 1.0)):
        step = factor * (plain[name] - START[name])
        np.testing.assert_allclose(scaled[name] - START[name], step, rtol=1e-3, atol=1e-6)


def test_what_is_frozen_keeps_its_bits_and_has_no_optimiser_state():
    tx = make_optimizer(constant(), weight_decay=0.1, lr_factors=(("kernel|narrow", 0.0),))
    seen, state = trace(tx, grads=GRADIENTS[:3])
    for name in ("kernel", "narrow"):
        assert (seen[-1][name] == START[name].astype(np.float32)).all()
    assert not (seen[-1]["bias"] == START["bias"].astype(np.float32)).any()
    assert not [name for name in trees.flatten(state) if "kernel" in name or "narrow" in name]


def test_gradients_of_what_is_frozen_do_not_count_in_the_norm():
    grads = {"kernel": np.full((2, 2), 1e6), "bias": np.array([0.3, 0.4])}
    start = jax.tree.map(np.zeros_like, grads)
    tx = make_optimizer(constant(1.0), name="sgd", clip_norm=1.0, lr_factors=(("kernel", 0.0),))
    after = trace(tx, start, [grads])[0][0]
    np.testing.assert_allclose(after["bias"], [-0.3, -0.4], rtol=1e-6)


def test_a_layer_learns_slower_than_the_one_above_it():
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
    params = trees.unflatten({name: np.zeros(2) for name in names})
    grads = trees.unflatten({name: np.ones(2) for name in names})
    tx = make_optimizer(constant(1.0), name="sgd", layer_decay=0.5, clip_norm=None)
    after = trees.flatten(trace(tx, params, [grads])[0][0])
    for name, layer in names.items():
        np.testing.assert_allclose(after[name], -(0.5 ** (3 - layer)), rtol=1e-6)


def rates(**options):
    schedule = make_schedule(0.8, total_steps=1000, **options)
    return np.array([schedule(t) for t in range(1001)])


def test_rsqrt_follows_its_formula_with_warm_up_and_cooldown():
    t = np.arange(1001)
    expected = 0.8 / np.sqrt(1 + np.maximum(t - 100, 0) / 50)
    expected *= np.minimum(t / 100, 1) * np.clip((1000 - t) / 200, 0, 1)
    actual = rates(schedule="rsqrt", warmup_steps=100, timescale=50, cooldown_steps=200)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_a_staircase_falls_by_ten_at_its_shares_of_the_run():
    actual = rates(schedule="stair", warmup_steps=100, stair_at=(0.4, 0.6, 0.8))
    expected = {0: 0, 50: 0.4, 100: 0.8, 399: 0.8, 400: 0.08, 600: 0.008, 799: 0.008, 800: 8e-4}
    for step, rate in expected.items():
        np.testing.assert_allclose(actual[step], rate, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_last_rate_may_be_above_zero(schedule):
    actual = rates(schedule=schedule, end_lr=0.2)
    np.testing.assert_allclose(actual[[0, 500, 1000]], [0.8, 0.5, 0.2], rtol=1e-5)
