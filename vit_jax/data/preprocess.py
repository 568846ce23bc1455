"""From pixels to the model's input: crop, resize, flip, augment, and the range [-1, 1].

The published weights take (x - 127.5) / 127.5, without ImageNet's mean and deviation.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data import decode
from vit_jax.data.augment import erase
from vit_jax.data.decode import Encoded, Pixels

Size = tuple[int, int]  # Height, width.
Box = tuple[int, int, int, int]  # Top, left, height, width.
PILLOWS = {"antialias": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CENTRE = (0.5 - 1e-9,) * 2  # Of two middle places, the first.
LAST = 1 - 1e-9  # The last place there is.
CORNERS = ((0.0, 0.0), (0.0, LAST), (LAST, 0.0), (LAST, LAST))
RANDOM_CROP = 7 / 8  # Of the short side resized: 224 of 256.
PADDING = 4  # Pixels on each side (DeiT III, arXiv:2204.07118).
LONGEST = 16  # Of a side that is resized, in sides of the target.


def resize(image: Pixels, size: Size, resample: str = Data.resample) -> np.ndarray:
    """H W 3 uint8 -> h w 3, with half-pixel centres.

    'antialias' is Pillow's bilinear: a wider filter when shrinking, rounded to whole values;
    'bicubic' is Pillow's, too. 'tf_bilinear' is `tf.image.resize` without antialiasing, as the
    official code trained and evaluated: two neighbours on each axis whatever the scale, not
    rounded.
    """
    return np.asarray(_resized(image, size, resample))


def _resized(
    image: Pixels, size: Size, resample: str, decoder: str = Data.decoder, is_rounded: bool = False
) -> Pixels:
    """`resize`, left in Pillow's memory if Pillow did it; OpenCV's can be rounded, and faster."""
    if _size(image) == tuple(size):
        return image
    if resample in PILLOWS:
        if isinstance(image, np.ndarray):
            image = Image.fromarray(np.ascontiguousarray(image))
        return image.resize((size[1], size[0]), PILLOWS[resample])
    image = np.asarray(image)
    if decoder == "simplejpeg":  # OpenCV's bilinear of float32 is the same, in half the time.
        image = image if is_rounded else image.astype(np.float32)
        return decode.opencv().resize(image, (size[1], size[0]))
    top, bottom, y = _neighbours(image.shape[0], size[0])
    left, right, x = _neighbours(image.shape[1], size[1])
    rows = _between(image.take(top, 0), image.take(bottom, 0), y[:, None, None])
    return _between(rows.take(left, 1), rows.take(right, 1), x[None, :, None])


def _between(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """first + (second - first) * weight, in float32."""
    first = first.astype(np.float32, copy=False)
    mixed = np.subtract(second, first)
    mixed *= weight
    mixed += first
    return mixed


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
    scaled = np.divide(image, np.float32(127.5), dtype=np.float32)
    return np.subtract(scaled, np.float32(1), out=scaled)


def from_unit_range(image: np.ndarray) -> np.ndarray:
    """[-1, 1] -> [0, 255], rounded, uint8."""
    return np.clip(np.round((image + 1) * 127.5), 0, 255).astype(np.uint8)


def inception_box(height: int, width: int, area: tuple[float, float], random) -> Box:
    """A crop whose area, and aspect of 3/4 to 4/3, are random (GoogLeNet, arXiv:1409.4842).

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


def _size(image: Pixels) -> Size:
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def _cut(image: Pixels, box: Box) -> Pixels:
    top, left, height, width = box
    if (height, width) == _size(image):
        return image
    if isinstance(image, np.ndarray):
        return image[top : top + height, left : left + width]
    return image.crop((left, top, left + width, top + height))


def _mirrored(image: Pixels, decoder: str) -> Pixels:
    if not isinstance(image, np.ndarray):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if decoder == "simplejpeg":
        return decode.opencv().flip(image, 1)
    return image.take(range(image.shape[1] - 1, -1, -1), axis=1)


def _to_uint8(image: Pixels) -> np.ndarray:
    """Whole values for augmentation: what is between is cut off, as published numbers have it."""
    return np.asarray(image).astype(np.uint8, copy=False)


