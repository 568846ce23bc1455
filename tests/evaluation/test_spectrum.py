"""Effective rank and deviation of features whose spectrum is known."""

import numpy as np
import pytest

from vit_jax.evaluation import spectrum

RANDOM = np.random.default_rng(0)


def with_spectrum(values, num=50):
    """Features with the given singular values."""
    left, _ = np.linalg.qr(RANDOM.normal(size=(num, len(values))))
    right, _ = np.linalg.qr(RANDOM.normal(size=(len(values), len(values))))
    return left * values @ right


def test_rankme_of_equal_singular_values_is_their_number():
    assert spectrum.rankme(np.eye(7)) == pytest.approx(7, rel=1e-5)
    assert spectrum.rankme(with_spectrum(np.full(12, 3.0))) == pytest.approx(12, rel=1e-5)


def test_rankme_of_multiples_of_one_vector_is_one():
    features = np.outer(RANDOM.normal(size=30), RANDOM.normal(size=8)).astype(np.float32)
    assert spectrum.rankme(features) == pytest.approx(1, abs=1e-3)
    assert spectrum.rankme(np.ones((5, 4), np.float16)) == pytest.approx(1, abs=1e-3)
    assert spectrum.rankme(np.zeros((5, 4))) == pytest.approx(1, abs=1e-3)


def test_rankme_is_the_exponential_of_the_entropy_of_the_singular_values():
    values = np.array([6.0, 3.0, 1.0])
    # p = 0.6, 0.3, 0.1: entropy 0.8979 nats.
    assert spectrum.rankme(with_spectrum(values)) == pytest.approx(np.exp(0.89794572), rel=1e-5)
    assert spectrum.rankme(100 * with_spectrum(values)) == pytest.approx(2.4546, rel=1e-4)


def test_deviation_of_isotropic_features_is_near_one_for_any_length():
    features = RANDOM.normal(size=(4000, 32))
    assert spectrum.deviation(features) == pytest.approx(1, abs=0.02)
    lengths = RANDOM.uniform(0.1, 10, size=(4000, 1))
    assert spectrum.deviation(features * lengths) == pytest.approx(spectrum.deviation(features))


def test_deviation_of_equal_directions_is_zero():
    assert spectrum.deviation(np.outer([1.0, 2.0, 5.0], [3.0, 4.0])) == pytest.approx(0)
    assert spectrum.deviation(np.zeros((3, 2))) == 0


def test_deviation_equals_its_definition_on_two_rows():
    # Directions (1, 0) and (0, 1): deviation 1/2 in both dimensions, times sqrt(2).
    assert spectrum.deviation(np.array([[2.0, 0], [0, 3.0]])) == pytest.approx(0.5 * np.sqrt(2))


def test_rows_beyond_the_limit_are_evenly_spaced(monkeypatch):
    monkeypatch.setattr(spectrum, "MAX_ROWS", 4)
    features = np.zeros((9, 4))
    features[[0, 2, 5, 8], range(4)] = 1  # Others are equal to no row of the estimate.
    features[[1, 3, 4, 6, 7]] = 50
    assert spectrum.rankme(features) == pytest.approx(4, rel=1e-5)
