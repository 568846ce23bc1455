"""From pixels to the model's input: crop, flip, resize, and the range [-1, 1].

The published weights take (x - 127.5) / 127.5, without ImageNet's mean and deviation.
"""

import dataclasses
import functools
import math

import numpy as np
from PIL import Image

from vit_jax.schema import Data

Size = tuple[int, int]  # Height, width.
PILLOWS = {"antialias": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize(image: np.ndarray, size: Size, resample: str = Data.resample) -> np.ndarray:
    """H W 3 uint8 -> h w 3, with half-pixel centres.

    'antialias' is Pillow's bilinear: a wider filter when shrinking, rounded to whole values;
    'bicubic' is Pillow's, too. 'tf_bilinear' is `tf.image.resize` without antialiasing, as the
    official code trained and evaluated: two neighbours on each axis whatever the scale, not
    rounded.
    """
    if image.shape[:2] == tuple(size):
        return image
    if resample in PILLOWS:
        resized = Image.fromarray(image).resize((size[1], size[0]), PILLOWS[resample])
        return np.asarray(resized)
    top, bottom, y = _neighbours(image.shape[0], size[0])
    left, right, x = _neighbours(image.shape[1], size[1])
    rows = image[top] + (image[bottom].astype(np.float32) - image[top]) * y[:, None, None]
    return rows[:, left] + (rows[:, right] - rows[:, left]) * x[None, :, None]


@functools.lru_cache(1024)
def _neighbours(old: int, new: int):
    """For each new pixel, its two old neighbours and the weight of the second."""
    centres = (np.arange(new, dtype=np.float32) + 0.5) * np.float32(old / new) - 0.5
    floor = np.floor(centres)
    first = np.clip(floor.astype(int), 0, old - 1)
    second = np.clip(floor.astype(int) + 1, 0, old - 1)
    return first, second, (centres - floor).astype(np.float32)


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """[0, 255] -> float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def inception_box(height: int, width: int, area: tuple[float, float], random) -> tuple:
    """Top, left, height, width of a crop: area and aspect 3/4 to 4/3 at random (GoogLeNet).

    After ten boxes that do not fit, the largest central box of a permitted aspect.
    """
    for _ in range(10):
        target = random.uniform(*area) * height * width
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            return int(top), int(left), h, w
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def _cut(image: np.ndarray, box: tuple) -> np.ndarray:
    top, left, height, width = box
    return image[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class TrainRecipe:
    """Crop, flip and resize at random: (H W 3 uint8, generator) -> h w 3 in [-1, 1]."""

    size: Size
    crop: str = Data.crop
    crop_area: tuple[float, float] = Data.crop_area
    flip: bool = Data.flip
    resample: str = Data.resample

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        if self.crop == "inception":
            image = _cut(image, inception_box(*image.shape[:2], self.crop_area, random))
        if self.flip and random.random() < 0.5:
            image = image[:, ::-1]
        return to_unit_range(resize(np.ascontiguousarray(image), self.size, self.resample))


@dataclasses.dataclass(frozen=True)
class EvalRecipe:
    """What every evaluated or predicted image goes through: H W 3 uint8 -> h w 3 in [-1, 1].

    'resize' stretches the whole image, as the official code does; 'center' first resizes
    so that the target is `crop_fraction` of the short side, then cuts out the centre.
    """

    size: Size
    crop: str = Data.eval_crop
    resample: str = Data.resample
    crop_fraction: float = Data.crop_fraction

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self.crop == "resize":
            return to_unit_range(resize(image, self.size, self.resample))
        height, width = image.shape[:2]
        scale = max(self.size[0] / height, self.size[1] / width) / self.crop_fraction
        image = resize(image, (round(height * scale), round(width * scale)), self.resample)
        top, left = (image.shape[0] - self.size[0]) // 2, (image.shape[1] - self.size[1]) // 2
        return to_unit_range(_cut(image, (top, left, *self.size)))


def preprocess(images, model, recipe: EvalRecipe | None = None) -> np.ndarray:
    """Images B H W 3 uint8 (or a list of H W 3 of any size) -> B h w 3 for the model.

    Without a recipe, the official one: the whole image resized, pixels in [-1, 1].
    Raises ValueError for anything but uint8 colour images.
    """
    recipe = recipe or EvalRecipe(model.image_size, "resize", "tf_bilinear")
    arrays = [np.asarray(image) for image in images]
    for array in arrays:
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
            raise ValueError(
                f"an image is {array.shape} {array.dtype}; preprocess takes a batch, or a list, of "
                "H W 3 uint8."
            )
    return np.stack([recipe(array) for array in arrays])
