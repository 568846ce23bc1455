"""Files and pixels through whole recipes: the order of the draws, and both decoders."""

import dataclasses
import hashlib
import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support.runs import ROOT
from vit_jax import config
from vit_jax.config.schema_data import RESAMPLES, Data
from vit_jax.data import decode as images_lib
from vit_jax.data.augment import Erase
from vit_jax.data.crops import inception_box
from vit_jax.data.decode import Encoded
from vit_jax.data.preprocess import EvalRecipe, TrainRecipe, resize, to_unit_range
from vit_jax.errors import ConfigError

DECODERS = ["pillow", "simplejpeg"]
CROPS = ["inception_crop(0.5)", "random_resized_crop(0.3)", "resize", "random_crop", "pad_crop"]


@pytest.fixture(scope="module")
def photo(photos) -> np.ndarray:
    return photos[0][:90, :150]


def jpeg(image: np.ndarray) -> Encoded:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return Encoded(file.getvalue(), "x")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("resample", RESAMPLES)
def test_recipes_give_equal_pixels_for_a_file_and_its_array(photo, resample, decoder):
    file = jpeg(photo)
    pixels = images_lib.decode(file)
    for crop in CROPS:
        data = Data(augment=f"{crop}|flip", resample=resample)
        plain = TrainRecipe(data, (20, 30))
        recipe = TrainRecipe(dataclasses.replace(data, decoder=decoder), (20, 30))
        for seed in range(4):  # OpenCV sums in another order: a hundredth of a level.
            images = (
                r(i, np.random.default_rng(seed)) for r, i in ((plain, pixels), (recipe, file))
            )
            np.testing.assert_allclose(*images, atol=1e-4)
    for kind in ("resize", "center"):
        plain, recipe = (
            EvalRecipe.from_data(Data(eval_crop=kind, resample=resample, decoder=d), (20, 30))
            for d in ("pillow", decoder)
        )
        np.testing.assert_allclose(recipe(file), plain(pixels), atol=1e-4)


def test_recipes_cut_a_very_long_image_before_resizing(monkeypatch):
    areas = []

    def resize(image, size, kernel):
        areas.append(size[0] * size[1])
        return Image.new("RGB", size)

    monkeypatch.setattr(Image.Image, "resize", resize)
    image = np.zeros((1, 60000, 3), np.uint8)
    EvalRecipe.from_data(Data(eval_crop="center"), (32, 32))(image)
    for crop in ("random_crop", "pad_crop"):
        TrainRecipe(Data(augment=crop), (32, 32))(image, np.random.default_rng(0))
    assert len(areas) == 3
    assert max(areas) <= 16 * (32 / 0.875) ** 2 * 1.1


def test_eval_recipe_center_of_a_very_long_image_is_its_centre():
    ramp = np.linspace(0, 255, 4001).round().astype(np.uint8)
    image = np.repeat(np.repeat(ramp[None, :, None], 3, -1), 16, 0)
    crop = EvalRecipe.from_data(Data(eval_crop="center"), (14, 14))(image)
    np.testing.assert_allclose((crop + 1) * 127.5, 127.5, atol=1)


def add_random():
    """A step of the user's own."""

    def step(image, random):
        assert image.dtype == np.uint8
        assert image.shape == (20, 30, 3)
        return image // 2 + np.uint8(random.integers(100))

    return step


@pytest.mark.parametrize("resample", ["antialias", "tf_bilinear"])
def test_train_recipe_draws_in_the_order_of_the_steps(photo, resample):
    own = f"{__name__}:add_random"
    data = Data(augment=f"inception_crop|flip|{own}|erase(0.5)|flip", resample=resample)
    recipe = TrainRecipe(data, (20, 30))
    for seed in range(8):
        random = np.random.default_rng(seed)
        top, left, h, w = inception_box(90, 150, (0.05, 1.0), random)
        cut = np.ascontiguousarray(photo[top : top + h, left : left + w])
        image = resize(cut, (20, 30), resample)
        image = image[:, ::-1] if random.random() < 0.5 else image
        image = add_random()(image.astype(np.uint8), random)
        image = Erase(0.5)(to_unit_range(image), random)
        image = image[:, ::-1] if random.random() < 0.5 else image
        np.testing.assert_array_equal(recipe(photo, np.random.default_rng(seed)), image)


@pytest.mark.parametrize("step", ["three_augment", "flip"])
def test_train_recipe_truncates_to_uint8_for_uint8_steps_alone(photo, step):
    data = Data(augment=f"resize|{step}", resample="tf_bilinear")
    pixels = (TrainRecipe(data, (20, 30))(photo, np.random.default_rng(1)) + 1) * 127.5
    is_whole = np.allclose(pixels, np.round(pixels), atol=1e-4)
    assert is_whole == (step == "three_augment")


def test_train_recipe_clips_before_uint8_steps_alone():
    """A bicubic resize leaves [0, 255] at an edge; uint8 would wrap around."""
    image = np.repeat(np.array([0] * 6 + [255] * 6, np.uint8)[None, :, None], 12, 0).repeat(3, 2)
    plain, clipped = (
        TrainRecipe(Data(augment=text, resample="tf_bicubic"), (18, 18))(
            image, np.random.default_rng(0)
        )
        for text in ("resize", "resize|color_jitter(0)")
    )
    assert plain.min() < -1.05
    assert plain.max() > 1.05
    np.testing.assert_allclose(clipped, np.clip(plain, -1, 1), atol=1.01 / 127.5)  # Cut off.


def test_train_recipe_of_deit_keeps_its_pixels(photos):
    """SHA-256 of 40 images, from the version whose augmentations were separate fields."""
    data = config.check(config.load(f"{ROOT}/configs/deit.py"))[""].data
    recipe = pickle.loads(pickle.dumps(TrainRecipe(data, (48, 32))))
    found = hashlib.sha256()
    for seed in range(40):
        found.update(recipe(photos[seed % 2][:90, :150], np.random.default_rng(seed)).tobytes())
    assert found.hexdigest() == "72f08a484137c19ad633d5ecde7a7935b32ca2e62bd108a973ae27745c6ce924"


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("crop", CROPS)
def test_fast_crop_gives_nearly_the_pixels_of_the_exact_crop(photos, crop, decoder):
    data = Data(augment=f"{crop}|flip", decoder=decoder)
    exact, fast = (
        TrainRecipe(dataclasses.replace(data, fast_crop=fast), (32, 32)) for fast in (False, True)
    )
    for image in (jpeg(photos[0]), photos[0]):
        for seed in range(6):
            a, b = (recipe(image, np.random.default_rng(seed)) for recipe in (exact, fast))
            if image is photos[0]:
                np.testing.assert_array_equal(a, b)  # Nothing to shrink.
            else:
                assert np.abs(a - b).mean() < 0.08
                assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95


def test_recipes_report_the_extra_of_a_missing_decoder(monkeypatch):
    for package in ("simplejpeg", "cv2"):
        images_lib.simplejpeg.cache_clear()
        images_lib.opencv.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "simplejpeg", object())
            patch.setitem(sys.modules, package, None)
            for recipe in (TrainRecipe, EvalRecipe.from_data):
                with pytest.raises(ConfigError, match=r"pip install 'vit-jax\[fast-jpeg\]'"):
                    recipe(Data(decoder="simplejpeg"), (8, 8))
        images_lib.simplejpeg.cache_clear()
