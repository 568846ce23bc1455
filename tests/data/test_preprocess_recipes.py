"""Files and pixels through whole recipes: crops, the order of the draws, either decoder."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import decode as images_lib
from vit_jax.data.augment import erase
from vit_jax.data.decode import Encoded
from vit_jax.data.preprocess import (
    EvalRecipe,
    TrainRecipe,
    View,
    inception_box,
    resize,
    to_unit_range,
)
from vit_jax.errors import ConfigError

DECODERS = ["pillow", "simplejpeg"]


@pytest.fixture(scope="module")
def photo(photos) -> np.ndarray:
    return photos[0][:90, :150]


def jpeg(image: np.ndarray) -> Encoded:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return Encoded(file.getvalue(), "x")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("resample", ["antialias", "bicubic", "tf_bilinear"])
def test_a_file_is_treated_as_its_pixels_are(photo, resample, decoder):
    file = jpeg(photo)
    pixels = images_lib.decode(file)
    for kind in ("inception", "resize", "random", "pad"):
        plain = TrainRecipe((20, 30), crop=kind, resample=resample)
        recipe = TrainRecipe((20, 30), crop=kind, resample=resample, decoder=decoder)
        for seed in range(4):  # OpenCV sums in another order: a hundredth of a level.
            images = (
                r(i, np.random.default_rng(seed)) for r, i in ((plain, pixels), (recipe, file))
            )
            np.testing.assert_allclose(*images, atol=1e-4)
    for kind in ("resize", "center"):
        plain, recipe = (
            EvalRecipe((20, 30), kind, resample, decoder=d) for d in ("pillow", decoder)
        )
        np.testing.assert_allclose(recipe(file), plain(pixels), atol=1e-4)


def colours(height: int, width: int) -> np.ndarray:
    """Red counts rows, green counts columns."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)


def corners(recipe, image: np.ndarray, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the first pixel of many training crops, and the crops."""
    random = np.random.default_rng(0)
    crops = np.array([recipe(image, random) for _ in range(count)])
    return np.rint((crops + 1) * 127.5).astype(int)[:, 0, 0, :2].T, np.rint((crops + 1) * 127.5)


def test_a_random_crop_is_any_window_of_the_image_resized_to_eight_sevenths():
    image = colours(32, 48)  # Not resized: 28 is 7/8 of 32.
    (top, left), crops = corners(TrainRecipe((28, 28), crop="random", flip=False), image)
    assert set(top) == set(range(5))
    assert set(left) == set(range(21))
    for y, x, crop in zip(top, left, crops):
        np.testing.assert_array_equal(crop, image[y : y + 28, x : x + 28])
    half = colours(64, 96)  # Resized to 32 48.
    whole = resize(half, (32, 48))
    _, crops = corners(TrainRecipe((28, 28), crop="random", flip=False), half, 5)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (28, 28, 3)).reshape(-1, 28, 28, 3)
    for crop in crops:
        assert (crop == windows).all((1, 2, 3)).any()


def test_a_padded_crop_is_any_window_of_the_image_mirrored_beyond_its_edges():
    image = colours(20, 25)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (20, 20, 3)).reshape(-1, 20, 20, 3)
    _, crops = corners(TrainRecipe((20, 20), crop="pad", flip=False), image, 2000)
    found = {int(np.flatnonzero((crop == windows).all((1, 2, 3)))[0]) for crop in crops}
    assert found == set(range(len(windows))) == set(range(9 * 14))


def test_a_very_long_image_is_cut_before_it_is_resized(monkeypatch):
    areas = []

    def resize(image, size, kernel):
        areas.append(size[0] * size[1])
        return Image.new("RGB", size)

    monkeypatch.setattr(Image.Image, "resize", resize)
    image = np.zeros((1, 60000, 3), np.uint8)
    EvalRecipe((32, 32), "center")(image)
    for kind in ("random", "pad"):
        TrainRecipe((32, 32), crop=kind)(image, np.random.default_rng(0))
    assert len(areas) == 3
    assert max(areas) <= 16 * (32 / 0.875) ** 2 * 1.1


def test_the_centre_of_a_very_long_image_is_its_centre():
    ramp = np.linspace(0, 255, 4001).round().astype(np.uint8)
    image = np.repeat(np.repeat(ramp[None, :, None], 3, -1), 16, 0)
    crop = EvalRecipe((14, 14), "center")(image)
    np.testing.assert_allclose((crop + 1) * 127.5, 127.5, atol=1)


def test_the_draws_are_of_crop_flip_augment_and_erasing_in_this_order(photo):
    def augment(image, random):
        assert image.dtype == np.uint8
        assert image.shape == (20, 30, 3)
        return image // 2 + np.uint8(random.integers(100))

    for resample in ("antialias", "tf_bilinear"):
        recipe = TrainRecipe((20, 30), resample=resample, augment=augment, random_erasing=0.5)
        for seed in range(6):
            random = np.random.default_rng(seed)
            top, left, h, w = inception_box(90, 150, (0.05, 1.0), random)
            image = resize(
                np.ascontiguousarray(photo[top : top + h, left : left + w]), (20, 30), resample
            )
            image = image[:, ::-1] if random.random() < 0.5 else image
            image = augment(image.astype(np.uint8), random)
            expected = erase(to_unit_range(image), 0.5, random)
            np.testing.assert_array_equal(recipe(photo, np.random.default_rng(seed)), expected)


@pytest.mark.parametrize(
    ("box", "factor"),
    [
        ((31, 500), 1),
        ((32, 500), 2),
        ((63, 64), 2),
        ((64, 64), 4),
        ((128, 127), 4),
        ((200, 128), 8),
    ],
)
def test_a_jpeg_shrinks_no_further_than_its_crop_allows(box, factor):
    assert View((0, 0, *box), (16, 16), (0, 0, 16, 16)).shrink() == factor


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("crop", ["inception", "resize", "random", "pad"])
def test_a_fast_crop_shows_nearly_what_the_exact_one_shows(photos, crop, decoder):
    options = {"crop": crop, "crop_area": (0.3, 1.0), "decoder": decoder}
    exact, fast = (TrainRecipe((32, 32), fast_crop=fast, **options) for fast in (False, True))
    for image in (jpeg(photos[0]), photos[0]):
        for seed in range(6):
            a, b = (recipe(image, np.random.default_rng(seed)) for recipe in (exact, fast))
            if image is photos[0]:
                np.testing.assert_array_equal(a, b)  # Nothing to shrink.
            else:
                assert np.abs(a - b).mean() < 0.06
                assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95


def test_a_decoder_that_is_not_installed_names_its_extra(monkeypatch):
    for package in ("simplejpeg", "cv2"):
        images_lib.simplejpeg.cache_clear()
        images_lib.opencv.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "simplejpeg", object())
            patch.setitem(sys.modules, package, None)
            for recipe in (TrainRecipe, EvalRecipe):
                with pytest.raises(ConfigError, match=r"pip install 'vit-jax\[fast-jpeg\]'"):
                    recipe((8, 8), decoder="simplejpeg")
        images_lib.simplejpeg.cache_clear()
