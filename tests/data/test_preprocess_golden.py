"""Resizing against what TensorFlow 2.21 answered, kept in tests/golden/resize.npz by:

import numpy as np, tensorflow as tf

# Greys that no bicubic overshoot takes beyond [0, 255], where Pillow would clip.
image = np.random.default_rng(0).integers(70, 186, (6, 9, 3)).astype(np.uint8)
golden = {"image": image}
for size in [(3, 4), (4, 14), (9, 5)]:
    for method, antialias in [
        *(("bilinear", False), ("bilinear", True)),
        *(("bicubic", False), ("bicubic", True), ("area", False)),
    ]:
        name = f"{method} {antialias} {size[0]} {size[1]}"
        golden[name] = tf.image.resize(image, size, method, antialias=antialias)
np.savez_compressed("resize.npz", **golden)

# big_vision's resize_small(32) and central_crop(28), and the JPEG decoder.
for height, width in [(45, 60), (60, 45), (40, 40), (33, 97)]:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    factor = np.float32(32) / np.float32(min(height, width))
    small = [int(tf.round(tf.cast(side, tf.float32) * factor)) for side in (height, width)]
    resized = tf.cast(tf.image.resize(image, small, "area"), tf.uint8)
    top, left = ((side - 28) // 2 for side in small)
    golden[f"{height} {width}"] = tf.image.crop_to_bounding_box(resized, top, left, 28, 28)
golden["jpeg"] = np.frombuffer(tf.io.encode_jpeg(photo, quality=90).numpy(), np.uint8)
for method in ["INTEGER_FAST", "INTEGER_ACCURATE"]:  # The first is the default.
    golden[method] = tf.io.decode_jpeg(golden["jpeg"].tobytes(), dct_method=method)
np.savez_compressed("big_vision.npz", **golden)
"""

import pathlib

import numpy as np
import pytest

from vit_jax.config.schema import Data
from vit_jax.data import decode
from vit_jax.data.preprocess import EvalRecipe, resize

FOLDER = pathlib.Path(__file__).parent.parent / "golden"
GOLDEN = dict(np.load(FOLDER / "resize.npz"))
BIG_VISION = dict(np.load(FOLDER / "big_vision.npz"))
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
@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_resize_tf_bicubic_equals_tensorflow(decoder, size):
    recipe = EvalRecipe.from_data(Data(resample="tf_bicubic", decoder=decoder), size)
    resized = (recipe(GOLDEN["image"]) + 1) * 127.5
    # An exact distance in place of one rounded to 1/1024 would differ by up to 0.06.
    np.testing.assert_allclose(resized, golden("bicubic", False, size), rtol=0, atol=1e-4)


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


@pytest.mark.parametrize("size", SIZES)
def test_resize_uint8_cuts_off_the_fractions_of_tensorflow(size):
    area = resize(GOLDEN["image"], size, "tf_area_uint8")
    np.testing.assert_array_equal(area, golden("area", False, size).astype(np.uint8))
    bilinear = resize(GOLDEN["image"], size, "tf_bilinear_uint8")
    # Sums in another order: a float32 just beside a whole value.
    fraction = golden("bilinear", False, size) - bilinear
    assert fraction.min() > -3.1e-5
    assert fraction.max() < 1 + 3.1e-5
    assert area.dtype == bilinear.dtype == np.uint8


@pytest.mark.parametrize("shape", [(45, 60), (60, 45), (40, 40), (33, 97)])
@pytest.mark.parametrize("side", [{"eval_side": 32}, {"crop_fraction": 28 / 32}])
def test_eval_recipe_equals_big_vision(shape, side):
    image = np.random.default_rng(shape[0]).integers(0, 256, (*shape, 3)).astype(np.uint8)
    data = Data(eval_crop="center", eval_resample="tf_area_uint8", **side)
    found = (EvalRecipe.from_data(data, (28, 28))(image) + 1) * 127.5
    np.testing.assert_allclose(found, BIG_VISION[f"{shape[0]} {shape[1]}"], atol=1e-4)


@pytest.mark.parametrize(
    ("decoder", "method"),
    [
        ("pillow", "INTEGER_ACCURATE"),
        ("simplejpeg", "INTEGER_ACCURATE"),
        ("simplejpeg_fast_dct", "INTEGER_FAST"),
    ],
)
def test_decode_equals_tensorflow_with_the_same_dct(decoder, method):
    file = decode.Encoded(BIG_VISION["jpeg"].tobytes(), "photo.jpg")
    np.testing.assert_array_equal(decode.decode(file, decoder), BIG_VISION[method])
    assert (BIG_VISION["INTEGER_FAST"] != BIG_VISION["INTEGER_ACCURATE"]).any()
