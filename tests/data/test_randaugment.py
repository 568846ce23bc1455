"""RandAugment against TensorFlow, Pillow and numbers written out by hand.

tests/golden/randaugment.npz holds what the operations of big_vision's
pp/archive/autoaugment.py answered under TensorFlow 2.13 and TensorFlow Addons 0.23:

    import numpy as np, tensorflow as tf, autoaugment as ops

    y, x = np.mgrid[:18, :15]
    image = np.stack([12 * x + 40, 13 * y + 9, 5 * (x + y) + 9 * (x * y % 7)], -1).astype(np.uint8)
    calls = {"AutoContrast 10": (ops.autocontrast,), "Equalize 10": (ops.equalize,)}
    for m in (0, 15):
        calls[f"Color {m}"] = (ops.color, m / 10 * 1.8 + 0.1)
        calls[f"Contrast {m}"] = (ops.contrast, m / 10 * 1.8 + 0.1)
        calls[f"Sharpness {m}"] = (ops.sharpness, m / 10 * 1.8 + 0.1)
    for m in (10, -10):
        calls[f"Rotate {m}"] = (ops.rotate, m / 10 * 30, [128] * 3)
    calls["ShearX 10"] = (ops.shear_x, 0.3, [128] * 3)
    calls["ShearY -10"] = (ops.shear_y, -0.3, [128] * 3)
    calls["TranslateX 0.5"] = (ops.translate_x, 5.0, [128] * 3)
    calls["TranslateY -0.5"] = (ops.translate_y, -5.0, [128] * 3)
    outputs = [tf.function(f)(image, *arguments) for f, *arguments in calls.values()]
    np.savez_compressed("randaugment.npz", image=image, names=list(calls), outputs=outputs)
"""

import collections
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.data import randaugment
from vit_jax.data.randaugment import (
    INCREASING,
    PUBLISHED,
    IncreasingRandAugment,
    PublishedRandAugment,
)

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "randaugment.npz")
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def row(*greys) -> np.ndarray:
    """A one-line image whose channels are all the same."""
    return np.repeat(np.array([greys], np.uint8)[..., None], 3, -1)


def seed_of_sign(sign: int) -> int:
    """A seed whose generator first answers with that sign."""
    return next(s for s in range(99) if randaugment._sign(np.random.default_rng(s)) == sign)


def published(name: str, magnitude: float, image: np.ndarray, sign: int = 1) -> np.ndarray:
    return PUBLISHED[name](image, magnitude / 10, np.random.default_rng(seed_of_sign(sign)))


def increasing(name: str, magnitude: float, image: np.ndarray, sign: int = 1) -> np.ndarray:
    return np.asarray(INCREASING[name](Image.fromarray(image), magnitude / 10, sign))


def greys(image: np.ndarray) -> list[int]:
    return image[0, :, 0].tolist()


@pytest.mark.parametrize("call", range(len(GOLDEN["names"])), ids=list(GOLDEN["names"]))
def test_published_operations_equal_tensorflow(call):
    name, magnitude = GOLDEN["names"][call].split()
    magnitude, sign = abs(float(magnitude)), -1 if magnitude.startswith("-") else 1
    ours = published(name, magnitude, GOLDEN["image"], sign)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, GOLDEN["outputs"][call])


def test_published_warps_go_in_either_direction():
    both = {published("Rotate", 10, GOLDEN["image"], sign).tobytes() for sign in (1, -1)}
    assert len(both) == 2
    drawn = (PUBLISHED["Rotate"](GOLDEN["image"], 1.0, np.random.default_rng(s)) for s in range(99))
    counts = collections.Counter(image.tobytes() for image in drawn)
    assert set(counts) == both
    assert min(counts.values()) > 30


