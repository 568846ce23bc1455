"""Resizing against what TensorFlow 2.21 answered, kept in tests/golden/resize.npz by:

import numpy as np, tensorflow as tf

# Greys that no bicubic overshoot takes beyond [0, 255], where Pillow would clip.
image = np.random.default_rng(0).integers(70, 186, (6, 9, 3)).astype(np.uint8)
golden = {"image": image}
for size in [(3, 4), (4, 14), (9, 5)]:
    for method, antialias in [("bilinear", False), ("bilinear", True), ("bicubic", True)]:
        name = f"{method} {antialias} {size[0]} {size[1]}"
        golden[name] = tf.image.resize(image, size, method, antialias=antialias)
np.savez_compressed("resize.npz", **golden)
"""

import pathlib

import numpy as np
import pytest

from vit_jax.data.preprocess import resize

GOLDEN = dict(np.load(pathlib.Path(__file__).parent.parent / "golden" / "resize.npz"))
SIZES = [(3, 4), (4, 14), (9, 5)]


def golden(method: str, antialias: bool, size: tuple[int, int]) -> np.ndarray:
    return GOLDEN[f"{method} {antialias} {size[0]} {size[1]}"]


@pytest.mark.parametrize("size", SIZES)
def test_resize_tf_bilinear_equals_tensorflow(size):
    resized = resize(GOLDEN["image"], size, "tf_bilinear")
    assert resized.dtype == np.float32
    # float32 of values to 255 has steps of 1.5e-5; TensorFlow adds in another order.
    np.testing.assert_allclose(resized, golden("bilinear", False, size), rtol=0, atol=3.1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("ours", "theirs"), [("antialias", "bilinear"), ("bicubic", "bicubic")])
def test_resize_with_pillow_equals_tensorflow_with_antialiasing(ours, theirs, size):
    resized = resize(GOLDEN["image"], size, ours)
    # Pillow rounds to whole values on each axis: by up to 0.5, and 0.5 carried by the weights of
    # the second axis, whose absolute values add up to 1, or 1.25 for bicubic.
    bound = 1.0 if ours == "antialias" else 1.125
    np.testing.assert_allclose(resized, golden(theirs, True, size), rtol=0, atol=bound)


@pytest.mark.parametrize("size", SIZES)
def test_golden_files_distinguish_the_filters(size):
    image = GOLDEN["image"]
    for ours, theirs in (("tf_bilinear", True), ("antialias", False)):
        assert np.abs(resize(image, size, ours) - golden("bilinear", theirs, size)).max() > 10
    assert np.abs(resize(image, size, "bicubic") - golden("bilinear", True, size)).max() > 5
