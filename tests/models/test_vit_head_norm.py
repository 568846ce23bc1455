"""The standardised input of the head, and a head that does not start at zero."""

import jax
import numpy as np
import pytest

from tests.support.tiny import forward, some_images, some_params, tiny
from vit_jax.errors import ConfigError
from vit_jax.models.registry import make_init


def test_logits_are_those_of_features_divided_by_their_deviation():
    model, images = tiny(head_norm=True), some_images(3, 8, 12, 3)
    params = some_params(model)
    params["head_norm"]["var"] = np.abs(params["head_norm"]["var"]) + 0.1
    y = np.float64(forward(tiny(num_classes=0), params, images))
    mean, var = (np.float64(params["head_norm"][name]) for name in ("mean", "var"))
    kernel, bias = (np.float64(params["head"][name]) for name in ("kernel", "bias"))
    expected = (y - mean) / np.sqrt(var + 1e-6) @ kernel + bias
    np.testing.assert_allclose(forward(model, params, images), expected, rtol=1e-4, atol=1e-4)


def test_statistics_start_at_mean_zero_and_variance_one():
    params = jax.jit(make_init(tiny(head_norm=True)))(jax.random.key(0))
    np.testing.assert_array_equal(params["head_norm"]["mean"], np.zeros(32))
    np.testing.assert_array_equal(params["head_norm"]["var"], np.ones(32))


def test_features_have_no_statistics():
    assert "head_norm" not in jax.eval_shape(
        make_init(tiny(head_norm=True, num_classes=0)), jax.random.key(0)
    )


def test_the_head_starts_normal_with_the_deviation_of_the_config():
    params = jax.jit(make_init(tiny(head_std=0.01, num_classes=1000)))(jax.random.key(0))
    kernel = np.asarray(params["head"]["kernel"])
    assert kernel.std() == pytest.approx(0.01, rel=0.03)
    assert not params["head"]["bias"].any()


def test_a_distilled_model_cannot_standardise_its_features():
    with pytest.raises(ConfigError, match=r"^model\.head_norm is True; model\.distill_token"):
        tiny(head_norm=True, distill_token=True)