@dataclasses.dataclass(frozen=True)
class View:
    """What is shown of an image: a box of it, resized, padded by reflection, and a window."""

    box: Box
    resized: Size
    window: Box
    padding: int = 0

    def shrink(self) -> int:
        """How many times smaller the image may be, 8, 4 or 2, with no need to enlarge the box."""
        least = min(old // new for old, new in zip(self.box[2:], self.resized))
        return next((factor for factor in (8, 4, 2) if least >= factor), 1)

    def of_smaller(self, factor: int) -> "View":
        """The same view of the image made so many times smaller."""
        top, left, height, width = self.box
        box = (round(top / factor), round(left / factor), height // factor, width // factor)
        return dataclasses.replace(self, box=box)


def _whole(box: Box, size: Size) -> View:
    return View(box, size, (0, 0, *size))


def _window(old: Size, new: Size, fraction: float, place, padding: int = 0) -> View:
    """A window of size `new` in the image resized so that it covers `new / fraction`.

    Args:
      place: of the window, down and across, from 0 to below 1; CENTRE is the middle.
      padding: pixels by which the window may leave the image, which is mirrored there.
    """
    # A very long image is cut first, at the same place: memory follows the target alone.
    longest = [math.ceil(LONGEST * new[k] * old[1 - k] / new[1 - k]) for k in (0, 1)]
    cut = [min(side, most) for side, most in zip(old, longest)]
    box = [int(u * (side - part + 1)) for u, side, part in zip(place, old, cut)] + cut
    scale = max(side / part for side, part in zip(new, cut)) / fraction
    resized = tuple(round(side * scale) for side in cut)
    room = [side + 2 * padding - part + 1 for side, part in zip(resized, new)]
    top, left = (int(u * free) for u, free in zip(place, room))
    return View(tuple(box), resized, (top, left, *new), padding)


def _shown(
    image: Pixels, view: View, resample: str, decoder: str, is_rounded: bool = False
) -> Pixels:
    image = _resized(_cut(image, view.box), view.resized, resample, decoder, is_rounded)
    if view.padding:
        pad = (view.padding, view.padding)
        image = np.pad(np.asarray(image), (pad, pad, (0, 0)), mode="reflect")
    return _cut(image, view.window)


@dataclasses.dataclass(frozen=True)
class TrainRecipe:
    """Crops, flips and augments at random: (image, generator) -> h w 3 in [-1, 1].

    An image is `Encoded`, or H W 3 uint8. The draws are, in order, those of the crop, of the
    flip, of `augment`, which maps H W 3 uint8 to such, and of random erasing. A fast crop is
    approximate: a JPEG with a large crop is decoded smaller and cut at whole pixels of that,
    and OpenCV's bilinear is rounded to whole values.
    """

    size: Size
    crop: str = Data.crop
    crop_area: tuple[float, float] = Data.crop_area
    flip: bool = Data.flip
    resample: str = Data.resample
    decoder: str = Data.decoder
    fast_crop: bool = Data.fast_crop
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
    random_erasing: float = Data.random_erasing

    def __post_init__(self):
        decode.check_decoder(self.decoder)

    def __call__(self, image: Encoded | np.ndarray, random: np.random.Generator) -> np.ndarray:
        pixels = self._crop(image, random)
        if self.flip and random.random() < 0.5:
            pixels = _mirrored(pixels, self.decoder)
        if self.augment is not None:
            pixels = self.augment(_to_uint8(pixels), random)
        scaled = to_unit_range(np.asarray(pixels))
        return erase(scaled, self.random_erasing, random) if self.random_erasing else scaled

    def _crop(self, image: Encoded | np.ndarray, random: np.random.Generator) -> Pixels:
        if not self.fast_crop:
            pixels = decode.read(image, self.decoder)
            return _shown(pixels, self._view(_size(pixels), random), self.resample, self.decoder)
        size = decode.size_of(image, self.decoder)
        view = self._view(size, random)
        factor = view.shrink()
        pixels = decode.read(image, self.decoder, factor)
        if _size(pixels) != size:  # Only a JPEG is decoded smaller.
            view = view.of_smaller(factor)
        return _shown(pixels, view, self.resample, self.decoder, is_rounded=True)

    def _view(self, size: Size, random: np.random.Generator) -> View:
        """What is shown of an image of that size."""
        if self.crop == "inception":
            return _whole(inception_box(*size, self.crop_area, random), self.size)
        if self.crop == "random":
            return _window(size, self.size, RANDOM_CROP, random.random(2))
        if self.crop == "pad":
            return _window(size, self.size, 1, random.random(2), PADDING)
        return _whole((0, 0, *size), self.size)


@dataclasses.dataclass(frozen=True)
class EvalRecipe:
    """What every evaluated or predicted image goes through -> h w 3 in [-1, 1].

    An image is `Encoded`, or H W 3 uint8. 'resize' stretches the whole image, as the official
    code does; 'center' first resizes so that the target is `crop_fraction` of the short side,
    then cuts out the centre. Of 5 `crops`, c h w 3, the others are the corners; of 10, those of
    the mirrored image follow (AlexNet's protocol).
    """

    size: Size
    crop: str = Data.eval_crop
    resample: str = Data.resample
    crop_fraction: float = Data.crop_fraction
    decoder: str = Data.decoder
    crops: int = Data.eval_crops

    def __post_init__(self):
        decode.check_decoder(self.decoder)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it makes of an image."""
        return (*self.size, 3) if self.crops == 1 else (self.crops, *self.size, 3)

    def __call__(self, image: Encoded | np.ndarray) -> np.ndarray:
        pixels = decode.read(image, self.decoder)
        old = _size(pixels)
        if self.crop == "resize":
            return self._shown(pixels, _whole((0, 0, *old), self.size))
        views = [
            _window(old, self.size, self.crop_fraction, place)
            for place in (CENTRE, *CORNERS)[: min(self.crops, 5)]
        ]
        if self.crops == 1:
            return self._shown(pixels, views[0])
        shown = [self._shown(pixels, view) for view in views]
        if self.crops == 10:
            mirrored = _mirrored(pixels, self.decoder)
            shown += [self._shown(mirrored, view) for view in views]
        return np.stack(shown)

    def _shown(self, pixels: Pixels, view: View) -> np.ndarray:
        return to_unit_range(np.asarray(_shown(pixels, view, self.resample, self.decoder)))


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
