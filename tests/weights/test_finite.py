"""Errors for outputs that are not finite: they name the array of the weights, or the output."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import CheckpointError, NonFiniteError
from vit_jax.weights.finite import require_finite, require_finite_params


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("library", [np, jnp])
def test_require_finite_params_names_the_array(number, library):
    params = {"cls": library.zeros(2), "head": {"bias": library.array([1, number, 0])}}
    with pytest.raises(CheckpointError, match=r"^x\.npz: head/bias contains values"):
        require_finite_params(params, "x.npz")
    require_finite_params({"cls": library.ones(2)}, "x.npz")


def test_require_finite_names_the_weights_before_the_output():
    good, bad = {"head": {"bias": np.zeros(2)}}, {"head": {"bias": np.array([0, np.nan])}}
    outputs = {"label": np.array([1]), "loss": np.array([1, np.inf], np.float32)}
    with pytest.raises(CheckpointError, match=r"^x\.npz: head/bias contains"):
        require_finite(outputs, bad, "x.npz")
    with pytest.raises(CheckpointError, match=r"^x\.npz: the output loss is not finite, although"):
        require_finite(outputs, good, "x.npz")
    with pytest.raises(NonFiniteError, match=r"^evaluation: the output loss is not finite"):
        require_finite(outputs, good, None)
    require_finite({"label": np.array([1])}, bad, "x.npz")
