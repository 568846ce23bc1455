"""Losses on prototypes: against numpy, and against results of lightly in tests/golden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.prototype_cases import GOLDEN, TEMPERATURES, case
from vit_jax.tasks import prototypes

ONES = np.ones(6, np.float32)


def softmax(x, axis=-1):
    x = np.exp(x - x.max(axis=axis, keepdims=True))
    return x / x.sum(axis=axis, keepdims=True)


def some(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def assert_equal_to_lightly(name, actual, tolerance=1e-6):
    expected = np.load(GOLDEN)[name]
    assert np.shape(actual) == expected.shape
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(np.array(actual) / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_local", [0, 8])
def test_class_loss_its_gradient_and_the_centre_are_those_of_lightly(num_local):
    inputs = case(num_local)
    student, teacher = inputs["student"], inputs["teacher"]  # B V K and B 2 K.
    centre, rows = inputs["centre"], np.ones(2 * len(teacher), np.float32)
    targets = prototypes.centred_softmax(teacher, centre, TEMPERATURES["teacher"])

    def mean_loss(student):
        return jnp.mean(prototypes.class_loss(student, targets, TEMPERATURES["student"]))

    loss, gradient = jax.value_and_grad(mean_loss)(student)
    assert_equal_to_lightly(f"class_loss-{num_local}", loss)
    assert_equal_to_lightly(f"class_gradient-{num_local}", gradient, 2e-6)
    flat = teacher.reshape(-1, teacher.shape[-1])
    assert_equal_to_lightly(
        f"centre-{num_local}", prototypes.update_centre(centre, flat, rows, 0.9)
    )


def test_patch_loss_its_gradient_and_the_centre_are_those_of_lightly():
    inputs = case(0)
    student, teacher = inputs["patch_student"], inputs["patch_teacher"]  # B 2 S K.
    weights, centre = inputs["patch_weights"], inputs["centre"]
    targets = prototypes.centred_softmax(teacher, centre, TEMPERATURES["teacher"])

    def mean_loss(student):
        losses = prototypes.patch_loss(student, targets, weights, TEMPERATURES["student"])
        return jnp.mean(losses)

    loss, gradient = jax.value_and_grad(mean_loss)(student)
    assert_equal_to_lightly("patch_loss", loss)
    assert_equal_to_lightly("patch_gradient", gradient, 2e-6)
    flat, rows = teacher.reshape(-1, teacher.shape[-1]), (weights > 0).reshape(-1)
    new = prototypes.update_centre(centre, flat, rows.astype(np.float32), 0.9)
    assert_equal_to_lightly("patch_centre", new)


def test_koleo_and_its_gradient_are_those_of_lightly():
    features = case(0)["features"]
    loss, gradient = jax.value_and_grad(prototypes.koleo)(
        features, np.ones(len(features), np.float32)
    )
    assert_equal_to_lightly("koleo", loss)
    assert_equal_to_lightly("koleo_gradient", gradient, 1e-5)


def test_sinkhorn_is_that_of_lightly():
    logits = case(0)["teacher"].reshape(-1, case(0)["teacher"].shape[-1])
    rows = np.ones(len(logits), np.float32)
    assert_equal_to_lightly("sinkhorn", prototypes.sinkhorn(logits, rows, 0.5))


def test_class_loss_is_the_mean_of_18_cross_entropies_of_different_views():
    logits, targets = some(1, 10, 5), softmax(some(1, 2, 5, seed=1))
    pairs = [(i, v) for i in range(2) for v in range(10) if i != v]
    log_p = np.log(softmax(logits / 0.1))
    expected = np.mean([-(targets[0, i] * log_p[0, v]).sum() for i, v in pairs])
    assert len(pairs) == 18
    loss = prototypes.class_loss(logits, targets, 0.1)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)


def test_uniform_outputs_have_the_loss_log_k():
    logits, targets = jnp.zeros((2, 4, 8)), jnp.full((2, 2, 8), 1 / 8)
    np.testing.assert_allclose(prototypes.class_loss(logits, targets, 0.1), np.log([8, 8]), 1e-6)


def test_sinkhorn_of_many_iterations_uses_all_prototypes_equally(monkeypatch):
    monkeypatch.setattr(prototypes, "SINKHORN_ITERATIONS", 200)
    assigned = np.array(prototypes.sinkhorn(some(6, 3), ONES, 0.5))
    np.testing.assert_allclose(assigned.sum(axis=1), np.ones(6), rtol=1e-5)
    np.testing.assert_allclose(assigned.sum(axis=0), np.full(3, 2), rtol=1e-4)


def test_sinkhorn_of_large_logits_is_finite():
    assigned = prototypes.sinkhorn(100 * some(6, 3), ONES, 0.04)
    assert np.isfinite(assigned).all()
    np.testing.assert_allclose(assigned.sum(axis=1), np.ones(6), rtol=1e-5)


def test_rows_with_weight_0_count_nowhere():
    logits, weights = some(6, 4), np.float32([1, 1, 0, 1, 0, 1])
    kept = logits[weights > 0]
    ones = np.ones(4, np.float32)
    assigned = np.array(prototypes.sinkhorn(logits, weights, 0.5))[weights > 0]
    np.testing.assert_allclose(assigned, prototypes.sinkhorn(kept, ones, 0.5), rtol=1e-5)
    centre = some(4, seed=3)
    np.testing.assert_allclose(
        prototypes.update_centre(centre, logits, weights, 0.9),
        0.9 * centre + 0.1 * kept.mean(0),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        prototypes.koleo(logits, weights), prototypes.koleo(kept, ones), rtol=1e-5
    )
    targets = softmax(logits)
    actual = prototypes.usage(targets, weights)
    expected = prototypes.usage(targets[weights > 0], ones)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5)


def test_a_batch_without_a_row_that_counts_changes_nothing():
    logits, none = some(3, 4), np.zeros(3, np.float32)
    centre = some(4, seed=1)
    np.testing.assert_array_equal(prototypes.update_centre(centre, logits, none, 0.9), centre)
    assert np.isfinite(prototypes.sinkhorn(logits, none, 0.04)).all()
    assert prototypes.koleo(logits, none) == 0


def test_koleo_of_equal_features_is_finite_with_a_finite_gradient():
    features = np.ones((4, 9), np.float32)
    weights = np.ones(4, np.float32)
    loss, gradient = jax.value_and_grad(prototypes.koleo)(features, weights)
    np.testing.assert_allclose(loss, -np.log(3e-8 + 1e-8), rtol=1e-4)
    assert np.isfinite(gradient).all()


def test_usage_of_uniform_targets_of_one_prototype_and_of_different_ones():
    ones = np.ones(4, np.float32)
    uniform = prototypes.usage(np.full((4, 4), 0.25, np.float32), ones)
    np.testing.assert_allclose(
        [uniform["teacher_entropy"], uniform["mean_entropy"]], [1, 1], rtol=1e-6
    )
    one = prototypes.usage(np.eye(4, dtype=np.float32)[[2, 2, 2, 2]], ones)
    assert [float(one[name]) for name in ("teacher_entropy", "mean_entropy")] == [0, 0]
    assert one["prototypes_used"] == 1
    different = prototypes.usage(np.eye(4, dtype=np.float32)[[0, 1, 2, 3]], ones)
    assert float(different["teacher_entropy"]) == 0
    np.testing.assert_allclose(different["mean_entropy"], 1, rtol=1e-6)
    assert different["prototypes_used"] == 4
