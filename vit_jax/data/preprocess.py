"""Recipes that turn an image into the model's input: crop, resize, augment, scale to [-1, 1].

The published weights take (x - 127.5) / 127.5, without ImageNet's mean and deviation.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data import augment, decode
from vit_jax.data.decode import Encoded, Pixels
from vit_jax.data.view import Box, Size, View, box_view, crop_view
from vit_jax.errors import ConfigError

PILLOWS = {"antialias": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
POSITIONS = ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))  # The centre, then the corners.
Columns = dict[str, tuple[tuple[int, ...], np.dtype]]  # Column of a batch -> shape and dtype.


def resize(image: Pixels, size: Size, resample: str) -> np.ndarray:
    """Resizes H W 3 uint8 to h w 3, with half-pixel centres.

    'antialias' and 'bicubic' are Pillow's filters, which widen when they shrink an image, and
    round to whole values. 'tf_bilinear' is `tf.image.resize` without antialiasing, as the
    official code trained and evaluated: two neighbours on each axis whatever the scale, not
    rounded. 'tf_bicubic' is the same with four neighbours, as in AlgoPerf; values can leave
    [0, 255]. 'tf_bilinear_uint8' cuts off the fractions, as big_vision does in training.
    'tf_area_uint8' averages the area of each new pixel and cuts off fractions, as big_vision does
    in evaluation.
    """
    return np.asarray(_resized(image, size, resample, "pillow"))


def _resized(
    image: Pixels, size: Size, resample: str, decoder: str, is_rounded: bool = False
) -> Pixels:
    """Resizes as `resize`, without the copy from Pillow's memory to numpy's.

    Args:
      decoder: with simplejpeg, OpenCV computes tf_bilinear.
      is_rounded: OpenCV may round to whole values, which is faster.
    """
    if _size(image) == tuple(size):
        return image
    if resample in PILLOWS:
        if isinstance(image, np.ndarray):
            image = Image.fromarray(np.ascontiguousarray(image))
        return image.resize((size[1], size[0]), PILLOWS[resample])
    image = np.asarray(image)
    if resample == "tf_area_uint8":
        return _area(image, size).astype(np.uint8)
    if resample == "tf_bicubic":
        return _bicubic(image, size)
    if resample == "tf_bilinear_uint8":  # OpenCV may be just below a whole value.
        return _bilinear(image, size).astype(np.uint8)
    if decoder in decode.SIMPLEJPEG:  # OpenCV's bilinear of float32 is the same, in half the time.
        image = image if is_rounded else image.astype(np.float32)
        return decode.opencv().resize(image, (size[1], size[0]))
    return _bilinear(image, size)


def _bilinear(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes as `tf.image.resize` without antialiasing."""
    top, bottom, y = _neighbours(image.shape[0], size[0])
    left, right, x = _neighbours(image.shape[1], size[1])
    rows = _between(image.take(top, 0), image.take(bottom, 0), y[:, None, None])
    return _between(rows.take(left, 1), rows.take(right, 1), x[None, :, None])


def _bicubic(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes as `tf.image.resize` with method 'bicubic', with sums in its order."""
    rows, y = _four_neighbours(image.shape[0], size[0])
    columns, x = _four_neighbours(image.shape[1], size[1])
    short = sum(image.take(row, 0) * weight[:, None, None] for row, weight in zip(rows, y))
    return sum(short.take(column, 1) * weight[:, None] for column, weight in zip(columns, x))


@functools.lru_cache(1024)
def _four_neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each new pixel, four old pixels and their weights by Keys' cubic: 4 n both.

    TensorFlow rounds distances to 1/1024. Weights of pixels outside of the image are 0.
    """
    centres = (np.arange(new, dtype=np.float32) + 0.5) * np.float32(old / new) - np.float32(0.5)
    steps, floor = np.arange(-1, 3)[:, None], np.floor(centres)
    pixels = floor.astype(int) + steps
    x = np.abs(np.rint((centres - floor) * 1024) / 1024 - steps)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x <= 1, near, far) * ((pixels >= 0) & (pixels < old))
    return np.clip(pixels, 0, old - 1), (weights / weights.sum(0)).astype(np.float32)


