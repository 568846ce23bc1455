"""3-Augment, colour jitter, erasing, and what a config makes of them all."""

import pickle

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.data.augment import ColorJitter, ThreeAugment, erase, make_augment
from vit_jax.data.randaugment import CorrectedRandAugment, PublishedRandAugment
from vit_jax.errors import ConfigError


@pytest.fixture(scope="module")
def photo(photos) -> np.ndarray:
    return np.ascontiguousarray(photos[0][100:148, 200:240])


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_all_off_is_no_augmentation():
    assert make_augment() is None
    assert make_augment(randaug="none", magnitude=15, layers=3) is None


def test_a_config_makes_its_augmentations_in_order():
    augment = make_augment(
        randaug="corrected", layers=3, magnitude=9, std=0.5, prob=0.5, three_augment=True,
        color_jitter=0.3,
    )  # fmt: skip
    assert augment.steps == (
        CorrectedRandAugment(layers=3, magnitude=9, std=0.5, prob=0.5),
        ThreeAugment(),
        ColorJitter(0.3),
    )
    published = make_augment(randaug="published", layers=2, magnitude=15)
    assert published.steps == (PublishedRandAugment(layers=2, magnitude=15),)


@pytest.mark.parametrize("only_corrected", [{"std": 0.5}, {"prob": 0.5}])
def test_published_randaugment_has_neither_deviation_nor_probability(only_corrected):
    with pytest.raises(ConfigError, match="randaug='published'"):
        make_augment(randaug="published", **only_corrected)


ALL = {
    "published": {"randaug": "published", "layers": 2, "magnitude": 10},
    "corrected": {"randaug": "corrected", "layers": 2, "magnitude": 9, "std": 0.5, "prob": 0.5},
    "three": {"three_augment": True, "color_jitter": 0.3},
}


@pytest.mark.parametrize("options", ALL.values(), ids=list(ALL))
def test_an_augmentation_follows_the_generator_alone_through_a_pickle_too(photo, options):
    augment = make_augment(**options)
    travelled = pickle.loads(pickle.dumps(augment))
    before, outputs = photo.copy(), []
    for seed in range(30):
        image = augment(photo, generator(seed))
        assert image.shape == photo.shape
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, augment(photo, generator(seed)))
        np.testing.assert_array_equal(image, travelled(photo, generator(seed)))
        outputs.append(image.tobytes())
    assert len(set(outputs)) > 10  # 100 pixels of translation leave the same grey.
    np.testing.assert_array_equal(photo, before)  # The source's own array.


@pytest.mark.parametrize("options", ALL.values(), ids=list(ALL))
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 300)])
def test_an_augmentation_takes_the_smallest_and_the_longest_images(options, shape):
    augment, image = make_augment(**options), np.full((*shape, 3), 200, np.uint8)
    for seed in range(60):
        assert augment(image[:, ::-1], generator(seed)).shape == image.shape


def test_three_augment_is_grey_solarised_or_blurred_a_third_each(photo):
    picture = Image.fromarray(photo)
    grey = np.asarray(picture.convert("L").convert("RGB")).tobytes()
    solarised = np.asarray(ImageOps.solarize(picture, 128)).tobytes()
    outputs = [ThreeAugment()(photo, generator(seed)).tobytes() for seed in range(600)]
    assert 160 < outputs.count(grey) < 240
    assert 160 < outputs.count(solarised) < 240
    assert len(set(outputs)) > 160  # Blurred by as many radii.


def test_three_augment_blurs_by_a_radius_of_a_tenth_to_two(photo):
    radii = []
    for seed in range(300):
        random = generator(seed)
        if random.integers(3) == 2:
            radii.append(random.uniform(0.1, 2))
            blurred = Image.fromarray(photo).filter(ImageFilter.GaussianBlur(radii[-1]))
            np.testing.assert_array_equal(
                ThreeAugment()(photo, generator(seed)), np.asarray(blurred)
            )
    assert 0.1 <= min(radii) < 0.3
    assert 1.8 < max(radii) <= 2


