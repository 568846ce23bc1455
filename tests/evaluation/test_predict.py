"""Predictions, scores and features of weights whose numbers are not numbers."""

import numpy as np
import pytest

import vit_jax
from tests.support.tiny import tiny
from vit_jax.errors import CheckpointError
from vit_jax.models.registry import param_shapes

IMAGES = [np.full((8, 12, 3), 200, np.uint8)]
SIZE = {"image_size": 8, "num_layers": 1}


def write_weights(path, name, number):
    random = np.random.default_rng(0)
    arrays = {
        key: random.normal(0, 0.3, shape).astype(np.float32)
        for key, shape in param_shapes(tiny(**SIZE)).items()
    }
    arrays[name].flat[-1] = number
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("head/kernel", np.nan),
        ("head/bias", -np.inf),  # Probabilities would be finite.
        ("Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel", np.inf),
    ],
)
def test_predict_names_the_array_that_is_not_finite(tmp_path, name, number):
    path = write_weights(tmp_path / "x.npz", name, number)
    with pytest.raises(CheckpointError, match=rf"x\.npz: {name} contains values that are not fin"):
        vit_jax.predict(path, IMAGES)


def test_extract_features_rejects_what_overflows(tmp_path):
    path = write_weights(tmp_path / "x.npz", "Transformer/encoder_norm/scale", 3e38)
    arrays = dict(np.load(path))
    arrays["Transformer/encoder_norm/scale"][:] = 3e38
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match="the output pre_logits is not finite, though all"):
        vit_jax.extract_features(path, IMAGES)


def test_evaluate_finds_damaged_weights_before_it_opens_the_data(tmp_path):
    path = write_weights(tmp_path / "x.npz", "head/kernel", np.nan)
    with pytest.raises(CheckpointError, match="head/kernel contains values that are not finite"):
        vit_jax.evaluate(path, "val", overrides={"data.source": "folder", "data.dir": "nowhere"})
