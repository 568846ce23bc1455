"""RandAugment, 3-Augment, colour jitter and random erasing of single images.

Randomness comes from the generator that is handed in, drawn in the order the code reads, so
an image's augmentation is a pure function of that generator's seed.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.config.schema import Data
from vit_jax.data.randaugment import CorrectedRandAugment, PublishedRandAugment
from vit_jax.errors import ConfigError

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # H W 3 uint8 -> the same.

PIXEL_MEAN = np.array([0.485, 0.456, 0.406])  # ImageNet's, of RGB in [0, 1].
PIXEL_STD = np.array([0.229, 0.224, 0.225])


def make_augment(
    *,
    randaug: str = Data.randaug,
    layers: int = Data.randaug_layers,
    magnitude: float = Data.randaug_magnitude,
    std: float = Data.randaug_std,
    prob: float = Data.randaug_prob,
    three_augment: bool = Data.three_augment,
    color_jitter: float = Data.color_jitter,
) -> Augment | None:
    """What happens to a training image after crop and flip: RandAugment, 3-Augment, jitter.

    None when nothing is asked for. Raises ConfigError for what 'published' does not have.
    """
    steps: list[Augment] = []
    if randaug == "published":
        if std or prob != 1:
            raise ConfigError(
                f"data.randaug_std is {std} and randaug_prob {prob}; randaug='published' has 0 "
                "and 1 only, 'corrected' has any."
            )
        steps.append(PublishedRandAugment(layers, magnitude))
    elif randaug == "corrected":
        steps.append(CorrectedRandAugment(layers, magnitude, std, prob))
    if three_augment:
        steps.append(ThreeAugment())
    if color_jitter:
        steps.append(ColorJitter(color_jitter))
    return Chain(tuple(steps)) if steps else None


@dataclasses.dataclass(frozen=True)
class Chain:
    """One augmentation after the other."""

    steps: tuple[Augment, ...]

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        for step in self.steps:
            image = step(image, random)
        return image


@dataclasses.dataclass(frozen=True)
class ThreeAugment:
    """Grey, solarised from 128 on or blurred by a radius of 0.1 to 2, a third of the images each.

    From DeiT III (arXiv:2204.07118). Draws which of the three, and the radius for a blur.
    """

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        picture = Image.fromarray(image)
        match random.integers(3):
            case 0:
                picture = picture.convert("L").convert("RGB")
            case 1:
                picture = ImageOps.solarize(picture, 128)
            case 2:
                picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))
        return np.asarray(picture)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation by factors of 1 +- `strength`, in any order.

    Draws the order, then the three factors.
    """

    strength: float

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        picture = Image.fromarray(image)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        order = random.permutation(3)
        factors = random.uniform(max(0, 1 - self.strength), 1 + self.strength, 3)
        for i in order:
            picture = enhancers[i](picture).enhance(factors[i])
        return np.asarray(picture)


def erase(image: np.ndarray, probability: float, random: np.random.Generator) -> np.ndarray:
    """With that probability, noise in place of a rectangle: H W 3 float32 in [-1, 1].

    As in DeiT: the area is 0.02 to 1/3 of the image and the aspect, height over width, 0.3 to
    1/0.3; after ten rectangles that do not fit, nothing. DeiT's noise is standard normal after
    ImageNet's mean and deviation; here it is the same noise in [-1, 1], a few values beyond.
    """
    if random.random() >= probability:
        return image
    height, width, _ = image.shape
    for _ in range(10):
        area = random.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(random.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            noise = random.standard_normal((h, w, 3)) * PIXEL_STD + PIXEL_MEAN
            image = image.copy()
            image[top : top + h, left : left + w] = noise * 2 - 1
            return image
    return image
