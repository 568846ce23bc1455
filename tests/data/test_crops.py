"""Crops of training images against their originals, their bounds and numpy.

tests/golden/crops.npz holds, for three shapes of an image, points of the distribution functions of
200,000 boxes with areas of 0.05 to 1, drawn by TensorFlow 2.21 and torchvision 0.29:

box = tf.image.stateless_sample_distorted_bounding_box(
    (height, width, 3), tf.zeros([0, 0, 4]), seed=(0, i), min_object_covered=0,
    area_range=(0.05, 1.0), use_image_if_no_bounding_boxes=True)
box = torchvision.transforms.RandomResizedCrop.get_params(image, (0.05, 1.0), (3 / 4, 4 / 3))

# The "algoperf" boxes are 60,000 of another call:
box = tf.image.stateless_sample_distorted_bounding_box(
    (height, width, 3), tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), seed=(0, i), min_object_covered=0.1,
    aspect_ratio_range=(0.75, 4 / 3), area_range=(0.08, 1.0), max_attempts=10)

values = quantities(np.array(boxes), height, width)
golden[name] = np.quantile(values, np.arange(1, 100) / 100, axis=1, method="inverted_cdf").T
golden[f"{name} levels"] = [(v[:, None] <= q).mean(0) for v, q in zip(values, golden[name])]
"""

import numpy as np
import pytest

from tests.support.runs import ROOT
from vit_jax.config.schema import Data
from vit_jax.data.crops import (
    AlgoPerfCrop,
    InceptionCrop,
    RandomResizedCrop,
    inception_box,
    random_resized_box,
)
from vit_jax.data.preprocess import EvalRecipe, TrainRecipe, resize


