"""Grey, solarisation, blur and jitter with a probability, against their formulas."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from vit_jax.data.augment import normalize
from vit_jax.data.color_steps import ColorJitter, GaussianBlur, Grayscale, Solarize
from vit_jax.errors import ConfigError


@pytest.fixture(scope="module")
def photo(photos) -> np.ndarray:
    return np.ascontiguousarray(photos[0][100:148, 200:240])


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("step", [Grayscale(0.3), Solarize(0.3), GaussianBlur(0.3, 1, 1)])
def test_step_happens_with_its_probability(step, photo):
    is_changed = [(step(photo, generator(seed)) != photo).any() for seed in range(1000)]
    assert abs(np.mean(is_changed) - 0.3) < 0.04


@pytest.mark.parametrize("step", [Grayscale, Solarize, GaussianBlur, ColorJitter])
def test_step_never_or_always_happens_at_the_bounds(step, photo):
    name = "prob" if step is ColorJitter else "probability"
    options = {ColorJitter: {"brightness": 0.9}, GaussianBlur: {"min_radius": 1.0}}.get(step, {})
    for seed in range(20):
        never, always = (step(**options, **{name: p}) for p in (0.0, 1.0))
        assert never(photo, generator(seed)) is photo
        assert (always(photo, generator(seed)) != photo).any()


def test_grayscale_has_the_luma_of_bt_601_in_all_channels(photo):
    grey = Grayscale(1)(photo, generator(0))
    luma = photo.astype(float) @ (0.299, 0.587, 0.114)  # As torchvision's rgb_to_grayscale.
    for channel in range(3):
        np.testing.assert_allclose(grey[..., channel], luma, atol=0.51)


@pytest.mark.parametrize("threshold", [0, 1, 128, 255, 256])
def test_solarize_inverts_the_values_from_the_threshold_on(threshold):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    expected = np.where(values < threshold, values, 255 - values)
    np.testing.assert_array_equal(Solarize(1, threshold)(values, generator(0)), expected)


def test_gaussian_blur_has_a_uniform_radius_of_pillows_blur(photo):
    radii = []
    for seed in range(200):
        random = generator(seed)
        random.random()
        radii.append(random.uniform(0.1, 2))
        expected = Image.fromarray(photo).filter(ImageFilter.GaussianBlur(radii[-1]))
        blurred = GaussianBlur(1)(photo, generator(seed))
        np.testing.assert_array_equal(blurred, np.asarray(expected))
    assert 0.1 <= min(radii) < 0.2
    assert 1.9 < max(radii) <= 2


@pytest.mark.parametrize("radius", [1.0, 2.0])
def test_gaussian_blur_is_close_to_a_gaussian_of_its_radius(photo, radius):
    blurred = GaussianBlur(1, radius, radius)(photo, generator(0)).astype(float)
    expected = ndimage.gaussian_filter(photo.astype(float), (radius, radius, 0), mode="nearest")
    assert np.abs(blurred - expected).mean() < 1
    assert np.abs(blurred - photo).mean() > 3


def test_color_jitter_with_a_probability_is_the_jitter_after_one_more_draw(photo):
    num_changed = 0
    for seed in range(300):
        jittered = ColorJitter(0.4, 0.4, 0.2, 0.1, prob=0.8)(photo, generator(seed))
        random = generator(seed)
        if random.random() < 0.8:
            expected = ColorJitter(0.4, 0.4, 0.2, 0.1)(photo, random)
            np.testing.assert_array_equal(jittered, expected)
            num_changed += 1
        else:
            assert jittered is photo
    assert 210 < num_changed < 270


def test_augmentation_of_dino_is_a_valid_string():
    jitter = "color_jitter(0.4,0.4,0.2,0.1,0.8)"
    text = f"random_resized_crop(0.4)|flip|{jitter}|grayscale(0.2)|gaussian_blur(0.1)|solarize(0.2)"
    assert normalize(text) == text
    assert normalize("resize|gaussian_blur(0.5,0.1,2)|solarize(0.2,128)") == (
        "resize|gaussian_blur(0.5)|solarize(0.2)"
    )


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("grayscale", "missing a required argument: 'probability'"),
        ("grayscale(1.5)", "grayscale.probability is 1.5; it must be at most 1"),
        ("solarize(0.2,300)", "solarize.threshold is 300; it must be at most 256"),
        ("gaussian_blur(0.5,3)", "min_radius, 3.0, exceeds max_radius, 2.0"),
        ("color_jitter(0.3,prob=-1)", "color_jitter.prob is -1.0; it must be at least 0"),
    ],
)
def test_wrong_argument_is_an_error_in_one_line(step, message):
    with pytest.raises(ConfigError) as caught:
        normalize(f"resize|{step}")
    assert str(caught.value).startswith("config.data.augment")
    assert message in str(caught.value)
