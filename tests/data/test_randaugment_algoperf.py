"""RandAugment of AlgoPerf at magnitude 10, each operation against numpy or Pillow.

The forms are written from a description of the ImageNet workloads of
mlcommons/algorithmic-efficiency.
"""

import collections

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.data import augment, randaugment
from vit_jax.data.randaugment import ALGOPERF, AlgoPerfRandAugment

SIDE = 224
NAMES = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"),
    "SolarizeAdd",
)
Y, X = np.mgrid[:SIDE, :SIDE].astype(np.float32)
MIDDLE = (SIDE - 1) / 2


@pytest.fixture(scope="module")
def image(photos) -> np.ndarray:
    return np.ascontiguousarray(photos[0][100 : 100 + SIDE, 200 : 200 + SIDE])


def apply(name: str, image: np.ndarray, seed: int = 0) -> np.ndarray:
    return ALGOPERF[name](image, 1.0, np.random.default_rng(seed))


def blended(grey, image: np.ndarray) -> np.ndarray:
    """Extrapolates by 1.9, clips, and cuts off fractions, in float32."""
    grey = np.float32(grey)
    return np.clip(grey + np.float32(1.9) * (np.float32(image) - grey), 0, 255).astype(np.uint8)


def sampled(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Takes the nearest pixel at x, y; grey 128 outside."""
    x, y = (np.sign(v) * np.floor(np.abs(v) + 0.5) for v in (x, y))  # Halves away from zero.
    inside = (x >= 0) & (x < SIDE) & (y >= 0) & (y < SIDE)
    taken = image[np.clip(y, 0, SIDE - 1).astype(int), np.clip(x, 0, SIDE - 1).astype(int)]
    return np.where(inside[..., None], taken, 128).astype(np.uint8)


def test_operations_and_their_order_are_those_of_the_workload():
    assert tuple(ALGOPERF) == NAMES
    assert augment.parse("algoperf_crop|randaug_algoperf(2,10)").uint8_steps == (
        AlgoPerfRandAugment(2, 10),
    )


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("Equalize", lambda image: np.asarray(ImageOps.equalize(Image.fromarray(image)))),
        ("Posterize", lambda image: image & 0b11110000),
        ("Invert", lambda image: 255 - image),
        ("Solarize", lambda image: 255 - image),  # The threshold 256 wraps around to 0.
        ("SolarizeAdd", lambda image: image + np.uint8(110) * (image < 128)),
        ("Brightness", lambda image: blended(0, image)),
        ("Contrast", lambda image: blended(196, image)),  # 224 * 224 / 256.
    ],
)
def test_point_operations_are_exact(image, name, function):
    np.testing.assert_array_equal(apply(name, image), function(image))
    assert (apply(name, image) != image).any()


@pytest.mark.parametrize(
    ("name", "function", "atol"),
    [
        ("AutoContrast", ImageOps.autocontrast, 1),
        # The degenerate image may differ by one, and so may what is cut off after blending.
        ("Color", lambda picture: ImageEnhance.Color(picture).enhance(1.9), 2),
        ("Sharpness", lambda picture: ImageEnhance.Sharpness(picture).enhance(1.9), 2),
    ],
)
def test_other_operations_equal_pillow_up_to_rounding(image, name, function, atol):
    picture = Image.fromarray(image // 2 + 30)
    theirs = np.asarray(function(picture), int)
    ours = apply(name, np.asarray(picture))
    assert np.abs(ours - theirs).max() <= atol
    assert (ours != np.asarray(picture)).any()


@pytest.mark.parametrize("sides", [(32, 32), (224, 160), (300, 300)])
def test_contrast_blends_from_the_number_of_pixels_over_256(sides):
    image = np.random.default_rng(0).integers(0, 256, (*sides, 3)).astype(np.uint8)
    grey = min(sides[0] * sides[1] // 256, 255)
    np.testing.assert_array_equal(apply("Contrast", image), blended(grey, image))


TURN = np.deg2rad(30)
WARPS = {  # Name -> where each pixel comes from, for a sign.
    "Rotate": lambda sign: (
        MIDDLE + np.cos(TURN) * (X - MIDDLE) - np.sin(sign * TURN) * (Y - MIDDLE),
        MIDDLE + np.sin(sign * TURN) * (X - MIDDLE) + np.cos(TURN) * (Y - MIDDLE),
    ),
    "ShearX": lambda sign: (X + sign * 0.3 * Y, Y),
    "ShearY": lambda sign: (X, Y + sign * 0.3 * X),
    "TranslateX": lambda sign: (X + sign * 100, Y),
    "TranslateY": lambda sign: (X, Y + sign * 100),
}


@pytest.mark.parametrize("name", WARPS)
def test_warps_take_the_nearest_pixel_or_grey_with_either_sign(image, name):
    expected = {sign: sampled(image, *WARPS[name](sign)) for sign in (1, -1)}
    signs = collections.Counter()
    for seed in range(12):
        warped = apply(name, image, seed)
        equal = {sign: (warped == each).all(-1).mean() for sign, each in expected.items()}
        sign = max(equal, key=equal.get)
        assert equal[sign] > 0.999  # float32 moves a few coordinates across a half.
        signs[sign] += 1
    assert min(signs[1], signs[-1]) > 1


def test_cutout_is_a_grey_square_of_side_80_cut_at_the_border(image):
    white = np.full_like(image, 255)
    for seed in range(40):
        cut = apply("Cutout", white, seed)
        rows, columns = (np.flatnonzero((cut != 255).any((axis, 2))) for axis in (1, 0))
        box = cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == 128).all()
        assert (cut != 255).sum() == box.size
        for indices in (rows, columns):
            touches = indices[0] == 0 or indices[-1] == SIDE - 1
            assert 40 <= len(indices) <= 80 if touches else len(indices) == 80


def test_every_layer_draws_one_of_16_operations_uniformly(monkeypatch):
    drawn = collections.Counter()

    def stand_in(name):
        def operation(image, level, random):
            assert level == 1.0
            drawn[name] += 1
            return image

        return operation

    monkeypatch.setattr(randaugment, "ALGOPERF", {name: stand_in(name) for name in NAMES})
    random = np.random.default_rng(0)
    for _ in range(8000):
        AlgoPerfRandAugment(2, 10)(np.zeros((1, 1, 3), np.uint8), random)
    assert drawn.total() == 16_000
    assert len(drawn) == 16
    chi_squared = sum((count - 1000) ** 2 / 1000 for count in drawn.values())
    assert chi_squared < 30.6  # 1 % of 15 degrees of freedom.
