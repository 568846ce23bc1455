"""Predictions, scores and features of weights whose numbers are not numbers."""

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.support.tiny import tiny
from vit_jax.errors import CheckpointError, ConfigError
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
    with pytest.raises(CheckpointError, match="the output pre_logits is not finite, although all"):
        vit_jax.extract_features(path, IMAGES)


def test_evaluate_finds_damaged_weights_before_it_opens_the_data(tmp_path):
    path = write_weights(tmp_path / "x.npz", "head/kernel", np.nan)
    with pytest.raises(CheckpointError, match="head/kernel contains values that are not finite"):
        vit_jax.evaluate(path, "val", overrides={"data.source": "folder", "data.dir": "nowhere"})


def test_predict_and_extract_features_accept_one_image_and_folders(tmp_path):
    path = write_weights(tmp_path / "x.npz", "head/bias", 0.5)
    pixels = [np.full((8, 8, 3), value, np.uint8) for value in (0, 90, 200)]
    (tmp_path / "images").mkdir()
    for name, image in zip("abc", pixels, strict=True):
        Image.fromarray(image).save(tmp_path / f"images/{name}.png")
    expected = [pytest.approx(found[0].probability) for found in vit_jax.predict(path, pixels)]
    for images, right in (
        (tmp_path / "images", expected),
        ([str(tmp_path / "images"), pixels[0]], expected + expected[:1]),
        (pixels[1], expected[1:2]),
        (Image.fromarray(pixels[1]), expected[1:2]),
    ):
        assert [found[0].probability for found in vit_jax.predict(path, images)] == right
    features = vit_jax.extract_features(path, str(tmp_path / "images/b.png"))["pre_logits"]
    assert features.shape[0] == 1


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_extract_features_names_the_numbers_of_its_layers(tmp_path, layer):
    path = write_weights(tmp_path / "x.npz", "head/bias", 0.5)
    with pytest.raises(ConfigError, match=f"layers has {layer}; expected a number from 1 to 1"):
        vit_jax.extract_features(path, IMAGES, layers=(layer,))