@pytest.mark.parametrize(
    ("magnitude", "expected"),
    [  # TensorFlow takes the thresholds 256, 384 and 512 modulo 256.
        (0, [255, 254, 128, 127, 1, 0]),
        (5, [0, 1, 127, 127, 1, 0]),
        (10, [255, 254, 128, 127, 1, 0]),
        (15, [0, 1, 127, 127, 1, 0]),
        (20, [255, 254, 128, 127, 1, 0]),
    ],
)
def test_published_solarize_wraps_its_threshold(magnitude, expected):
    image = row(0, 1, 127, 128, 254, 255)
    assert greys(published("Solarize", magnitude, image)) == expected


@pytest.mark.parametrize(
    ("magnitude", "expected"),
    [
        (0, [0, 0, 0, 128, 128]),  # 0 bits: TensorFlow shifts by 7 at most.
        (5, [0, 0, 64, 128, 192]),  # 2 bits.
        (10, [0, 0, 112, 128, 240]),  # 4 bits.
        (15, [0, 0, 124, 128, 252]),  # 6 bits.
        (20, [0, 1, 127, 128, 255]),  # 8 bits: untouched.
        (24, [0, 0, 0, 128, 128]),  # 9 bits: a shift by -1 is one by 255.
    ],
)
def test_published_posterize_keeps_more_bits_the_higher_the_magnitude(magnitude, expected):
    assert greys(published("Posterize", magnitude, row(0, 1, 127, 128, 255))) == expected


def test_published_point_operations_give_values_computed_by_hand():
    image = row(0, 10, 100, 127, 128, 200)
    assert greys(published("Invert", 3, image)) == [255, 245, 155, 128, 127, 55]
    assert greys(published("SolarizeAdd", 10, image)) == [110, 120, 210, 237, 128, 200]
    assert greys(published("SolarizeAdd", 15, image)) == [165, 175, 255, 255, 128, 200]
    assert greys(published("Brightness", 0, image)) == [0, 1, 10, 12, 12, 20]  # A tenth, cut off.
    assert greys(published("Brightness", 5, image)) == greys(image)  # A factor of 1.
    assert greys(published("Brightness", 10, image)) == [0, 19, 190, 241, 243, 255]  # 1.9.
    assert greys(published("AutoContrast", 0, row(50, 60, 100))) == [0, 51, 255]
    assert greys(published("AutoContrast", 0, row(7, 7, 7))) == [7, 7, 7]


def test_published_equalize_equals_pillow(photos):
    image = np.ascontiguousarray(photos[0][::8, ::8])
    theirs = np.asarray(ImageOps.equalize(Image.fromarray(image)))
    np.testing.assert_array_equal(published("Equalize", 10, image), theirs)


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
@pytest.mark.parametrize("magnitude", [0, 3, 9])
def test_published_enhancements_equal_pillow_up_to_rounding(photos, name, magnitude):
    image = np.ascontiguousarray(photos[0][::4, ::4])
    enhancer = getattr(ImageEnhance, name)(Image.fromarray(image))
    theirs = np.asarray(enhancer.enhance(magnitude / 10 * 1.8 + 0.1), np.int32)
    # The degenerate image may differ by one, and so may what is cut off after blending.
    assert np.abs(published(name, magnitude, image) - theirs).max() <= 2


def test_published_sharpness_keeps_borders_and_tiny_images():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    sharp = published("Sharpness", 10, image)
    inner = (slice(1, -1), slice(1, -1))
    assert (sharp[inner] != image[inner]).any()
    sharp[inner] = image[inner]
    np.testing.assert_array_equal(sharp, image)
    for thin in (image[:2], image[:, :1]):
        np.testing.assert_array_equal(published("Sharpness", 10, thin), thin)


