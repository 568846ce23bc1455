"""Steps of augmentation against Pillow and their published bounds."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.data.augment import (
    AUGMENTATIONS,
    Affine,
    ColorJitter,
    Erase,
    Flip,
    ThreeAugment,
    parse,
    pixels_of,
)


@pytest.fixture(scope="module")
def photo(photos) -> np.ndarray:
    return np.ascontiguousarray(photos[0][100:148, 200:240])


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


STEPS = [
    "flip",
    "randaug(2,10)",
    "randaug_algoperf(2,10)",
    "randaug_increasing(2,9,std=0.5,prob=0.5)",
    "three_augment",
    "color_jitter(0.3)",
    "color_jitter(0.3,hue=0.1)",
    "color_jitter(0.3,prob=0.5)",
    "grayscale(0.5)",
    "solarize(0.5)",
    "gaussian_blur(0.9)",
    "affine(15,0.1,0.15,10)",
    "erase(0.5)",
]


def step_of(text: str):
    steps = parse(f"resize|{text}")
    (step,) = steps.uint8_steps + steps.float_steps
    return step


def pixels_for(step, image: np.ndarray) -> np.ndarray:
    return image / np.float32(127.5) - 1 if pixels_of(step) == "float32" else image


def test_every_step_of_the_table_is_tested():
    crops = {name for name, entry in AUGMENTATIONS.items() if hasattr(entry, "view")}
    assert {step.partition("(")[0] for step in STEPS} | crops == set(AUGMENTATIONS)


@pytest.mark.parametrize("text", STEPS)
def test_step_depends_on_the_generator_alone_and_keeps_its_input(photo, text):
    step = step_of(text)
    pixels = pixels_for(step, photo)
    before, outputs = pixels.copy(), []
    for seed in range(30):
        image = step(pixels, generator(seed))
        assert image.shape == pixels.shape
        assert image.dtype == pixels.dtype
        np.testing.assert_array_equal(image, step(pixels, generator(seed)))
        outputs.append(image.tobytes())
    # 100 pixels of translation leave the same grey.
    has_two = text.startswith(("flip", "grayscale", "solarize"))
    assert len(set(outputs)) > (1 if has_two else 10)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("text", STEPS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 300)])
def test_step_accepts_very_small_and_very_long_images(text, shape):
    step = step_of(text)
    pixels = pixels_for(step, np.full((*shape, 3), 200, np.uint8))
    for seed in range(60):
        assert step(pixels[:, ::-1], generator(seed)).shape == pixels.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_flip_mirrors_half_of_the_images(photo, dtype):
    image = photo.astype(dtype)
    outputs = [Flip()(image, generator(seed)) for seed in range(400)]
    is_mirrored = [(output == image[:, ::-1]).all() for output in outputs]
    assert all((output == image).all() != m for output, m in zip(outputs, is_mirrored))
    assert 160 < sum(is_mirrored) < 240


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


def test_affine_moves_a_spot_by_rotation_shear_scale_and_shift():
    y, x = np.mgrid[:41, :61] + 0.5
    old = np.array([36.5, 15.5])  # x, y of the spot; the centre is (30.5, 20.5).
    spot = 255 * np.exp(-((x - old[0]) ** 2 + (y - old[1]) ** 2) / 8)
    image = np.repeat(spot[..., None], 3, axis=-1).astype(np.uint8)
    for seed in range(5):
        turn, right, down, growth, slant = generator(seed).uniform(-1, 1, 5)
        angle, slope = np.radians(40 * turn), np.tan(np.radians(20 * slant))
        rotation = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix = (1 + 0.3 * growth) * np.array(rotation) @ [[1, slope], [0, 1]]
        centre = np.array([30.5, 20.5])
        new = centre + (0.1 * right * 61, 0.1 * down * 41) + matrix @ (old - centre)
        moved = Affine(40, 0.1, 0.3, 20)(image, generator(seed))[..., 0].astype(float)
        found = [(moved * x).sum() / moved.sum(), (moved * y).sum() / moved.sum()]
        np.testing.assert_allclose(found, new, atol=0.1)


def test_affine_is_the_identity_without_changes_and_black_outside(photo):
    np.testing.assert_array_equal(Affine(0)(photo, generator(0)), photo)
    white = np.full((20, 20, 3), 255, np.uint8)
    for seed in range(5):
        shifted = Affine(0, 1.0)(white, generator(seed))[..., 0]
        assert (shifted.min(), shifted.max()) == (0, 255)


def test_color_jitter_applies_the_drawn_factors_in_the_drawn_order(photo):
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


def test_color_jitter_takes_a_strength_for_each_property(photo):
    order = {seed: tuple(generator(seed).permutation(3)) for seed in range(20)}
    for seed in range(20):
        random = generator(seed)
        random.permutation(3)
        factors = random.uniform([0.9, 0.8, 1.0], [1.1, 1.2, 1.0])
        picture = Image.fromarray(photo)
        for i in order[seed]:
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[i]
            picture = enhancer(picture).enhance(factors[i])
        jittered = ColorJitter(0.1, contrast=0.2, saturation=0.0)(photo, generator(seed))
        np.testing.assert_array_equal(jittered, np.asarray(picture))


def test_color_jitter_scales_brightness_by_at_most_its_strength():
    grey = np.full((4, 4, 3), 100, np.uint8)  # Grey has neither contrast nor saturation.
    values = [ColorJitter(0.4)(grey, generator(seed))[0, 0, 0] for seed in range(300)]
    assert 59 <= min(values) < 65
    assert 135 < max(values) <= 140
    assert abs(np.mean(values) - 100) < 4


def test_color_jitter_shifts_the_hue_as_colorsys_does():
    rows, columns = np.mgrid[:24, :20]
    image = np.stack([10 * rows, 12 * columns, 255 - 5 * (rows + columns)], -1).astype(np.uint8)
    shifts = []
    for seed in range(40):
        random = generator(seed)
        random.permutation(4)
        random.uniform(0, 1, 3)
        shifts.append(random.uniform(-0.4, 0.4))
        jittered = ColorJitter(0.0, hue=0.4)(image, generator(seed))
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3) / 255]
        shifted = [colorsys.hsv_to_rgb((h + shifts[-1]) % 1, s, v) for h, s, v in hsv]
        difference = jittered.reshape(-1, 3) - 255 * np.array(shifted)
        assert np.abs(difference).max() <= 18  # Three of 256 steps of the hue, 6 levels each.
        assert np.abs(difference).mean() < 2.5
    assert min(shifts) < -0.3
    assert max(shifts) > 0.3


def test_color_jitter_with_hue_draws_the_order_of_four_changes(photo):
    orders = set()
    for seed in range(300):
        random = generator(seed)
        order, factors = random.permutation(4), random.uniform(0.7, 1.3, 3)
        shift = random.uniform(-0.1, 0.1)
        picture = Image.fromarray(photo)
        for i in order:
            if i == 3:
                h, s, v = picture.convert("HSV").split()
                h = h.point([(level + int(shift * 255)) % 256 for level in range(256)])
                picture = Image.merge("HSV", (h, s, v)).convert("RGB")
                continue
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[i]
            picture = enhancer(picture).enhance(factors[i])
        jittered = ColorJitter(0.3, hue=0.1)(photo, generator(seed))
        np.testing.assert_array_equal(jittered, np.asarray(picture))
        orders.add(tuple(order))
    assert len(orders) == 24


def erased_box(image: np.ndarray, seed: int, probability: float = 1.0):
    """Height and width of the erased box; None where nothing was."""
    changed = (Erase(probability)(image, generator(seed)) != image).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert changed.sum() == len(rows) * len(columns)  # One full rectangle.
    if not changed.any():
        return None
    assert np.ptp(rows) + 1 == len(rows)
    assert np.ptp(columns) + 1 == len(columns)
    return len(rows), len(columns)


def test_erase_happens_with_its_probability():
    image = np.zeros((20, 20, 3), np.float32)
    erased = [erased_box(image, seed, 0.25) is not None for seed in range(1000)]
    assert abs(np.mean(erased) - 0.25) < 0.04
    assert Erase(0.0)(image, generator(0)) is image


def test_erase_keeps_the_bounds_of_its_rectangles():
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


def test_erase_fills_with_noise_of_imagenets_mean_and_deviation():
    image = np.full((400, 400, 3), 9, np.float32)
    erased = Erase(1.0)(image, generator(1))
    assert erased.dtype == np.float32
    noise = erased[(erased != 9).any(-1)]  # N 3, in [-1, 1] but for the tails.
    assert len(noise) > 5000
    np.testing.assert_allclose(noise.mean(0), 2 * np.array([0.485, 0.456, 0.406]) - 1, atol=0.03)
    np.testing.assert_allclose(noise.std(0), 2 * np.array([0.229, 0.224, 0.225]), atol=0.02)
    correlation = np.corrcoef(noise.T)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 0.05  # Each channel for itself.


def test_erase_depends_on_the_generator_and_keeps_its_input():
    image = np.zeros((20, 20, 3), np.float32)
    a, b, c = (Erase(1.0)(image, generator(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert not image.any()


def test_erase_returns_an_image_too_small_for_any_rectangle():
    for seed in range(50):
        assert erased_box(np.zeros((1, 1, 3), np.float32), seed) is None
