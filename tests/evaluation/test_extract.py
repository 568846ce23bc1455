"""Features in another dtype."""

import numpy as np
import pytest

from vit_jax.errors import ConfigError
from vit_jax.evaluation.extract import _as_dtype


def test_features_that_exceed_float16_are_rejected():
    features = np.array([[1.5, -65504.0]], np.float32)
    np.testing.assert_array_equal(_as_dtype(features, np.dtype("float16")), features)
    with pytest.raises(ConfigError, match=r"features reach 7e\+04, but float16 has at most 65504"):
        _as_dtype(np.array([[1.0, -70_000.0]], np.float32), np.dtype("float16"))