def test_published_warps_sample_the_nearest_pixel_or_grey():
    image = row(10, 20, 30, 40, 50, 60)
    assert greys(published("TranslateX", 0.2, image, 1)) == [30, 40, 50, 60, 128, 128]  # 2 pixels.
    assert greys(published("TranslateX", 0.2, image, -1)) == [128, 128, 10, 20, 30, 40]
    assert greys(published("TranslateX", 0.25, image, 1)) == [40, 50, 60, 128, 128, 128]  # 2.5 -> 3
    tall = image.transpose(1, 0, 2)
    assert published("TranslateY", 0.2, tall)[:, 0, 0].tolist() == [30, 40, 50, 60, 128, 128]
    # Row y of ShearX at full magnitude starts at 0.3 y: 0, 0, 1, 1, 1, 2 (1.5 rounds away from 0).
    sheared = published("ShearX", 10, np.repeat(image, 6, 0))
    assert sheared[:, 0, 0].tolist() == [10, 10, 20, 20, 20, 30]
    np.testing.assert_array_equal(
        published("ShearY", 10, np.repeat(tall, 6, 1)), sheared.transpose(1, 0, 2)
    )


def test_published_distances_are_pixels_for_any_image_size():
    for side, left in ((32, 0), (100, 0), (101, 1), (110, 10)):
        wide = np.zeros((2, side, 3), np.uint8)
        assert (published("TranslateX", 10, wide)[0, :, 0] == 0).sum() == left
        tall = wide.transpose(1, 0, 2)
        assert (published("TranslateY", 10, tall)[:, 0, 0] == 0).sum() == left


