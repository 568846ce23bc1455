"""Several crops of an evaluated image, and how a model scores them."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.config.schema import Config, Data, Task
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import ConfigError
from vit_jax.tasks.classification import Classification


def crops_of(pixels: np.ndarray, num: int, size=(2, 2), fraction=0.5) -> np.ndarray:
    """Crops of an image that needs no resizing, back in 0 to 255."""
    data = Data(eval_crop="center", crop_fraction=fraction)
    found = EvalRecipe.from_data(data, size, num)(pixels)
    return np.round((found[..., 0] + 1) * 127.5).astype(int)


def test_eval_recipe_of_five_crops_takes_centre_and_corners():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    found = crops_of(np.repeat(image[..., None], 3, axis=-1), 5)
    expected = [image[1:3, 1:3], image[:2, :2], image[:2, 2:], image[2:, :2], image[2:, 2:]]
    np.testing.assert_array_equal(found, expected)


def test_eval_recipe_of_ten_crops_adds_those_of_the_mirrored_image():
    image = np.random.default_rng(0).integers(0, 255, (4, 4), dtype=np.uint8)
    pixels = np.repeat(image[..., None], 3, axis=-1)
    found = crops_of(pixels, 10)
    np.testing.assert_array_equal(found[:5], crops_of(pixels, 5))
    np.testing.assert_array_equal(found[5:], crops_of(pixels[:, ::-1], 5))


def test_eval_recipe_begins_with_the_centre_crop(photos):
    data = Data(eval_crop="center")
    one = EvalRecipe.from_data(data, (32, 32))(photos[0])
    ten = EvalRecipe.from_data(data, (32, 32), 10)
    assert ten.shape == ten(photos[0]).shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(ten(photos[0])[0], one)


class Mean:
    """A model whose logits are what an image's channels say."""

    @staticmethod
    def apply(variables, images):
        return jnp.mean(images, axis=(1, 2)) * variables["params"]


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_probabilities_of_crops_are_averaged(loss):
    images = np.random.default_rng(1).normal(size=(6, 5, 2, 2, 3)).astype(np.float32)
    label = np.arange(6) % 3
    found = Classification(Task(loss=loss), Mean).score(3.0, {"image": images, "label": label})
    logits = 3.0 * images.mean((2, 3)).astype(np.float64)
    if loss == "softmax":
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = -np.log(p.mean(1)[np.arange(6), label])
    else:
        p = 1 / (1 + np.exp(-logits))
        hot = np.eye(3)[label]
        expected = -(hot * np.log(p.mean(1)) + (1 - hot) * np.log(1 - p.mean(1))).sum(-1)
    np.testing.assert_allclose(found["probability"], p.mean(1).max(-1), rtol=1e-5)
    np.testing.assert_array_equal(found["best"][:, 0], p.mean(1).argmax(-1))
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)


def test_check_rejects_several_crops_without_center():
    from vit_jax import config

    wrong = Config(steps=1, data=Data(eval_crops=5))
    with pytest.raises(ConfigError, match=r"data\.eval_crops is 5; that needs"):
        config.check(config.to_config_dict({"": wrong}))


def test_loss_of_crops_with_certain_sigmoids_is_finite():
    images = np.ones((2, 5, 2, 2, 3), np.float32)
    label = np.array([0, 1])
    task = Classification(Task(loss="sigmoid"), Mean)
    found = task.score(40.0, {"image": images, "label": label})
    np.testing.assert_allclose(found["loss"], 80.0, rtol=1e-5)  # Two classes too many.
    np.testing.assert_allclose(found["probability"], 1.0)
