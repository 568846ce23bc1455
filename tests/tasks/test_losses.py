"""Cross-entropy and masked means against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.tasks import losses
from vit_jax.tasks.losses import masked_mean, softmax_cross_entropy


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


LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
TARGETS = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]])


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def yes_or_no(targets):
    p = 1 / (1 + np.exp(-LOGITS))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


def test_smoothing_spreads_its_share_over_all_classes():
    smooth = losses.targets_of(jnp.array([2, 0]), 4, 0.2)
    np.testing.assert_allclose(smooth, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], 1e-6)
    mixed = losses.targets_of(jnp.float32(TARGETS), 3, 0.3)
    np.testing.assert_allclose(mixed, TARGETS * 0.7 + 0.1, rtol=1e-6)
    np.testing.assert_array_equal(losses.targets_of(jnp.array([1]), 3), [[0, 1, 0]])


def test_cross_entropy_takes_shares_of_classes_too():
    expected = -(TARGETS * np.log(softmax(LOGITS))).sum(-1)
    actual = losses.softmax_cross_entropy(jnp.float32(LOGITS), jnp.float32(TARGETS))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_the_sigmoid_loss_asks_about_every_class_and_adds():
    actual = losses.sigmoid_cross_entropy(jnp.float32(LOGITS), jnp.float32(TARGETS))
    np.testing.assert_allclose(actual, yes_or_no(TARGETS).sum(-1), rtol=1e-5)
    actual = losses.sigmoid_cross_entropy(jnp.float32(LOGITS), jnp.array([2, 1]))
    np.testing.assert_allclose(actual, yes_or_no(np.eye(3)[[2, 1]]).sum(-1), rtol=1e-5)


def test_the_binary_loss_counts_a_class_that_is_mixed_in_whole():
    actual = losses.binary_cross_entropy(jnp.float32(LOGITS), jnp.float32(TARGETS))
    np.testing.assert_allclose(actual, yes_or_no(TARGETS > 0).mean(-1), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_is_the_divergence_from_the_teacher(temperature):
    teacher = LOGITS[::-1] * 0.5
    p, q = softmax(teacher / temperature), softmax(LOGITS / temperature)
    actual = losses.soft_distillation(jnp.float32(LOGITS), jnp.float32(teacher), temperature)
    np.testing.assert_allclose(actual, temperature**2 * (p * np.log(p / q)).sum(-1), rtol=1e-4)
    itself = losses.soft_distillation(jnp.float32(LOGITS), jnp.float32(LOGITS), temperature)
    np.testing.assert_allclose(itself, 0, atol=1e-6)


def test_hard_distillation_takes_the_teachers_best_class_for_the_label():
    teacher = jnp.array([[0.0, 0.1, 5.0], [1.0, 0.0, 0.0]])
    actual = losses.hard_distillation(jnp.float32(LOGITS), teacher)
    np.testing.assert_allclose(actual, -np.log(softmax(LOGITS)[[0, 1], [2, 0]]), rtol=1e-5)
