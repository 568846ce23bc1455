"""Steps of `config.data.augment` that change colours or blur: images H W 3 uint8."""

import dataclasses
from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.config.fields import bounds

Probability = Annotated[float, bounds(least=0, most=1)]


@dataclasses.dataclass(frozen=True)
class ThreeAugment:
    """Converts to grey, solarises from 128 on, or blurs with a radius of 0.1 to 2, at random.

    From DeiT III (arXiv:2204.07118). Draws which of the three, and the radius of a blur.
    """

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        match random.integers(3):
            case 0:
                return _grayscale(image)
            case 1:
                return _solarize(image, 128)
            case _:
                return _blur(image, random.uniform(0.1, 2))


@dataclasses.dataclass(frozen=True)
class Grayscale:
    """Converts to grey with a probability, as RandomGrayscale of torchvision and in DINO."""

    probability: Probability

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return _grayscale(image) if random.random() < self.probability else image


@dataclasses.dataclass(frozen=True)
class Solarize:
    """Inverts the values from a threshold on, with a probability, as in DINO."""

    probability: Probability
    threshold: Annotated[int, bounds(least=0, most=256)] = 128

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return _solarize(image, self.threshold) if random.random() < self.probability else image


@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """Blurs with a probability, by Pillow's GaussianBlur, as in DINO.

    Args:
      min_radius, max_radius: bounds of the radius in pixels, which is uniform: the standard
        deviation of the Gaussian that Pillow approximates.
    """

    probability: Probability
    min_radius: Annotated[float, bounds(least=0, most=100)] = 0.1
    max_radius: Annotated[float, bounds(least=0, most=100)] = 2.0

    def __post_init__(self):
        if self.min_radius > self.max_radius:
            raise ValueError(
                f"min_radius, {self.min_radius}, exceeds max_radius, {self.max_radius}"
            )

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        if random.random() >= self.probability:
            return image
        return _blur(image, random.uniform(self.min_radius, self.max_radius))


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast and saturation by factors of 1 +- their strength, and the hue.

    As in torchvision. Draws whether the image is changed if `prob` is below 1, the order of the
    changes, the three factors, and the shift if `hue` is not 0.

    Args:
      brightness, contrast, saturation: the strengths; None for that of brightness.
      hue: largest shift of the hue, to either side, as a fraction of the colour circle.
      prob: probability that the image is changed.
    """

    brightness: Annotated[float, bounds(least=0, most=1)]
    contrast: Annotated[float | None, bounds(least=0, most=1)] = None
    saturation: Annotated[float | None, bounds(least=0, most=1)] = None
    hue: Annotated[float, bounds(least=0, most=0.5)] = 0.0
    prob: Probability = 1.0

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        if self.prob < 1 and random.random() >= self.prob:
            return image
        picture = Image.fromarray(image)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        strengths = np.array(
            [
                self.brightness if strength is None else strength
                for strength in (self.brightness, self.contrast, self.saturation)
            ]
        )
        order = random.permutation(4 if self.hue else 3)
        factors = random.uniform(1 - strengths, 1 + strengths)
        shift = random.uniform(-self.hue, self.hue) if self.hue else 0.0
        for i in order:
            if i < 3:
                picture = enhancers[i](picture).enhance(factors[i])
            else:
                picture = _shift_hue(picture, shift)
        return np.asarray(picture)


def _shift_hue(picture: Image.Image, shift: float) -> Image.Image:
    """Returns the picture with its hue shifted by a fraction of the colour circle."""
    hue, saturation, value = picture.convert("HSV").split()
    hue = Image.fromarray(np.asarray(hue) + np.uint8(int(shift * 255) % 256))  # Wraps around.
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _grayscale(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def _solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    return np.asarray(ImageOps.solarize(Image.fromarray(image), threshold))


def _blur(image: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