def test_published_cutout_is_a_square_cut_at_the_border():
    image, random = np.zeros((160, 150, 3), np.uint8), np.random.default_rng(0)
    centres = collections.Counter()
    for _ in range(300):
        state = random.bit_generator.state
        y, x = random.integers(160), random.integers(150)
        random.bit_generator.state = state
        expected = image.copy()
        expected[max(0, y - 48) : y + 48, max(0, x - 48) : x + 48] = 128  # 1.2 * 40 each way.
        np.testing.assert_array_equal(PUBLISHED["Cutout"](image, 1.2, random), expected)
        centres[y // 80, x // 75] += 1
    assert min(centres.values()) > 50
    assert not image.any()  # Cutout works on a copy.


def test_published_magnitude_zero_is_not_the_identity():
    image = GOLDEN["image"]
    for name in ("AutoContrast", "Invert", "Posterize", "Solarize", "Color", "Brightness"):
        assert (published(name, 0, image) != image).any(), name
    for name in (*WARPS, "Cutout", "SolarizeAdd"):
        np.testing.assert_array_equal(published(name, 0, image), image)


def test_increasing_magnitude_zero_is_the_identity(photos):
    image = np.ascontiguousarray(photos[0][::8, ::8])
    for name in set(INCREASING) - {"AutoContrast", "Equalize", "Invert"}:
        for sign in (1, -1):
            np.testing.assert_array_equal(increasing(name, 0, image, sign), image, err_msg=name)


def test_increasing_severities_increase_with_the_magnitude(photos):
    image = np.ascontiguousarray(photos[0][::8, ::8])
    for name in set(INCREASING) - {"AutoContrast", "Equalize", "Invert"}:
        for sign in (1, -1):
            mild, middling, strong = (
                np.abs(increasing(name, magnitude, image, sign) - image.astype(float)).mean()
                for magnitude in (0, 4, 9)
            )
            assert mild < middling < strong, name


def test_increasing_operations_equal_pillow(photos):
    image = np.ascontiguousarray(photos[0][::8, ::8])
    picture, bicubic = Image.fromarray(image), Image.Resampling.BICUBIC

    def affine(*matrix):
        method = Image.Transform.AFFINE
        return picture.transform(picture.size, method, matrix, bicubic, fillcolor=(128,) * 3)

    expected = {  # At magnitude 5 and a negative sign.
        "AutoContrast": ImageOps.autocontrast(picture),
        "Equalize": ImageOps.equalize(picture),
        "Invert": ImageOps.invert(picture),
        "Rotate": picture.rotate(-15, bicubic, fillcolor=(128,) * 3),
        "Posterize": ImageOps.posterize(picture, 2),
        "Solarize": ImageOps.solarize(picture, 128),
        "Color": ImageEnhance.Color(picture).enhance(0.55),
        "Contrast": ImageEnhance.Contrast(picture).enhance(0.55),
        "Brightness": ImageEnhance.Brightness(picture).enhance(0.55),
        "Sharpness": ImageEnhance.Sharpness(picture).enhance(0.55),
        "ShearX": affine(1, -0.15, 0, 0, 1, 0),
        "ShearY": affine(1, 0, 0, -0.15, 1, 0),
        "TranslateX": affine(1, 0, -0.225 * 80, 0, 1, 0),
        "TranslateY": affine(1, 0, 0, 0, 1, -0.225 * 54),
    }
    assert picture.size == (80, 54)
    assert set(INCREASING) == {*expected, "SolarizeAdd"}
    for name, theirs in expected.items():
        np.testing.assert_array_equal(
            increasing(name, 5, image, -1), np.asarray(theirs), err_msg=name
        )
    assert greys(increasing("SolarizeAdd", 5, row(0, 100, 127, 128, 255))) == [
        55,
        155,
        182,
        128,
        255,
    ]


def test_increasing_posterize_keeps_four_to_one_bits():
    kept = [greys(increasing("Posterize", level, row(255)))[0] for level in (1, 3, 5, 9, 10)]
    assert kept == [0b11110000, 0b11100000, 0b11000000, 0b10000000, 0b10000000]


class Calls(dict):
    """A table of stand-ins that keep the arguments they are called with."""

    def __init__(self, names):
        self.calls = []
        super().__init__({name: self._stand_in(name) for name in names})

    def _stand_in(self, name):
        def operation(image, level, last):
            self.calls.append((name, level, last))
            return image

        return operation


@pytest.fixture
def calls(monkeypatch) -> Calls:
    recorded = Calls(f"operation {i}" for i in range(8))
    monkeypatch.setattr(randaugment, "PUBLISHED", recorded)
    monkeypatch.setattr(randaugment, "INCREASING", recorded)
    return recorded


@pytest.mark.parametrize(
    "augment", [PublishedRandAugment(2, 15), IncreasingRandAugment(2, 9, std=0.5, prob=1)]
)
def test_randaugment_draws_operations_uniformly(calls, augment):
    random = np.random.default_rng(0)
    for _ in range(2000):
        augment(row(1, 2, 3), random)
    counts = collections.Counter(name for name, *_ in calls.calls)
    assert counts.total() == 4000
    assert len(counts) == 8
    assert 430 < min(counts.values()) < max(counts.values()) < 570  # 500, deviation 21.


def test_published_magnitude_is_constant_and_not_clipped(calls):
    PublishedRandAugment(5, 15)(row(1), np.random.default_rng(0))
    assert {level for _, level, _ in calls.calls} == {1.5}


def test_increasing_magnitude_is_normal_and_clipped(calls):
    random = np.random.default_rng(0)
    IncreasingRandAugment(4000, 9, std=0.5, prob=1)(row(1), random)
    levels = np.array([level for _, level, _ in calls.calls])
    assert levels.max() == 1
    assert abs(np.median(levels) - 0.9) < 0.005
    inside = levels[levels < 0.9]  # A half normal: its mean square is the variance.
    assert abs(np.sqrt(((inside - 0.9) ** 2).mean()) - 0.05) < 0.003
    calls.calls.clear()
    IncreasingRandAugment(4000, 0.1, std=3, prob=1)(row(1), random)
    levels = np.array([level for _, level, _ in calls.calls])
    assert levels.min() == 0
    assert 0.4 < (levels == 0).mean() < 0.6


def test_increasing_operations_have_their_probability_and_both_signs(calls):
    random = np.random.default_rng(0)
    IncreasingRandAugment(4000, 9, std=0.5, prob=0.3)(row(1), random)
    assert abs(len(calls.calls) / 4000 - 0.3) < 0.03
    assert {sign for *_, sign in calls.calls} == {-1, 1}
    assert abs(np.mean([sign for *_, sign in calls.calls])) < 0.1
    image = row(1, 2, 3)
    assert IncreasingRandAugment(20, 9, std=0.5, prob=0)(image, random) is image
