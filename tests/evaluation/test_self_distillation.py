"""Measures of collapse on a split: against numpy, for any number of rows."""

import numpy as np

from tests.support.tiny import some_images
from vit_jax.evaluation import self_distillation
from vit_jax.evaluation.self_distillation import target_usage


def test_usage_of_targets_is_that_of_numpy_with_the_mean_as_the_centre(monkeypatch):
    monkeypatch.setattr(self_distillation, "ROWS", 4)
    inputs, kernel = 5 * some_images(10, 3), some_images(3, 6, seed=1)
    scale = np.arange(1, 7, dtype=np.float32)
    logits = inputs @ (kernel / np.linalg.norm(kernel, axis=0) * scale)
    logits = np.float64(logits - logits.mean(0))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = target_usage({"kernel": kernel, "scale": scale}, inputs, None)
    mean = p.mean(0)
    expected = {
        "teacher_entropy": -(p * np.log(p)).sum(1).mean() / np.log(6),
        "mean_entropy": -(mean * np.log(mean)).sum() / np.log(6),
        "prototypes_used": len(set(p.argmax(1))),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)


def test_equal_images_have_uniform_targets_after_centring():
    found = target_usage({"kernel": some_images(3, 6)}, np.ones((5, 3), np.float32), None)
    np.testing.assert_allclose([found["teacher_entropy"], found["mean_entropy"]], [1, 1], rtol=1e-5)
