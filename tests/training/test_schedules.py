"""Learning-rate schedules against their formulas, and the hyperparameters of each step."""

import numpy as np
import pytest

from vit_jax.config.schema import Optimizer
from vit_jax.training.schedules import SCHEDULES, make_hyperparams, make_schedule


def rates(total_steps=1000, **fields):
    """Learning rates of steps 0 to total_steps."""
    schedule = make_schedule(Optimizer(lr=0.8, **fields), total_steps)
    return np.array([schedule(step) for step in range(total_steps + 1)])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_rises_from_zero_to_the_rate(schedule):
    actual = rates(100, schedule=schedule, warmup_steps=10)
    assert actual[0] == 0
    np.testing.assert_allclose(actual[[1, 5, 10]], [0.08, 0.4, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "warmup", "values"),
    [
        # A run of 100 steps uses the rates of steps 0 to 99.
        ("linear", 10, {11: 0.8 * 89 / 90, 55: 0.4, 99: 0.8 / 90, 100: 0}),
        ("linear", 0, {0: 0.8, 50: 0.4, 99: 0.008, 100: 0}),
        ("cosine", 0, {0: 0.8, 25: 0.4 * (1 + 2**-0.5), 50: 0.4, 100: 0}),
        ("cosine", 10, {55: 0.4, 99: 0.4 * (1 + np.cos(np.pi * 89 / 90)), 100: 0}),
        ("constant", 10, {11: 0.8, 55: 0.8, 99: 0.8, 100: 0.8}),
        ("constant", 0, {0: 0.8, 100: 0.8}),
    ],
)
def test_linear_and_cosine_decay_to_zero_at_the_end_of_the_run(schedule, warmup, values):
    actual = rates(100, schedule=schedule, warmup_steps=warmup)
    for step, expected in values.items():
        np.testing.assert_allclose(actual[step], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_can_take_the_whole_run(schedule):
    actual = rates(4, schedule=schedule, warmup_steps=4)
    np.testing.assert_allclose(actual[:4], [0, 0.2, 0.4, 0.6], rtol=1e-6)


def test_rsqrt_follows_its_formula_with_warm_up_and_cooldown():
    t = np.arange(1001)
    expected = 0.8 / np.sqrt(1 + np.maximum(t - 100, 0) / 50)
    expected *= np.minimum(t / 100, 1) * np.clip((1000 - t) / 200, 0, 1)
    actual = rates(schedule="rsqrt", warmup_steps=100, timescale=50, cooldown_steps=200)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_stair_divides_by_ten_at_its_fractions_of_the_run():
    actual = rates(schedule="stair", warmup_steps=100, stair_at=(0.4, 0.6, 0.8))
    expected = {0: 0, 50: 0.4, 100: 0.8, 399: 0.8, 400: 0.08, 600: 0.008, 799: 0.008, 800: 8e-4}
    for step, rate in expected.items():
        np.testing.assert_allclose(actual[step], rate, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_end_lr_is_the_last_rate(schedule):
    actual = rates(schedule=schedule, end_lr=0.2)
    np.testing.assert_allclose(actual[[0, 500, 1000]], [0.8, 0.5, 0.2], rtol=1e-5)


def halving(config, total_steps):
    return lambda t: config.lr * 0.5 ** (t / total_steps)


def test_schedule_of_the_user_follows_the_warm_up():
    actual = rates(100, schedule=f"{__name__}:halving", warmup_steps=10)
    np.testing.assert_allclose(actual[[5, 10, 60]], [0.4, 0.8, 0.8 * 0.5**0.5], rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_hyperparams_contain_the_rate_of_each_step(schedule):
    config = Optimizer(lr=0.1, schedule=schedule, warmup_steps=3, stair_at=(0.5,), cooldown_steps=4)
    hyperparams, expected = make_hyperparams(config, 20), make_schedule(config, 20)
    for step in range(20):
        assert set(hyperparams(step)) == {"lr"}
        # The cosine is inexact near its end.
        np.testing.assert_allclose(hyperparams(step)["lr"], expected(step), rtol=1e-5)
        assert hyperparams(step)["lr"].dtype == np.float32


def test_radius_of_sam_falls_with_the_rate():
    config = Optimizer(
        lr=0.4, end_lr=0.1, schedule="linear", sam_rho=0.6, sam_rho_min=0.2, warmup_steps=2
    )
    hyperparams = make_hyperparams(config, 12)
    for step in range(12):
        lr, rho = hyperparams(step)["lr"], hyperparams(step)["rho"]
        fraction = max(float(lr) - 0.1, 0) / 0.3  # arXiv:2203.08065, section 4.2.
        np.testing.assert_allclose(rho, 0.2 + 0.4 * fraction, rtol=1e-5)
    level = Optimizer(lr=0.4, end_lr=0.4, schedule="constant", sam_rho=0.6, sam_rho_min=0.2)
    assert float(make_hyperparams(level, 3)(2)["rho"]) == np.float32(0.6)
    constant = make_hyperparams(Optimizer(lr=0.4, sam_rho=0.6), 12)
    assert [float(constant(step)["rho"]) for step in (0, 11)] == [np.float32(0.6)] * 2


def test_weight_decay_and_decay_of_averages_follow_half_a_cosine_over_all_steps():
    """The cosine of DINO's code, which reaches its end value one step after the last."""
    config = Optimizer(weight_decay=0.04, end_weight_decay=0.4, ema=0.996, end_ema=1.0)
    hyperparams = make_hyperparams(config, 100)
    for step in (0, 1, 25, 50, 99):
        cosine = (1 + np.cos(np.pi * step / 100)) / 2
        values = hyperparams(step)
        assert set(values) == {"lr", "weight_decay", "ema_step"}
        np.testing.assert_allclose(values["weight_decay"], 0.4 - 0.36 * cosine, rtol=1e-6)
        np.testing.assert_allclose(values["ema_step"], 0.004 * cosine, rtol=1e-6)
        assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(hyperparams(0)["weight_decay"], 0.04, rtol=1e-6)


def test_constant_weight_decay_and_averages_are_no_hyperparameters():
    config = Optimizer(weight_decay=0.04, ema=0.996)
    assert set(make_hyperparams(config, 10)(0)) == {"lr"}
