"""RandAugment (arXiv:1909.13719): a few operations, drawn at random, on one H W 3 uint8 image.

There are three kinds: PublishedRandAugment, which made the published numbers of AugReg
(arXiv:2106.10270) and of the plain ViT-S/16 (76.5 %, arXiv:2205.01580), quirks included;
AlgoPerfRandAugment, which differs from it in one operation; and IncreasingRandAugment, whose
severities increase with the magnitude, as in DeiT and timm.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.config.fields import bounds

FULL_MAGNITUDE = 10  # Magnitude at which an operation has the severity of its table.
FILL = 128  # Grey of pixels from outside of the image.
VALUES = np.arange(256)
GREY = np.array([0.2989, 0.5870, 0.1140], np.float32)  # tf.image.rgb_to_grayscale.


def _sign(random: np.random.Generator) -> int:
    return 1 if random.random() < 0.5 else -1


# RandAugment as published.
#
# From big_vision/pp/archive/autoaugment.py (a fork of the EfficientNet code for TPUs), which
# needs TensorFlow Addons. Arithmetic is float32 and truncates, as there. Its quirks:
#   - A probability is drawn for every operation and ignored: the chosen one is always applied.
#   - The magnitude is not clipped: the medium and strong settings of AugReg are 15 and 20.
#   - Severities of Solarize and Posterize decrease with the magnitude, those of the enhancements
#     are smallest at 5, and magnitude 0 is not the identity.
#   - Distances are in pixels for any size of the image.


@dataclasses.dataclass(frozen=True)
class PublishedRandAugment:
    """Applies `layers` operations of PUBLISHED, drawn uniformly, all with the same magnitude."""

    layers: Annotated[int, bounds(least=1)]
    magnitude: Annotated[float, bounds(least=0)]

    def operations(self) -> dict[str, Callable]:
        """Returns the operations by name."""
        return PUBLISHED

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        operations = tuple(self.operations().values())
        for _ in range(self.layers):
            operation = operations[random.integers(len(operations))]
            image = operation(image, self.magnitude / FULL_MAGNITUDE, random)
        return image


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table.astype(np.uint8)[image]


def _auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to [0, 255]."""
    stretched = []
    for channel in np.moveaxis(image, -1, 0):
        low, high = np.float32(channel.min()), np.float32(channel.max())
        scale = 255 / (high - low) if high > low else np.float32(1)
        offset = -low * scale if high > low else np.float32(0)
        table = VALUES.astype(np.float32) * scale + offset
        stretched.append(_look_up(channel, np.clip(table, 0, 255)))
    return np.stack(stretched, axis=-1)


def _equalize(image: np.ndarray) -> np.ndarray:
    return np.asarray(ImageOps.equalize(Image.fromarray(image)))


def _posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the highest bits: TensorFlow shifts uint8 by at most 7, and takes -1 for 255.

    So the highest bit remains at 0 bits, the image is unchanged from magnitude 20 on (8 bits), and
    the highest bit remains beyond 22.5 (9 bits).
    """
    shift = min((8 - bits) % 256, 7)
    return _look_up(image, VALUES >> shift << shift)


def _solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts values from the threshold on, which TensorFlow wraps into uint8.

    256 and 512 (magnitudes 10 and 20) are 0 and invert the whole image; 384 (15) is 128.
    """
    return _look_up(image, np.where(threshold % 256 > VALUES, VALUES, 255 - VALUES))


def _solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    return _look_up(image, np.where(VALUES < 128, np.minimum(VALUES + addition, 255), VALUES))


