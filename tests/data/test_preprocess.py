"""Recipes and resizes against Pillow and against formulas written out by hand."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import vit_jax
from vit_jax.config.schema import Data
from vit_jax.data.crops import inception_box
from vit_jax.data.preprocess import EvalRecipe, TrainRecipe, preprocess, resize, to_unit_range

CENTER = Data(eval_crop="center")


def row(*greys) -> np.ndarray:
    """A one-line image whose channels are all the same."""
    return np.repeat(np.array([greys], np.uint8)[..., None], 3, -1)


@pytest.fixture(scope="module")
def photo(photos) -> np.ndarray:
    return photos[0][:90, :150]


@pytest.mark.parametrize("size", [(32, 32), (224, 160), (90, 75), (16, 200)])
def test_resize_antialias_equals_pillows_bilinear(photo, size):
    theirs = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize(photo, size, "antialias"), np.asarray(theirs))


def triangle_rows(old: int, new: int) -> np.ndarray:
    """new x old weights of a triangle as wide as the scale, each row of sum one."""
    scale = max(old / new, 1)
    centres = (np.arange(new) + 0.5) * old / new
    distance = np.abs(np.arange(old) + 0.5 - centres[:, None]) / scale
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(30, 40), (200, 60)])
def test_resize_antialias_widens_its_filter_when_shrinking(photo, size):
    rows, columns = triangle_rows(90, size[0]), triangle_rows(150, size[1])
    expected = np.einsum("hH,wW,HWc->hwc", rows, columns, photo / 1.0, optimize=True)
    # Rounded on each axis.
    np.testing.assert_allclose(resize(photo, size, "antialias"), expected, atol=1.01)


@pytest.mark.parametrize("size", [(32, 32), (224, 160), (90, 75), (16, 200), (1, 1)])
def test_resize_tf_bilinear_samples_at_half_pixel_centres(photo, size):
    y, x = ((np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip((90, 150), size))
    grid = np.meshgrid(y, x, indexing="ij")
    channels = (photo[..., c] / 1.0 for c in range(3))
    sampled = [ndimage.map_coordinates(c, grid, order=1, mode="nearest") for c in channels]
    expected = np.stack(sampled, axis=-1)
    resized = resize(photo, size, "tf_bilinear")
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=2e-3)  # float32 weights of values to 255.


def test_resize_tf_bilinear_gives_values_computed_by_hand():
    # Centres of 2 -> 4 lie at -0.25, 0.25, 0.75, 1.25; of 4 -> 2 at 0.5 and 2.5.
    np.testing.assert_array_equal(
        resize(row(0, 100), (1, 4), "tf_bilinear")[0, :, 0], [0, 25, 75, 100]
    )
    np.testing.assert_array_equal(
        resize(row(0, 10, 20, 30), (1, 2), "tf_bilinear")[0, :, 0], [5, 25]
    )
    tall = row(0, 10, 20, 30).transpose(1, 0, 2)
    np.testing.assert_array_equal(resize(tall, (2, 1), "tf_bilinear")[:, 0, 0], [5, 25])
    # Not rounded: a third of the way from 0 to 10.
    thirds = resize(row(0, 10), (1, 3), "tf_bilinear")[0, :, 0]
    np.testing.assert_allclose(thirds, [0, 5, 10])
    np.testing.assert_allclose(resize(row(0, 1), (1, 6), "tf_bilinear")[0, 2, 0], 1 / 3, rtol=1e-6)


def test_resize_tf_bilinear_uses_two_neighbours_at_any_scale():
    spike = row(0, 0, 0, 80, 0, 0, 0, 0)  # 8 -> 2 samples at 1.5 and 5.5.
    np.testing.assert_array_equal(resize(spike, (1, 2), "tf_bilinear")[0, :, 0], [0, 0])
    assert resize(spike, (1, 2), "antialias")[0, 0, 0] > 10


def test_resize_returns_an_image_of_the_target_size_unchanged(photo):
    for resample in ("antialias", "tf_bilinear"):
        np.testing.assert_array_equal(resize(photo, (90, 150), resample), photo)


def test_to_unit_range_scales_to_minus_one_to_one():
    x = np.array([0, 51, 127, 128, 255], np.uint8)
    y = to_unit_range(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, (x - 127.5) / 127.5, atol=1e-7)
    assert y.min() == -1
    assert y.max() == 1


@pytest.mark.parametrize("resample", ["antialias", "tf_bilinear"])
def test_train_recipe_resizes_the_inception_box(photo, resample):
    recipe = TrainRecipe(Data(augment="inception_crop(0.2,0.6)", resample=resample), (20, 30))
    image = recipe(photo, np.random.default_rng(3))
    top, left, h, w = inception_box(90, 150, (0.2, 0.6), np.random.default_rng(3))
    cut = np.ascontiguousarray(photo[top : top + h, left : left + w])
    np.testing.assert_array_equal(image, to_unit_range(resize(cut, (20, 30), resample)))
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.float32


def test_train_recipe_depends_on_the_generator_alone(photo):
    recipe = TrainRecipe(Data(), (8, 8))
    a, b, c = (recipe(photo, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
def test_eval_recipe_resize_stretches_the_whole_image(photo, size):
    theirs = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    image = EvalRecipe.from_data(Data(eval_crop="resize"), size)(photo)
    assert image.shape == (*size, 3)
    np.testing.assert_allclose(image, (np.asarray(theirs) - 127.5) / 127.5, atol=1e-6)


def test_eval_recipe_center_cuts_224_out_of_256(photos):
    square = photos[0][:256, :256]
    image = EvalRecipe.from_data(CENTER, (224, 224))(square)
    np.testing.assert_array_equal(image, to_unit_range(square[16:240, 16:240]))


def test_eval_recipe_center_keeps_the_aspect_ratio(photos):
    wide = photos[0][:64, :128]  # The short side 64 becomes 28 * 256/224 = 32.
    theirs = np.asarray(Image.fromarray(wide).resize((64, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(
        EvalRecipe.from_data(CENTER, (28, 28))(wide),
        to_unit_range(theirs[2:30, 18:46]),
    )


@pytest.mark.parametrize("shape", [(10, 300), (300, 10), (1, 1), (29, 57)])
@pytest.mark.parametrize("size", [(28, 28), (28, 56), (56, 28), (7, 7)])
def test_eval_recipe_center_fills_the_target(shape, size):
    image = EvalRecipe.from_data(CENTER, size)(np.full((*shape, 3), 255, np.uint8))
    np.testing.assert_array_equal(image, np.ones((*size, 3)))


def test_preprocess_returns_a_batch_for_images_of_any_size(photos):
    model = vit_jax.create_model("vit_ti16", image_size=(32, 48), num_classes=2)
    images = [photos[0][:50, :70], photos[1][:33, :48], photos[0][:32, :48]]
    batch = vit_jax.preprocess(images, model)
    assert vit_jax.preprocess is preprocess
    assert batch.shape == (3, 32, 48, 3)
    assert batch.dtype == np.float32
    # The official code: TensorFlow's bilinear over the whole image, then [-1, 1].
    expected = (resize(images[0], (32, 48), "tf_bilinear") - 127.5) / 127.5
    np.testing.assert_allclose(batch[0], expected, atol=1e-6)
    np.testing.assert_array_equal(batch[2], to_unit_range(images[2]))
    np.testing.assert_array_equal(vit_jax.preprocess(np.stack(images[2:]), model), batch[2:])


def test_preprocess_reads_paths_and_pil_images(photo, tmp_path):
    model = vit_jax.create_model("vit_ti16", image_size=32, num_classes=2)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    batch = vit_jax.preprocess([tmp_path / "photo.png", Image.fromarray(photo), photo], model)
    np.testing.assert_array_equal(batch, np.stack([batch[2]] * 3))


def test_preprocess_rejects_images_that_are_not_uint8():
    model = vit_jax.create_model("vit_ti16", image_size=32, num_classes=2)
    with pytest.raises(ValueError, match="uint8"):
        vit_jax.preprocess([np.full((8, 8, 3), 0.5)], model)


def test_preprocess_rejects_images_without_three_channels():
    model = vit_jax.create_model("vit_ti16", image_size=32, num_classes=2)
    with pytest.raises(ValueError, match=r"H W 3|channels"):
        vit_jax.preprocess([np.zeros((8, 8), np.uint8)], model)
