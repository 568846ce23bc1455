"""Tests of `advice`: the largest batch that fits, and changes that make a config fit."""

from tests.support.scenarios import make_scenario
from vit_jax.planning.advice import advise, largest_batch


def test_largest_batch_fits_and_the_next_size_does_not():
    scenario = make_scenario(memory=3e6)
    batch = largest_batch(scenario)
    assert batch % 8 == 0
    assert scenario.replace(batch_size=batch).fits()
    assert not scenario.replace(batch_size=batch + 8).fits()
    assert largest_batch(make_scenario(memory=1000.0)) is None


def test_advise_returns_the_first_sufficient_change():
    peak = make_scenario().memory().peak
    changes, changed = advise(make_scenario(memory=0.8 * peak))
    assert changes == ["model.dtype=bfloat16"]
    assert changed.fits()
    changes, changed = advise(make_scenario(memory=0.3 * peak))
    assert changes[0] == "model.dtype=bfloat16"
    assert any(change.startswith("model.remat") for change in changes)
    assert changed.fits()
    changes, changed = advise(make_scenario(memory=1000.0))
    assert not changed.fits()