def quantities(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area, aspect, and position of boxes, 4 n."""
    top, left, h, w = boxes.astype(float).T
    return np.array([h * w / (height * width), w / h, top / height, left / width])


GOLDEN = dict(np.load(ROOT / "tests" / "golden" / "crops.npz"))
RULES = {"tensorflow": inception_box, "torchvision": random_resized_box}
BOTH = pytest.mark.parametrize("draw", RULES.values(), ids=RULES)


def algoperf_box(height: int, width: int, area, random) -> tuple[int, int, int, int]:
    return AlgoPerfCrop().view((height, width), (224, 224), random).box


@pytest.mark.parametrize("name", [name for name in GOLDEN if "levels" not in name])
def test_boxes_have_the_distribution_of_the_original(name):
    rule, height, width = name.split()
    area, random = (0.05, 1.0), np.random.default_rng(0)
    draw = RULES.get(rule, algoperf_box)
    boxes = [draw(int(height), int(width), area, random) for _ in range(8000)]
    for values, quantiles, levels in zip(
        quantities(np.array(boxes), int(height), int(width)), GOLDEN[name], GOLDEN[f"{name} levels"]
    ):
        ours = (values[:, None] <= quantiles).mean(0)
        # The Kolmogorov-Smirnov distance of 8,000 draws is below 0.023 with probability 99.9 %.
        assert np.abs(ours - levels).max() < 0.023


@pytest.mark.parametrize(("height", "width"), [(200, 300), (300, 200), (500, 500)])
@BOTH
def test_box_is_inside_the_image_and_its_bounds(draw, height, width):
    random, low, high = np.random.default_rng(0), 0.05, 0.5
    boxes = np.array([draw(height, width, (low, high), random) for _ in range(2000)])
    top, left, h, w = boxes.T
    assert boxes.min() >= 0
    assert (h > 0).all()
    assert (top + h).max() <= height
    assert (left + w).max() <= width
    # Sides are rounded to whole pixels, so a bound is met within half a pixel on each.
    area = height * width
    assert ((w + 0.5) * (h + 0.5) >= low * area).all()
    assert ((w - 0.5) * (h - 0.5) <= high * area).all()
    assert ((w + 0.5) / (h - 0.5) >= 3 / 4).all()
    assert ((w - 0.5) / (h + 0.5) <= 4 / 3).all()
    assert top.min() == left.min() == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (8, 8), (5, 400)])
@BOTH
def test_box_fits_very_small_and_very_long_images(draw, height, width):
    random = np.random.default_rng(0)
    for _ in range(300):
        top, left, h, w = draw(height, width, (0.05, 1.0), random)
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert h > 0
        assert w > 0


def test_random_resized_box_is_the_centre_if_no_random_box_fits():
    random = np.random.default_rng(0)
    assert random_resized_box(12, 100, (1, 1), random) == (0, 42, 12, 16)  # 4/3 of 12.
    assert random_resized_box(100, 12, (1, 1), random) == (42, 0, 16, 12)


def test_inception_box_is_the_whole_image_if_no_random_box_fits():
    random = np.random.default_rng(0)
    assert inception_box(12, 100, (1, 1), random) == (0, 0, 12, 100)
    assert inception_box(100, 12, (1, 1), random) == (0, 0, 100, 12)


def test_inception_box_never_touches_the_last_row_and_column():
    # TensorFlow draws top from [0, height - h), without the upper end.
    random = np.random.default_rng(0)
    boxes = np.array([inception_box(20, 24, (0.05, 1.0), random) for _ in range(2000)])
    (top, left, h, w), is_lower, is_narrower = boxes.T, boxes[:, 2] < 20, boxes[:, 3] < 24
    assert (top + h)[is_lower].max() == 19
    assert (left + w)[is_narrower].max() == 23
    assert (~is_lower).any()
    assert (~is_narrower).any()


def test_algoperf_crop_covers_a_tenth_of_the_image_at_least():
    random, old = np.random.default_rng(0), (300, 400)
    boxes = np.array([AlgoPerfCrop().view(old, (224, 224), random).box for _ in range(4000)])
    area, aspect, _, _ = quantities(boxes, *old)
    assert 0.1 <= area.min() < 0.102
    assert 1.33 < aspect.max() < 1.34  # Up to 4/3.


@pytest.mark.parametrize("shape", [(12, 100), (100, 12)])
def test_algoperf_crop_is_that_of_evaluation_if_no_box_fits(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    data = Data(augment="algoperf_crop", eval_crop="algoperf", resample="tf_bicubic")
    expected = EvalRecipe.from_data(data, (8, 8))(image)

    class Failing:
        """A generator that draws the narrowest aspect and the lowest height."""

        def uniform(self, low, high):
            return low

        def integers(self, low, high=1, endpoint=False):
            return 0

    np.testing.assert_array_equal(TrainRecipe(data, (8, 8))(image, Failing()), expected)


def test_crops_have_the_areas_of_their_originals_by_default():
    assert (InceptionCrop().min_area, RandomResizedCrop().min_area) == (0.05, 0.08)


def numbered(height: int, width: int) -> np.ndarray:
    """Red counts rows, green counts columns."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)


def corners(recipe, image: np.ndarray, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the first pixel of many training crops, and the crops."""
    random = np.random.default_rng(0)
    crops = np.array([recipe(image, random) for _ in range(count)])
    return np.rint((crops + 1) * 127.5).astype(int)[:, 0, 0, :2].T, np.rint((crops + 1) * 127.5)


def test_random_crop_is_any_window_of_the_image_resized_to_8_7():
    image = numbered(32, 48)  # Not resized: 28 is 7/8 of 32.
    (top, left), crops = corners(TrainRecipe(Data(augment="random_crop"), (28, 28)), image)
    assert set(top) == set(range(5))
    assert set(left) == set(range(21))
    for y, x, crop in zip(top, left, crops):
        np.testing.assert_array_equal(crop, image[y : y + 28, x : x + 28])
    half = numbered(64, 96)  # Resized to 32 48.
    whole = resize(half, (32, 48), "antialias")
    _, crops = corners(TrainRecipe(Data(augment="random_crop"), (28, 28)), half, 5)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (28, 28, 3)).reshape(-1, 28, 28, 3)
    for crop in crops:
        assert (crop == windows).all((1, 2, 3)).any()


def test_pad_crop_is_any_window_of_the_image_mirrored_beyond_its_edges():
    image = numbered(20, 25)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (20, 20, 3)).reshape(-1, 20, 20, 3)
    _, crops = corners(TrainRecipe(Data(augment="pad_crop"), (20, 20)), image, 2000)
    found = {int(np.flatnonzero((crop == windows).all((1, 2, 3)))[0]) for crop in crops}
    assert found == set(range(len(windows))) == set(range(9 * 14))