def _blend(degenerate: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """Interpolates from the degenerate image (0) to the image (1), and extrapolates beyond (2)."""
    degenerate = degenerate.astype(np.float32)
    blended = degenerate + np.float32(factor) * (image.astype(np.float32) - degenerate)
    return np.clip(blended, 0, 255, out=blended).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    """Converts H W 3 to H W 1 as tf.image does, in [0, 1]; white remains white."""
    grey = image.astype(np.float32) * np.float32(1 / 255) @ GREY
    return (grey * np.float32(255.5)).astype(np.uint8)[..., None]


def _mean_grey(image: np.ndarray) -> np.ndarray:
    return _grey(image).mean().astype(np.uint8)


def _smooth(image: np.ndarray) -> np.ndarray:
    """Averages 3x3 pixels, the centre with weight 5; keeps the borders."""
    height, width, _ = image.shape
    smooth = image.copy()
    if height < 3 or width < 3:
        return smooth
    pixels, total = image.astype(np.float32), np.float32(0)
    for y, x in np.ndindex(3, 3):
        weight = np.float32((5 if y == x == 1 else 1) / 13)
        total = total + weight * pixels[y : height - 2 + y, x : width - 2 + x]
    smooth[1:-1, 1:-1] = np.clip(total, 0, 255).astype(np.uint8)
    return smooth


def _enhance(degenerate: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """Returns the operation that blends a degenerate image (0.1) to its opposite (1.9)."""
    return lambda image, level, random: _blend(degenerate(image), image, level * 1.8 + 0.1)


def _warp(image: np.ndarray, rows: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """Samples the nearest pixel at the affine map of each output pixel (x, y, 1); else FILL.

    Pixels have integer coordinates; a half is rounded away from zero.
    """
    height, width, _ = image.shape
    (a, b, c), (d, e, f) = np.array(rows, np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    # In float64 a half can be added to a float32 coordinate without rounding it up.
    from_x, from_y = ((u * x + v * y + w).astype(float) for u, v, w in ((a, b, c), (d, e, f)))
    from_x, from_y = ((p + np.copysign(0.5, p)).astype(int) for p in (from_x, from_y))
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    pixels = image.reshape(-1, 3)
    warped = pixels.take(from_y * width + from_x, axis=0, mode="clip")
    warped[~inside] = FILL
    return warped


def _rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates counter-clockwise about the centre."""
    bottom, right = np.float32(image.shape[0] - 1), np.float32(image.shape[1] - 1)
    angle = np.float32(degrees * (math.pi / 180))
    cos, sin = np.cos(angle), np.sin(angle)
    left = (right - (cos * right - sin * bottom)) / 2
    top = (bottom - (sin * right + cos * bottom)) / 2
    return _warp(image, ((cos, -sin, left), (sin, cos, top)))


def _shear_x(image: np.ndarray, factor: float) -> np.ndarray:
    return _warp(image, ((1, factor, 0), (0, 1, 0)))


def _shear_y(image: np.ndarray, factor: float) -> np.ndarray:
    return _warp(image, ((1, 0, 0), (factor, 1, 0)))


def _translate_x(image: np.ndarray, pixels: float) -> np.ndarray:
    return _warp(image, ((1, 0, pixels), (0, 1, 0)))


def _translate_y(image: np.ndarray, pixels: float) -> np.ndarray:
    return _warp(image, ((1, 0, 0), (0, 1, pixels)))


def _move(warp: Callable, scale: float) -> Callable:
    """Returns the operation that warps by up to `scale`, in either direction."""
    return lambda image, level, random: warp(image, _sign(random) * (level * scale))


def _cutout(image: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    """Fills a square of side 2 pad around a random pixel with grey, cut at the border."""
    pad = int(level * 40)
    y, x = random.integers(image.shape[0]), random.integers(image.shape[1])
    image = image.copy()
    image[max(0, y - pad) : y + pad, max(0, x - pad) : x + pad] = FILL
    return image


# (image, magnitude / 10, generator) -> image.
PUBLISHED = {
    "AutoContrast": lambda image, level, random: _auto_contrast(image),
    "Equalize": lambda image, level, random: _equalize(image),
    "Invert": lambda image, level, random: 255 - image,
    "Rotate": _move(_rotate, 30),  # Degrees.
    "Posterize": lambda image, level, random: _posterize(image, int(level * 4)),
    "Solarize": lambda image, level, random: _solarize(image, int(level * 256)),
    "Color": _enhance(_grey),
    "Contrast": _enhance(_mean_grey),
    "Brightness": _enhance(np.zeros_like),
    "Sharpness": _enhance(_smooth),
    "ShearX": _move(_shear_x, 0.3),
    "ShearY": _move(_shear_y, 0.3),
    "TranslateX": _move(_translate_x, 100),  # Pixels.
    "TranslateY": _move(_translate_y, 100),
    "Cutout": _cutout,
    "SolarizeAdd": lambda image, level, random: _solarize_add(image, int(level * 110)),
}


# RandAugment of AlgoPerf.
#
# From the ImageNet workloads of mlcommons/algorithmic-efficiency, a fork of the same code. Contrast
# blends from a grey that is meant to be the mean, and is the sum of the histogram, the number of
# pixels, over 256: 196 for any image of 224x224.


@dataclasses.dataclass(frozen=True)
class AlgoPerfRandAugment(PublishedRandAugment):
    """Applies `layers` operations of ALGOPERF, drawn uniformly, all with the same magnitude."""

    def operations(self) -> dict[str, Callable]:
        return ALGOPERF


def _histogram_grey(image: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    return np.array(min(height * width // 256, 255), np.uint8)


ALGOPERF = PUBLISHED | {"Contrast": _enhance(_histogram_grey)}


# RandAugment with increasing severities.
#
# From DeiT (arXiv:2012.12877) and its recipe rand-m9-mstd0.5-inc1: magnitude 9, std 0.5, and prob
# 0.5, the default of timm. Operations are Pillow's; warps are bicubic, and translations relative to
# the image. Unlike there, the fill is grey instead of ImageNet's mean colour (124, 116, 104), and
# Posterize keeps all bits at magnitude 0 (there 4) and one at 10 (there none: a black image).


@dataclasses.dataclass(frozen=True)
class IncreasingRandAugment:
    """Applies `layers` operations of INCREASING, drawn uniformly, each with probability `prob`.

    The magnitude is normal with standard deviation `std`, clipped to [0, 10]. Each layer draws the
    operation, whether it is applied, the magnitude, and the sign, in any case.
    """

    layers: Annotated[int, bounds(least=1)]
    magnitude: Annotated[float, bounds(least=0)]
    _: dataclasses.KW_ONLY
    std: Annotated[float, bounds(least=0)] = 0.0
    prob: Annotated[float, bounds(least=0, most=1)] = 1.0

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        operations = tuple(INCREASING.values())
        for _ in range(self.layers):
            operation = operations[random.integers(len(operations))]
            is_applied = random.random() < self.prob
            magnitude = np.clip(random.normal(self.magnitude, self.std), 0, FULL_MAGNITUDE)
            sign = _sign(random)
            if is_applied:
                level = float(magnitude) / FULL_MAGNITUDE
                image = np.asarray(operation(Image.fromarray(image), level, sign))
        return image


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    size, method = image.size, Image.Transform.AFFINE
    return image.transform(size, method, matrix, Image.Resampling.BICUBIC, fillcolor=(FILL,) * 3)


def _turn(image: Image.Image, level: float, sign: int) -> Image.Image:
    degrees = sign * level * 30
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(FILL,) * 3)


def _fewer_bits(image: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.posterize(image, max(1, 4 - int(level * 4)) if level else 8)


def _brighten_darks(image: Image.Image, level: float, sign: int) -> Image.Image:
    return image.point([min(i + int(level * 110), 255) if i < 128 else i for i in range(256)] * 3)


def _more_or_less(enhancer: Callable) -> Callable:
    """Returns an enhancement by a factor of 1 +- 0.9 at full magnitude."""
    return lambda image, level, sign: enhancer(image).enhance(max(0.1, 1 + sign * level * 0.9))


# (Pillow image, magnitude / 10, -1 or 1) -> Pillow image.
INCREASING = {
    "AutoContrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, sign: ImageOps.equalize(image),
    "Invert": lambda image, level, sign: ImageOps.invert(image),
    "Rotate": _turn,
    "Posterize": _fewer_bits,  # 4 to 1 bits.
    "Solarize": lambda image, level, sign: ImageOps.solarize(image, 256 - int(level * 256)),
    "SolarizeAdd": _brighten_darks,
    "Color": _more_or_less(ImageEnhance.Color),
    "Contrast": _more_or_less(ImageEnhance.Contrast),
    "Brightness": _more_or_less(ImageEnhance.Brightness),
    "Sharpness": _more_or_less(ImageEnhance.Sharpness),
    "ShearX": lambda image, level, sign: _affine(image, 1, sign * level * 0.3, 0, 0, 1, 0),
    "ShearY": lambda image, level, sign: _affine(image, 1, 0, 0, sign * level * 0.3, 1, 0),
    "TranslateX": lambda image, level, sign: _affine(
        image, 1, 0, sign * level * 0.45 * image.width, 0, 1, 0
    ),
    "TranslateY": lambda image, level, sign: _affine(
        image, 1, 0, 0, 0, 1, sign * level * 0.45 * image.height
    ),
}
