"""Checks of user-defined augmentation steps: shape, dtype, input and random numbers."""

import numpy as np
import pytest

from vit_jax.data.step_checks import check_user_steps
from vit_jax.data.view import box_view
from vit_jax.errors import ConfigError

HERE = __name__
STEPS = {
    "right": lambda image, random: image if random.random() < 0.5 else 255 - image,
    "scaled": lambda image, random: image / 255.0,
    "padded": lambda image, random: np.pad(image, ((2, 2), (2, 2), (0, 0))),
    "grey": lambda image, random: image.mean(-1, keepdims=True).astype(np.uint8),
    "cut_off": lambda image, random: image if random.random() < 0.5 else image[1:],
    "nothing": lambda image, random: None,
    "in_place": lambda image, random: np.subtract(255, image, out=image),
    "global_noise": lambda image, random: image ^ np.uint8(np.random.randint(256)),
    "raises": lambda image, random: image @ image,
}


def step(name):
    return STEPS[name]


class Floats:
    pixels = "float32"

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, image, random):
        return image * self.factor


class Moved(Floats):
    pixels = "any"


class Doubles(Floats):
    def __call__(self, image, random):
        return image.astype(float)


class HalfCrop:
    def view(self, old, new, random):
        return box_view((0, 0, *old), (new[0] // 2, new[1]))


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("VIT_JAX_TRUSTED", "tests")


RIGHT = ["step('right')", "Floats(0.5)", "step('right')|flip|HERE:Moved(1)|HERE:Floats(2.0)"]


@pytest.mark.parametrize("text", RIGHT)
def test_right_steps_are_accepted(text):
    check_user_steps(f"resize|{HERE}:{text.replace('HERE', HERE)}", (6, 4))


UINT8 = "for uint8 (6, 4, 3); it must return a numpy array of the same shape and dtype."
WRONG = {
    "step('scaled')": f"returned float64 (6, 4, 3) {UINT8}",
    "step('padded')": f"returned uint8 (10, 8, 3) {UINT8}",
    "step('grey')": f"returned uint8 (6, 4, 1) {UINT8}",
    "step('cut_off')": f"returned uint8 (5, 4, 3) {UINT8}",
    "step('nothing')": f"returned NoneType {UINT8}",
    "step('in_place')": "changes its input",
    "step('global_noise')": "returned two results for the same image",
    "step('raises')": "raised ValueError: matmul",
    "Doubles(1)": "returned float64 (6, 4, 3) for float32 (6, 4, 3)",
    "Moved(0.5)": f"returned float64 (6, 4, 3) {UINT8}",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_step_is_named_with_what_it_returned(name):
    with pytest.raises(ConfigError) as caught:
        check_user_steps(f"resize|flip|{HERE}:{name}", (6, 4))
    assert str(caught.value).startswith(f"config.data.augment: {HERE}:{name}")
    assert WRONG[name] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_crop_must_have_the_size_of_the_model():
    with pytest.raises(ConfigError, match=r"HalfCrop returned a view of 3x4 pixels; expected 6x4"):
        check_user_steps(f"{HERE}:HalfCrop|flip", (6, 4))