def _area(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes as `tf.image.resize` with method 'area', with sums in its order."""
    rows, y = _overlaps(image.shape[0], size[0])
    columns, x = _overlaps(image.shape[1], size[1])
    narrow = sum(image.take(column, 1) * part[:, None] for column, part in zip(columns, x))
    total = sum(narrow.take(row, 0) * part[:, None, None] for row, part in zip(rows, y))
    scale = [np.float32(old / new) for old, new in zip(image.shape, size)]
    return total * np.float32(1 / (scale[0] * scale[1]))


@functools.lru_cache(1024)
def _overlaps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the old pixels under each new pixel, and the covered part of each: k n both."""
    scale = np.float32(old / new)
    first, last = (np.arange(start, new + start, dtype=np.float32) * scale for start in (0, 1))
    most = (np.ceil(last) - np.floor(first)).max()
    pixels = np.floor(first) + np.arange(most, dtype=np.float32)[:, None]
    covered = np.minimum(pixels + 1, last) - np.maximum(pixels, first)
    covered = np.where((pixels < first) & (pixels + 1 > last), scale, covered)
    return np.minimum(pixels, old - 1).astype(int), np.maximum(covered, 0)


def _between(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns first + (second - first) * weight, in float32."""
    first = first.astype(np.float32, copy=False)
    mixed = np.subtract(second, first)
    mixed *= weight
    mixed += first
    return mixed


@functools.lru_cache(1024)
def _neighbours(old: int, new: int):
    """Returns, for each new pixel, its two old neighbours and the weight of the second."""
    centres = (np.arange(new, dtype=np.float32) + 0.5) * np.float32(old / new) - 0.5
    floor = np.floor(centres)
    first = np.clip(floor.astype(int), 0, old - 1)
    second = np.clip(floor.astype(int) + 1, 0, old - 1)
    return first, second, (centres - floor).astype(np.float32)


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """Scales [0, 255] to float32 in [-1, 1]."""
    scaled = np.divide(image, np.float32(127.5), dtype=np.float32)
    return np.subtract(scaled, np.float32(1), out=scaled)


def from_unit_range(image: np.ndarray) -> np.ndarray:
    """Scales [-1, 1] to uint8 in [0, 255], rounded."""
    return np.clip(np.round((image + 1) * 127.5), 0, 255).astype(np.uint8)


def _size(image: Pixels) -> Size:
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def _cut(image: Pixels, box: Box) -> Pixels:
    top, left, height, width = box
    if (height, width) == _size(image):
        return image
    if isinstance(image, np.ndarray):
        return image[top : top + height, left : left + width]
    return image.crop((left, top, left + width, top + height))


def _render(
    image: Pixels, view: View, resample: str, decoder: str, is_rounded: bool = False
) -> np.ndarray:
    """Returns the pixels of a view of an image."""
    image = _resized(_cut(image, view.box), view.resized, resample, decoder, is_rounded)
    if view.padding:
        pad = (view.padding, view.padding)
        image = np.pad(np.asarray(image), (pad, pad, (0, 0)), mode="reflect")
    return np.asarray(_cut(image, view.window))


def crop_image(
    image: Encoded | np.ndarray,
    crops: Sequence[tuple[augment.Crop, Size]],
    data: Data,
    random: np.random.Generator,
) -> list[np.ndarray]:
    """Returns one crop h w 3 of an image for each pair of crop and size, drawn in their order.

    The image is decoded once. With `data.fast_crop`, a JPEG is decoded at the smallest size that
    suits all crops, and OpenCV's bilinear is rounded to whole values.
    """
    decoder, resample, limit = data.decoder, data.resample, data.max_megapixels
    if not data.fast_crop:
        pixels = decode.read(image, decoder, max_megapixels=limit)
        views = [crop.view(_size(pixels), size, random) for crop, size in crops]
        return [_render(pixels, view, resample, decoder) for view in views]
    old = decode.size_of(image, decoder, limit)
    views = [crop.view(old, size, random) for crop, size in crops]
    factor = min(view.shrink() for view in views)
    pixels = decode.read(image, decoder, factor, limit)
    if _size(pixels) != old:  # Only a JPEG is decoded smaller.
        views = [view.of_smaller(factor) for view in views]
    return [_render(pixels, view, resample, decoder, is_rounded=True) for view in views]


def apply_steps(
    pixels: np.ndarray, steps: augment.Augmentation, random: np.random.Generator
) -> np.ndarray:
    """Returns a crop h w 3 after the other steps of an augmentation, float32 in [-1, 1]."""
    for step in steps.uint8_steps:
        if augment.pixels_of(step) == "uint8" and pixels.dtype != np.uint8:
            # Published numbers have fractions cut off before augmentation.
            pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        pixels = step(pixels, random)
    pixels = to_unit_range(pixels)
    for step in steps.float_steps:
        pixels = step(pixels, random)
    return pixels


@dataclasses.dataclass(frozen=True)
class TrainRecipe:
    """Turns images into training examples: (image, generator) -> h w 3 float32 in [-1, 1].

    An image is `Encoded`, or H W 3 uint8. The steps of `data.augment` draw from the generator in
    their order. A fast crop is approximate: a JPEG with a large crop is decoded smaller and cut at
    whole pixels of that, and OpenCV's bilinear is rounded to whole values.

    Raises ConfigError for an augmentation that cannot be made or a decoder that is not installed.
    """

    data: Data
    size: Size

    def __post_init__(self):
        augment.parse(self.data.augment)
        decode.check_decoder(self.data.decoder)

    @property
    def columns(self) -> Columns:
        """Shape and dtype of what the recipe gives a training batch for an example."""
        return {"image": ((*self.size, 3), np.dtype(np.float32))}

    def __call__(self, image: Encoded | np.ndarray, random: np.random.Generator) -> np.ndarray:
        steps = augment.parse(self.data.augment)
        (pixels,) = crop_image(image, [(steps.crop, self.size)], self.data, random)
        return apply_steps(pixels, steps, random)


@dataclasses.dataclass(frozen=True)
class EvalRecipe:
    """Turns images into examples to evaluate or predict: image -> h w 3 float32 in [-1, 1].

    An image is `Encoded`, or H W 3 uint8. Checkpoints store these fields.

    Args:
      crop: 'resize' stretches the whole image, as the official code does; the others resize it by
        a rule of `view.crop_view`, then cut out the centre.
      crops: 1; 5 for the corners too, c h w 3; 10 for those of the mirrored image too (AlexNet).
      side: as in `view.crop_view`.
    """

    size: Size
    crop: str
    resample: str
    crop_fraction: float
    decoder: str
    max_megapixels: float
    crops: int = 1
    side: int | Size | None = None

    def __post_init__(self):
        decode.check_decoder(self.decoder)
        side = self.side if isinstance(self.side, tuple) else (self.side,) * 2
        if self.side and any(a < b for a, b in zip(side, self.size)):
            raise ConfigError(
                f"eval_side is {self.side}; it must be at least the image size, {self.size}."
            )

    @classmethod
    def from_data(cls, data: Data, size: Size, crops: int = 1) -> "EvalRecipe":
        """Returns the recipe of a config's data section."""
        return cls(
            size,
            data.eval_crop,
            data.eval_resample or data.resample,
            data.crop_fraction,
            data.decoder,
            data.max_megapixels,
            crops,
            data.eval_side,
        )

    @classmethod
    def official(cls, size: Size) -> "EvalRecipe":
        """Returns the recipe of the official code: the whole image resized."""
        return cls.from_data(Data(eval_crop="resize", resample="tf_bilinear"), size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (*self.size, 3) if self.crops == 1 else (self.crops, *self.size, 3)

    def __call__(self, image: Encoded | np.ndarray) -> np.ndarray:
        pixels = decode.read(image, self.decoder, max_megapixels=self.max_megapixels)
        old = _size(pixels)
        if self.crop == "resize":
            return self._scaled(pixels, box_view((0, 0, *old), self.size))
        views = [
            crop_view(self.crop, old, self.size, self.crop_fraction, self.side, position)
            for position in POSITIONS[: min(self.crops, 5)]
        ]
        if self.crops == 1:
            return self._scaled(pixels, views[0])
        scaled = [self._scaled(pixels, view) for view in views]
        if self.crops == 10:
            mirrored = augment.mirror(np.asarray(pixels))
            scaled += [self._scaled(mirrored, view) for view in views]
        return np.stack(scaled)

    def _scaled(self, pixels: Pixels, view: View) -> np.ndarray:
        return to_unit_range(_render(pixels, view, self.resample, self.decoder))


def preprocess(images, model, recipe: EvalRecipe | None = None) -> np.ndarray:
    """Turns images B H W 3 uint8, or a list of any sizes, into B h w 3 for the model.

    A list has arrays H W 3 uint8, paths or PIL images. The default recipe is the official one: the
    whole image resized, pixels in [-1, 1]. Raises ValueError for any other array, DataError for a
    file that cannot be read.
    """
    if recipe is None:
        recipe = EvalRecipe.official(model.image_size)
    for image in images:
        if decode.is_one_image(image) and not isinstance(image, np.ndarray):
            continue  # A path or a PIL image.
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
            raise ValueError(
                f"an image is {array.shape} {array.dtype}; preprocess takes a batch, or a list, of "
                "H W 3 uint8, paths or PIL images."
            )
    return np.stack([recipe(decode.as_image(image)) for image in images])