def test_colour_jitter_enhances_in_the_order_and_by_the_factors_drawn(photo):
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    orders, drawn = set(), []
    for seed in range(60):
        random = generator(seed)
        order, factors = random.permutation(3), random.uniform(0.7, 1.3, 3)
        picture = Image.fromarray(photo)
        for i in order:
            picture = enhancers[i](picture).enhance(factors[i])
        jittered = ColorJitter(0.3)(photo, generator(seed))
        np.testing.assert_array_equal(jittered, np.asarray(picture))
        orders.add(tuple(order))
        drawn.append(factors)
    assert len(orders) == 6
    assert 0.7 <= np.min(drawn) < 0.72
    assert 1.28 < np.max(drawn) <= 1.3


def test_colour_jitter_scales_brightness_by_at_most_its_strength():
    grey = np.full((4, 4, 3), 100, np.uint8)  # Grey has neither contrast nor saturation.
    values = [ColorJitter(0.4)(grey, generator(seed))[0, 0, 0] for seed in range(300)]
    assert 59 <= min(values) < 65
    assert 135 < max(values) <= 140
    assert abs(np.mean(values) - 100) < 4


def erased_box(image: np.ndarray, seed: int, probability: float = 1.0):
    """Height and width of the erased box; None where nothing was."""
    changed = (erase(image, probability, generator(seed)) != image).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert changed.sum() == len(rows) * len(columns)  # One full rectangle.
    if not changed.any():
        return None
    assert np.ptp(rows) + 1 == len(rows)
    assert np.ptp(columns) + 1 == len(columns)
    return len(rows), len(columns)


def test_erasing_happens_with_its_probability():
    image = np.zeros((20, 20, 3), np.float32)
    erased = [erased_box(image, seed, 0.25) is not None for seed in range(1000)]
    assert abs(np.mean(erased) - 0.25) < 0.04
    assert erase(image, 0.0, generator(0)) is image


def test_erased_rectangles_keep_their_bounds():
    image = np.zeros((70, 70, 3), np.float32)
    boxes = [erased_box(image, seed) for seed in range(1500)]
    h, w = np.array([box for box in boxes if box]).T
    # Sides are rounded to whole pixels, so a bound is met within half a pixel on each.
    assert ((h + 0.5) * (w + 0.5) >= 0.02 * 4900).all()
    assert ((h - 0.5) * (w - 0.5) <= 4900 / 3).all()
    assert ((h + 0.5) / (w - 0.5) >= 0.3).all()
    assert ((h - 0.5) / (w + 0.5) <= 1 / 0.3).all()
    assert max(h.max(), w.max()) < 70
    assert len(h) > 1490  # Ten tries are hardly ever in vain.
    assert abs((h * w / 4900).mean() - (0.02 + 1 / 3) / 2) < 0.02
    assert abs(np.log(h / w).mean()) < 0.04


def test_erased_pixels_are_noise_with_imagenets_mean_and_deviation():
    image = np.full((400, 400, 3), 9, np.float32)
    erased = erase(image, 1.0, generator(1))
    assert erased.dtype == np.float32
    noise = erased[(erased != 9).any(-1)]  # N 3, in [-1, 1] but for the tails.
    assert len(noise) > 5000
    np.testing.assert_allclose(noise.mean(0), 2 * np.array([0.485, 0.456, 0.406]) - 1, atol=0.03)
    np.testing.assert_allclose(noise.std(0), 2 * np.array([0.229, 0.224, 0.225]), atol=0.02)
    correlation = np.corrcoef(noise.T)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 0.05  # Each channel for itself.


def test_erasing_follows_the_generator_and_leaves_its_argument():
    image = np.zeros((20, 20, 3), np.float32)
    a, b, c = (erase(image, 1.0, generator(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert not image.any()


def test_an_image_too_small_for_any_rectangle_is_left_as_it_is():
    for seed in range(50):
        assert erased_box(np.zeros((1, 1, 3), np.float32), seed) is None
