"""Features of a source for the protocols on frozen features."""

import numpy as np
import pytest

from vit_jax.evaluation import frozen


@pytest.mark.parametrize(("largest", "dtype"), [(65504, np.float16), (70_000, np.float32)])
def test_large_features_are_halved_unless_they_overflow(monkeypatch, largest, dtype):
    features = np.array([[1, largest]], np.float32)
    batch = {"features": features, "label": np.array([0]), "index": np.array([0])}
    monkeypatch.setattr(frozen, "scored_batches", lambda *args, **options: iter([batch]))
    monkeypatch.setattr(frozen, "HALF_FROM", 0)
    features = frozen.make_feature_function(None, None, None)([None])["features"]
    assert features.dtype == dtype
    np.testing.assert_array_equal(features, batch["features"])
