"""Losses and masked means against their definitions in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import ConfigError
from vit_jax.tasks import losses
from vit_jax.tasks.losses import masked_mean, softmax_cross_entropy

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
TARGETS = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]])


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def negative_log_likelihood(logits, labels):
    shares = softmax(np.asarray(logits, np.float64))
    return -np.log(shares[np.arange(len(labels)), labels])


def binary_cross_entropies(targets):
    p = 1 / (1 + np.exp(-LOGITS))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


def test_softmax_cross_entropy_is_minus_the_log_probability_of_the_label():
    logits = np.array([[1.0, 2.0, 3.0], [0.0, -4.0, 0.5]], np.float32)
    labels = np.array([0, 2])
    expected = negative_log_likelihood(logits, labels)
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), expected, 1e-6)


def test_softmax_cross_entropy_of_equal_logits_is_the_log_of_the_number_of_classes():
    values = softmax_cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 9]))
    np.testing.assert_allclose(values, [np.log(10)] * 2, rtol=1e-6)


def test_softmax_cross_entropy_sums_bfloat16_logits_in_float32():
    # 1000 classes: a bfloat16 sum stops at 256 terms of size one.
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1000)), jnp.bfloat16)
    labels = np.array([3, 500])
    values = softmax_cross_entropy(logits, labels)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, negative_log_likelihood(logits, labels), rtol=1e-5)


def test_softmax_cross_entropy_of_huge_logits_is_finite():
    logits = jnp.array([[1e4, 0.0], [1e4, 0.0]])
    np.testing.assert_allclose(softmax_cross_entropy(logits, jnp.array([0, 1])), [0, 1e4])


def test_softmax_cross_entropy_accepts_shares_of_classes():
    expected = -(TARGETS * np.log(softmax(LOGITS))).sum(-1)
    actual = softmax_cross_entropy(jnp.float32(LOGITS), jnp.float32(TARGETS))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_masked_mean_ignores_examples_of_mask_zero():
    values, mask = jnp.array([1.0, 2.0, 300.0]), jnp.array([1.0, 1.0, 0.0])
    assert masked_mean(values, mask) == 1.5
    assert masked_mean(values, jnp.ones(3)) == 101


def test_masked_mean_of_no_examples_is_zero():
    assert masked_mean(jnp.ones(3), jnp.zeros(3)) == 0


def test_smooth_labels_spreads_the_smoothing_over_all_classes():
    smooth = losses.smooth_labels(jnp.array([2, 0]), 4, 0.2)
    np.testing.assert_allclose(smooth, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], 1e-6)
    mixed = losses.smooth_labels(jnp.float32(TARGETS), 3, 0.3)
    np.testing.assert_allclose(mixed, TARGETS * 0.7 + 0.1, rtol=1e-6)
    np.testing.assert_array_equal(losses.smooth_labels(jnp.array([1]), 3), [[0, 1, 0]])


def test_sigmoid_cross_entropy_is_the_sum_over_the_classes():
    actual = losses.sigmoid_cross_entropy(jnp.float32(LOGITS), jnp.float32(TARGETS))
    np.testing.assert_allclose(actual, binary_cross_entropies(TARGETS).sum(-1), rtol=1e-5)
    actual = losses.sigmoid_cross_entropy(jnp.float32(LOGITS), jnp.array([2, 1]))
    np.testing.assert_allclose(actual, binary_cross_entropies(np.eye(3)[[2, 1]]).sum(-1), rtol=1e-5)


def test_binary_cross_entropy_has_target_one_for_every_class_of_a_mixed_image():
    actual = losses.binary_cross_entropy(jnp.float32(LOGITS), jnp.float32(TARGETS))
    np.testing.assert_allclose(actual, binary_cross_entropies(TARGETS > 0).mean(-1), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_focal_loss_weighs_cross_entropy_by_a_power_of_one_minus_the_probability(gamma):
    p = softmax(LOGITS)
    actual = losses.focal_loss(jnp.float32(LOGITS), jnp.float32(TARGETS), gamma)
    expected = -(TARGETS * (1 - p) ** gamma * np.log(p)).sum(-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    actual = losses.focal_loss(jnp.float32(LOGITS), jnp.array([2, 1]), gamma)
    p_label = p[[0, 1], [2, 1]]
    np.testing.assert_allclose(actual, -((1 - p_label) ** gamma) * np.log(p_label), rtol=1e-5)


def test_focal_loss_has_gamma_two_in_the_table_and_softmax_probabilities():
    # With p of 0.9, it is 100 times smaller than the cross-entropy (section 3.2 of the paper).
    logits, label = np.log([[0.9, 0.06, 0.04]]), np.array([0])
    loss = losses.find_loss("focal")
    np.testing.assert_allclose(loss.function(logits, label), -np.log(0.9) / 100, rtol=1e-5)
    np.testing.assert_allclose(loss.activation.probability(logits, label), 0.9, rtol=1e-6)


def test_focal_loss_and_its_gradient_are_finite_for_huge_logits():
    logits = jnp.array([[1e4, 0.0], [0.0, 1e4]])
    values = losses.focal_loss(logits, jnp.array([0, 0]))
    np.testing.assert_allclose(values, [0, 1e4])
    gradient = jax.grad(lambda x: losses.focal_loss(x, jnp.array([0, 0])).sum())(logits)
    np.testing.assert_allclose(gradient, [[0, 0], [-1, 1]], atol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_are_float32_values_of_examples_for_labels_and_targets(name):
    for labels in (jnp.array([2, 0]), jnp.float32(TARGETS)):
        values = losses.find_loss(name).function(jnp.bfloat16(LOGITS), labels)
        assert (values.shape, values.dtype) == ((2,), jnp.float32)


def test_find_loss_wraps_a_function_in_a_softmax_loss(monkeypatch):
    monkeypatch.setenv("VIT_JAX_TRUSTED", "vit_jax")
    loss = losses.find_loss("vit_jax.tasks.losses:sigmoid_cross_entropy")
    assert loss == losses.Loss(losses.sigmoid_cross_entropy, losses.SOFTMAX)


def test_find_loss_rejects_an_unknown_name_with_the_allowed_ones():
    words = r"config.task.loss is 'sofmax'; expected one of softmax, .* Did you mean softmax\?$"
    with pytest.raises(ConfigError, match=words):
        losses.find_loss("sofmax")


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_is_the_divergence_from_the_teacher(temperature):
    teacher = LOGITS[::-1] * 0.5
    p, q = softmax(teacher / temperature), softmax(LOGITS / temperature)
    actual = losses.soft_distillation(jnp.float32(LOGITS), jnp.float32(teacher), temperature)
    np.testing.assert_allclose(actual, temperature**2 * (p * np.log(p / q)).sum(-1), rtol=1e-4)
    itself = losses.soft_distillation(jnp.float32(LOGITS), jnp.float32(LOGITS), temperature)
    np.testing.assert_allclose(itself, 0, atol=1e-6)


def test_hard_distillation_is_the_cross_entropy_of_the_best_class_of_the_teacher():
    teacher = jnp.array([[0.0, 0.1, 5.0], [1.0, 0.0, 0.0]])
    for temperature in (1.0, 3.0):
        actual = losses.hard_distillation(jnp.float32(LOGITS), teacher, temperature)
        np.testing.assert_allclose(actual, -np.log(softmax(LOGITS)[[0, 1], [2, 0]]), rtol=1e-5)
