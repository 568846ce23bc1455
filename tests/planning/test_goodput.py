"""Tests of `goodput`: formulas against simulated failures and against other optima."""

import math

import numpy as np
import pytest
from scipy import optimize, special

from vit_jax.planning.goodput import (
    Failures,
    daly_interval,
    expected_goodput,
    plan_goodput,
    young_interval,
)

HOUR = 3600.0


def simulated_goodput(interval, checkpoint, restart, mtbf, num_segments=20_000) -> tuple:
    """Returns mean and standard error of the goodput of a run whose failures are drawn."""
    random = np.random.default_rng(0)
    times = np.empty(num_segments)
    for i in range(num_segments):
        time, work = 0.0, interval + checkpoint
        while (failure := random.exponential(mtbf)) < work:
            time += failure
            work = restart + interval + checkpoint
        times[i] = time + work
    mean, error = times.mean(), times.std() / math.sqrt(num_segments)
    return interval / mean, interval / mean * error / mean


@pytest.mark.parametrize(
    ("interval", "checkpoint", "restart", "mtbf"),
    [(600, 20, 90, 2 * HOUR), (300, 60, 0, 600), (5, 0.5, 7, 120), (3600, 100, 600, 1800)],
)
def test_expected_goodput_agrees_with_simulated_failures(interval, checkpoint, restart, mtbf):
    found = expected_goodput(interval, checkpoint, restart, mtbf)
    simulated, error = simulated_goodput(interval, checkpoint, restart, mtbf)
    assert simulated == pytest.approx(found, abs=4 * error)


@pytest.mark.parametrize("checkpoint", [0.01, 1, 30, 200, 600, 1000])
def test_daly_interval_is_close_to_the_best_and_no_worse_than_that_of_young(checkpoint):
    mtbf, restart = 600.0, 50.0

    def goodput(interval: float) -> float:
        return expected_goodput(interval, checkpoint, restart, mtbf)

    found = optimize.minimize_scalar(
        lambda interval: -goodput(interval), bounds=(1e-3, 10 * mtbf), method="bounded"
    )
    exact = mtbf * (1 + special.lambertw(-math.exp(-1 - checkpoint / mtbf)).real)
    assert found.x == pytest.approx(exact, rel=1e-3)
    daly = daly_interval(checkpoint, mtbf)
    assert daly == pytest.approx(exact, rel=0.06)
    assert goodput(daly) >= 0.998 * goodput(exact)
    assert goodput(daly) >= goodput(young_interval(checkpoint, mtbf))


def test_young_interval_is_the_best_to_first_order():
    for ratio in (1e-4, 1e-6):
        exact = 1 + special.lambertw(-math.exp(-1 - ratio)).real
        assert young_interval(ratio, 1.0) == pytest.approx(exact, rel=math.sqrt(ratio))
    assert young_interval(8, 100) == 40


def test_daly_interval_is_the_mtbf_if_a_checkpoint_takes_twice_as_long():
    assert daly_interval(1200, 600) == daly_interval(5000, 600) == 600


def test_without_failures_only_checkpoints_cost_time():
    assert expected_goodput(90, 10, 1000, 1e12) == pytest.approx(0.9)


def test_goodput_is_0_if_failures_come_before_any_checkpoint():
    assert expected_goodput(1e6, 1, 1, 1) == 0
    plan = plan_goodput(
        Failures(1.0), num_bytes=1, num_devices=1, step_seconds=9, steps=9**9, checkpoint_every=9**8
    )
    assert plan["config"] == {"checkpoint_every": 9**8, "goodput": 0, "hours": None}


def test_plan_goodput_computes_the_costs_of_a_checkpoint_from_its_bytes():
    costs = {"num_bytes": 4 * 10**9, "num_devices": 8, "step_seconds": 0.5, "steps": 10_000}
    plan = plan_goodput(Failures(80 * HOUR, True, disk_gb_s=2.0), checkpoint_every=400, **costs)
    assert plan["mtbf_seconds"] == 10 * HOUR
    assert (plan["checkpoint_seconds"], plan["restart_seconds"]) == (2, 62)
    goodput = expected_goodput(200, 2, 62, 10 * HOUR)
    hours = 10_000 * 0.5 / 3600 / goodput
    assert plan["config"] == {"checkpoint_every": 400, "goodput": goodput, "hours": hours}
    assert plan["young"]["checkpoint_every"] == round(math.sqrt(2 * 2 * 36_000) / 0.5)
    assert plan["daly"]["checkpoint_every"] == round(daly_interval(2, 36_000) / 0.5)
    given = plan_goodput(Failures(HOUR, False, 7.0, 8.0), checkpoint_every=400, **costs)
    assert (given["checkpoint_seconds"], given["restart_seconds"]) == (7, 8)


@pytest.mark.parametrize(("mtbf", "expected"), [(1e-3, 1), (1e12, 100)])
def test_plan_goodput_has_intervals_of_at_least_a_step_and_at_most_the_run(mtbf, expected):
    costs = {"num_bytes": 10**9, "num_devices": 1, "step_seconds": 5.0, "steps": 100}
    plan = plan_goodput(Failures(mtbf), checkpoint_every=1000, **costs)
    assert plan["daly"]["checkpoint_every"] == plan["young"]["checkpoint_every"] == expected
    assert plan["config"]["checkpoint_every"] == 100
