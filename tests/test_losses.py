"""Cross-entropy and masked means against their definitions."""

import jax.numpy as jnp
import numpy as np

from vit_jax.losses import masked_mean, softmax_cross_entropy


def nats(logits, labels):
    """-log of the label's share, in float64."""
    logits = np.asarray(logits, np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -np.log(shares[np.arange(len(labels)), labels])


def test_cross_entropy_is_minus_the_log_of_the_labels_share():
    logits = np.array([[1.0, 2.0, 3.0], [0.0, -4.0, 0.5]], np.float32)
    labels = np.array([0, 2])
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), nats(logits, labels), 1e-6)


def test_equal_logits_cost_the_log_of_the_number_of_classes():
    losses = softmax_cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 9]))
    np.testing.assert_allclose(losses, [np.log(10)] * 2, rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    # 1000 classes: a bfloat16 sum stops at 256 terms of size one.
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1000)), jnp.bfloat16)
    labels = np.array([3, 500])
    losses = softmax_cross_entropy(logits, labels)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, nats(logits, labels), rtol=1e-5)


def test_huge_logits_give_finite_losses():
    logits = jnp.array([[1e4, 0.0], [1e4, 0.0]])
    np.testing.assert_allclose(softmax_cross_entropy(logits, jnp.array([0, 1])), [0, 1e4])


def test_a_masked_mean_forgets_the_examples_of_mask_zero():
    values, mask = jnp.array([1.0, 2.0, 300.0]), jnp.array([1.0, 1.0, 0.0])
    assert masked_mean(values, mask) == 1.5
    assert masked_mean(values, jnp.ones(3)) == 101


def test_the_masked_mean_of_nothing_is_zero():
    assert masked_mean(jnp.ones(3), jnp.zeros(3)) == 0
