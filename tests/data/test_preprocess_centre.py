"""Centre crops of evaluation against the rules of timm and Hugging Face, written with Pillow.

`pytest -m parity tests/weights/test_image_processor_parity.py` compares with the originals.
"""

import math

import numpy as np
import pytest
from PIL import Image

from vit_jax import config as config_lib
from vit_jax.config.schema import Config, Data
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import ConfigError

SHAPES = [(375, 500), (500, 375), (256, 256), (61, 185)]  # Height, width.
PILLOW = {"bicubic": Image.Resampling.BICUBIC, "antialias": Image.Resampling.BILINEAR}


@pytest.fixture(scope="module")
def images(photos):
    whole = Image.fromarray(photos[1])
    return {shape: whole.resize(shape[::-1], Image.Resampling.BOX) for shape in SHAPES}


def grey_levels(image: Image.Image, size=(56, 56), **fields) -> np.ndarray:
    return (EvalRecipe.from_data(Data(**fields), size)(np.asarray(image)) + 1) * 127.5


def cut(image: Image.Image, left: int, top: int, side: int) -> np.ndarray:
    return np.asarray(image.crop((left, top, left + side, top + side)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("resample", PILLOW)
def test_timm_cuts_the_centre_of_rounded_down_sides(images, shape, fraction, resample):
    image, short = images[shape], math.floor(56 / fraction)
    width, height = image.size
    scaled = (short, int(short * height / width))
    if height < width:
        scaled = (int(short * width / height), short)
    small = image.resize(scaled, PILLOW[resample])
    left, top = (int(round((side - 56) / 2.0)) for side in small.size)  # noqa: RUF046
    fields = {"crop_fraction": fraction, "resample": resample}
    found = grey_levels(image, eval_crop="timm", **fields)
    np.testing.assert_allclose(found, cut(small, left, top, 56), atol=1e-3)
    square = image.resize((short, short), PILLOW[resample])
    offset = int(round((short - 56) / 2.0))  # noqa: RUF046
    found = grey_levels(image, eval_crop="timm_squash", **fields)
    np.testing.assert_allclose(found, cut(square, offset, offset, 56), atol=1e-3)


def test_timm_covers_a_target_that_is_not_square(photos):
    image = Image.fromarray(photos[1][:370, :500])
    small = image.resize((44, 33), Image.Resampling.BILINEAR)  # 44 of 40 / 0.9, and 32.56.
    found = grey_levels(image, (24, 40), eval_crop="timm", crop_fraction=0.9)
    np.testing.assert_allclose(found, np.asarray(small)[4:28, 2:42], atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("short", [56, 59, 62, 64])
def test_huggingface_cuts_the_centre_of_the_given_short_side(images, shape, short):
    image = images[shape]
    width, height = image.size
    scaled = (short, int(short * height / width))
    if height < width:
        scaled = (int(short * width / height), short)
    small = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = ((side - 56) // 2 for side in small.size)
    fields = {"eval_crop": "huggingface", "resample": "bicubic"}
    found = grey_levels(image, eval_side=short, **fields)
    np.testing.assert_allclose(found, cut(small, left, top, 56), atol=1e-3)
    stretched = image.resize((70, 65), Image.Resampling.BICUBIC)
    found = grey_levels(image, eval_side=(65, 70), **fields)
    np.testing.assert_allclose(found, cut(stretched, 7, 4, 56), atol=1e-3)


def test_center_rounds_both_sides():
    image = np.random.default_rng(0).integers(0, 256, (33, 97, 3)).astype(np.uint8)
    small = Image.fromarray(image).resize((94, 32), Image.Resampling.BILINEAR)  # 94.06.
    for fields in ({"eval_side": 32}, {"crop_fraction": 0.875}):
        found = grey_levels(Image.fromarray(image), (28, 28), eval_crop="center", **fields)
        np.testing.assert_allclose(found, cut(small, 33, 2, 28), atol=1e-3)


@pytest.mark.parametrize("shape", [*SHAPES, (57, 57), (1, 1)])
def test_algoperf_cuts_the_centre_before_resizing(images, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    side = max(1, int(224 / 256 * min(shape)))
    top, left = ((part - side + 1) // 2 for part in shape)
    part = Image.fromarray(image[top : top + side, left : left + side])
    found = grey_levels(image, eval_crop="algoperf", resample="bicubic")
    np.testing.assert_allclose(found, part.resize((56, 56), PILLOW["bicubic"]), atol=1e-3)


def test_algoperf_cuts_the_largest_part_of_a_target_that_is_not_square():
    image = np.random.default_rng(0).integers(0, 256, (96, 200, 3)).astype(np.uint8)
    part = Image.fromarray(image[6:90, 37:163])  # 7/8 of 96 and of 144 = 96 * 60 / 40.
    found = grey_levels(image, (40, 60), eval_crop="algoperf", resample="bicubic")
    np.testing.assert_allclose(found, part.resize((60, 40), PILLOW["bicubic"]), atol=1e-3)


def test_eval_resample_changes_evaluation_alone(photos):
    data = Data(eval_crop="center", resample="tf_bilinear", eval_resample="bicubic")
    assert EvalRecipe.from_data(data, (32, 32)).resample == "bicubic"
    assert EvalRecipe.from_data(Data(resample="tf_bilinear"), (32, 32)).resample == "tf_bilinear"


@pytest.mark.parametrize("side", [223, (224, 223)])
def test_check_rejects_a_crop_larger_than_the_resized_image(side):
    wrong = Config(steps=1, data=Data(eval_crop="huggingface", eval_side=side))
    with pytest.raises(ConfigError, match=r"config\.data\.eval_side is .* at least image_size"):
        config_lib.check(config_lib.to_config_dict({"": wrong}))
    with pytest.raises(ConfigError, match="at least the image size"):
        EvalRecipe.from_data(wrong.data, (224, 224))
