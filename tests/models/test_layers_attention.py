"""Attention weights against numpy."""

import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from vit_jax.models.layers import attention_weights


def test_attention_weights_of_bfloat16_queries_have_the_precision_of_float32():
    random = np.random.default_rng(0)
    q, k = (jnp.asarray(random.normal(0, 3, (2, 5, 3, 8)), jnp.bfloat16) for _ in range(2))
    bias = random.normal(size=(2, 3, 5, 5))
    logits = np.einsum("bthd,bshd->bhts", np.float64(q), np.float64(k)) / np.sqrt(8)
    for added in (None, bias):
        expected = softmax(logits if added is None else logits + added, axis=-1)
        weights = attention_weights(q, k, added if added is None else jnp.asarray(added))
        assert weights.dtype == jnp.float32
        np.testing.assert_allclose(weights, expected, atol=1e-6)
