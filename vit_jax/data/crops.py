"""Random crops of training images: the first step of `config.data.augment`."""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Protocol

import numpy as np

from vit_jax.config.fields import bounds
from vit_jax.data.view import Box, Size, View, box_view, crop_view, window_view

TENSORFLOW_ASPECTS = (0.75, 1.33)  # Default of `tf.image.sample_distorted_bounding_box`.
TORCHVISION_ASPECTS = (3 / 4, 4 / 3)  # Default of `torchvision.transforms.RandomResizedCrop`.
RANDOM_CROP = 7 / 8  # Of the short side resized: 224 of 256.
PADDING = 4  # Pixels on each side (DeiT III, arXiv:2204.07118).


class Crop(Protocol):
    """First step of an augmentation: selects the part of an image to resize."""

    def view(self, old: Size, new: Size, random: np.random.Generator) -> View:
        """Returns a view, of size `new`, of an image of size `old`."""


def inception_box(
    height: int,
    width: int,
    area: tuple[float, float],
    random: np.random.Generator,
    *,
    aspects: tuple[float, float] = TENSORFLOW_ASPECTS,
    covered: float = 0.0,
    attempts: int = 100,
) -> Box:
    """Returns a box drawn as by `tf.image.sample_distorted_bounding_box`.

    Aspect and height are uniform, so small areas are more frequent than large ones. As in
    TensorFlow, a box smaller than the image never touches its last row or column. After `attempts`
    boxes that do not fit, or whose area is below `covered`, it is the whole image.
    """
    least_area, most_area = (fraction * height * width for fraction in area)
    for _ in range(attempts):
        aspect = random.uniform(*aspects)
        most = round(math.sqrt(most_area / aspect))
        if round(most * aspect) > width:
            most = math.floor((width + 0.5) / aspect)
            most -= round(most * aspect) > width
        most = min(most, height)
        least = min(round(math.sqrt(least_area / aspect)), most)
        h = int(random.integers(least, most, endpoint=True))
        h += h * round(h * aspect) < least_area  # Sides are rounded: one row more or less.
        h -= h * round(h * aspect) > most_area
        w = round(h * aspect)
        if 0 < h <= height and 0 < w <= width and least_area <= h * w <= most_area:
            top, left = random.integers(max(height - h, 1)), random.integers(max(width - w, 1))
            if h * w >= covered * height * width:
                return int(top), int(left), h, w
    return 0, 0, height, width


def random_resized_box(
    height: int, width: int, area: tuple[float, float], random: np.random.Generator
) -> Box:
    """Returns a box drawn as by `torchvision.transforms.RandomResizedCrop`.

    The area and the logarithm of the aspect are uniform. After ten boxes that do not fit, it is
    the largest central box of a permitted aspect.
    """
    narrowest, widest = TORCHVISION_ASPECTS
    for _ in range(10):
        target = random.uniform(*area) * height * width
        aspect = math.exp(random.uniform(math.log(narrowest), math.log(widest)))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            return int(top), int(left), h, w
    w = min(width, round(height * widest))
    h = min(height, round(width * widest))
    return (height - h) // 2, (width - w) // 2, h, w


@dataclasses.dataclass(frozen=True)
class InceptionCrop:
    """Crops a random box as TensorFlow, the official code and big_vision do.

    Args:
      min_area, max_area: bounds of the area, as fractions of the image.
    """

    min_area: Annotated[float, bounds(above=0, most=1)] = 0.05
    max_area: Annotated[float, bounds(above=0, most=1)] = 1.0
    draw: ClassVar[Callable[..., Box]] = staticmethod(inception_box)

    def __post_init__(self):
        if self.min_area > self.max_area:
            raise ValueError(f"min_area, {self.min_area}, exceeds max_area, {self.max_area}")

    def view(self, old: Size, new: Size, random: np.random.Generator) -> View:
        return box_view(self.draw(*old, (self.min_area, self.max_area), random), new)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(InceptionCrop):
    """Crops a random box as torchvision, DeiT, MAE and timm do.

    Args:
      min_area, max_area: bounds of the area, as fractions of the image.
    """

    min_area: Annotated[float, bounds(above=0, most=1)] = 0.08
    draw: ClassVar[Callable[..., Box]] = staticmethod(random_resized_box)


@dataclasses.dataclass(frozen=True)
class AlgoPerfCrop:
    """Crops a random box as the ImageNet workloads of AlgoPerf do.

    TensorFlow draws ten boxes of 0.08 to 1 of the area, and rejects those below 0.1. If no box
    fits, or if it is the whole image, the crop is that of evaluation.
    """

    def view(self, old: Size, new: Size, random: np.random.Generator) -> View:
        aspects, area = TORCHVISION_ASPECTS, (0.08, 1.0)
        box = inception_box(*old, area, random, aspects=aspects, covered=0.1, attempts=10)
        if box == (0, 0, *old):
            return crop_view("algoperf", old, new, RANDOM_CROP, None, (0.5, 0.5))
        return box_view(box, new)


@dataclasses.dataclass(frozen=True)
class Resize:
    """Stretches the whole image to the size."""

    def view(self, old: Size, new: Size, random: np.random.Generator) -> View:
        return box_view((0, 0, *old), new)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Resizes the short side to 8/7 of the size, and crops a random window."""

    def view(self, old: Size, new: Size, random: np.random.Generator) -> View:
        return window_view(old, new, RANDOM_CROP, random.random(2))


@dataclasses.dataclass(frozen=True)
class PadCrop:
    """Resizes the short side to the size, pads by 4 pixels, crops a random window (DeiT III)."""

    def view(self, old: Size, new: Size, random: np.random.Generator) -> View:
        return window_view(old, new, 1, random.random(2), PADDING)
