"""Decoding of image files to pixels; rejects files that are not images."""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import re
import stat
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data import file_kind
from vit_jax.data.image_metadata import (
    ORIENTATION,
    before_scan,
    exif_orientation,
    without_metadata,
)
from vit_jax.data.listing import ImageFile
from vit_jax.errors import ConfigError, DataError

# The only formats that are parsed; decoders of rare formats are a risk with untrusted files.
FORMATS = ("JPEG", "PNG", "WEBP")
UPRIGHT = {  # EXIF orientation -> what makes the image upright.
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FAST_DCT = "simplejpeg_fast_dct"  # As TensorFlow decodes by default.
SIMPLEJPEG = ("simplejpeg", FAST_DCT)  # Decoders of the extra fast-jpeg.
# Pillow warns of metadata that is not used here, and of sizes that are checked here.
warnings.filterwarnings("ignore", module=r"PIL\.")

T = TypeVar("T")


class UnreadableImage(DataError):
    """A file that cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Bytes of an image file; a recipe decodes them."""

    data: bytes
    name: str  # Name in errors.


Pixels = Image.Image | np.ndarray  # RGB, upright; the type depends on the decoder.


def decode(
    image: Encoded | np.ndarray,
    decoder: str = "pillow",
    max_megapixels: float = Data.max_megapixels,
) -> np.ndarray:
    """Decodes an image to H W 3 uint8, upright as a viewer shows it; returns pixels unchanged.

    Grey, palette, CMYK and 16-bit images are converted; transparent images are drawn on white.
    Raises UnreadableImage, a DataError, with the name of the image.
    """
    return np.asarray(read(image, decoder, max_megapixels=max_megapixels))


def read(
    image: Encoded | np.ndarray,
    decoder: str,
    shrink: int = 1,
    max_megapixels: float = Data.max_megapixels,
) -> Pixels:
    """Decodes as `decode`, without the copy from Pillow's memory to numpy's.

    A JPEG is decoded at 1/`shrink` of its sides, rounded up, for 2, 4 and 8; other formats at
    full size.
    """
    if isinstance(image, np.ndarray):
        return image
    if decoder in SIMPLEJPEG:
        pixels = _by_simplejpeg(image.data, max_megapixels, shrink, decoder == FAST_DCT)
        if pixels is not None:
            return pixels

    def decoded(file: Image.Image) -> Image.Image:
        if shrink > 1:
            file.draft(None, (file.width // shrink, file.height // shrink))
        file.load()
        return _upright(_to_rgb(file, _sample_depth(image.data)), _orientation(file))

    return _with_pillow(image, max_megapixels, decoded)


def as_image(
    image: str | os.PathLike | ImageFile | Image.Image | np.ndarray,
) -> Encoded | np.ndarray:
    """Returns what recipes take for a file, a PIL image, or an array H W 3 uint8.

    Raises DataError for a file that cannot be read and for any other array.
    """
    if isinstance(image, Image.Image):
        return np.asarray(_upright(_to_rgb(image), _orientation(image)))
    if isinstance(image, str | os.PathLike | ImageFile):
        try:
            if isinstance(image, ImageFile):
                return Encoded(image.read(), os.path.join(image.container, image.path))
            mode = os.stat(image).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # May have no end.
                raise DataError(f"{image}: a device; expected an image file.")
            return Encoded(pathlib.Path(image).read_bytes(), os.fspath(image))
        except OSError as error:
            raise DataError(f"{image}: {error.strerror}.") from error
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise DataError(f"an image is {array.shape} {array.dtype}; expected H W 3 uint8.")
    return array


def is_one_image(value: object) -> bool:
    """Returns True for a path, a PIL image or an array with three axes; a list has several."""
    is_array = isinstance(value, np.ndarray) and value.ndim == 3
    return is_array or isinstance(value, str | os.PathLike | Image.Image)


def encode(pixels: np.ndarray, kind: str = "png") -> bytes:
    """Encodes H W 3 uint8, or H W 4, as the bytes of a 'png' or a 'jpeg' file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, optimize=True)
    return file.getvalue()


def size_of(
    image: Encoded | np.ndarray, decoder: str, max_megapixels: float = Data.max_megapixels
) -> tuple[int, int]:
    """Returns height and width of the upright image, from the header alone."""
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    if decoder in SIMPLEJPEG:
        size = _plain_jpeg_size(image.data, max_megapixels)
        if size is not None:
            return size

    def upright_size(file: Image.Image) -> tuple[int, int]:
        is_rotated_90 = _orientation(file) in (5, 6, 7, 8)
        return (file.width, file.height) if is_rotated_90 else (file.height, file.width)

    return _with_pillow(image, max_megapixels, upright_size)


def _with_pillow(image: Encoded, max_megapixels: float, function: Callable[[Image.Image], T]) -> T:
    """Returns the function of the file that Pillow opens; a second try ignores its metadata.

    Raises UnreadableImage for all errors and for too many pixels.
    """
    errors: list[Exception] = []
    for data in without_metadata(image.data):
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as file:
                _check_size(image.name, file.width * file.height, max_megapixels)
                return function(file)
        except DataError:
            raise
        except Image.DecompressionBombError as error:  # Larger than any max_megapixels.
            pixels = re.search(r"\d+", str(error))
            _check_size(image.name, int(pixels[0]), max_megapixels)
        except Exception as error:  # Pillow raises many types for damaged files.
            errors.append(error)
    kind = file_kind.describe(image.data)
    message = str(errors[0]).split(" <_io.BytesIO")[0] or type(errors[0]).__name__
    if kind and kind not in file_kind.DECODED:
        message = f"{kind}; expected JPEG, PNG or WebP"
    raise UnreadableImage(f"{image.name}: unreadable image ({message}).") from errors[0]


def _check_size(name: str, pixels: int, max_megapixels: float) -> None:
    """Raises UnreadableImage for too many pixels, before memory is allocated for them."""
    if pixels > max_megapixels * 1e6:
        raise UnreadableImage(
            f"{name}: {pixels / 1e6:.6g} megapixels are more than "
            f"max_megapixels={max_megapixels:g}."
        )


def _orientation(file: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 if there is none or the metadata is unreadable."""
    elsewhere = None
    with contextlib.suppress(Exception):  # Pillow raises many types for damaged metadata.
        elsewhere = file.getexif().get(ORIENTATION)  # Also of XMP, and after the pixels.
    exif = file.info.get("exif")
    value = exif_orientation(exif) if isinstance(exif, bytes) else None
    value = elsewhere if value is None else value
    return value if value in UPRIGHT else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _sample_depth(data: bytes) -> int:
    """Returns the bits of a sample in the file: 1, 2, 4, 8 or 16 in a PNG, and 8 in others."""
    is_png = data.startswith(b"\x89PNG") and data[12:16] == b"IHDR"
    return data[24] if is_png and len(data) > 24 else 8


def _to_rgb(image: Image.Image, depth: int = 8) -> Image.Image:
    """Converts an image of any mode to RGB, on white; `depth` is its `_sample_depth`."""
    transparent = image.info.get("transparency")
    if isinstance(transparent, int | tuple) and image.mode != "P":
        return _without_colour(image, np.asarray(transparent), depth)
    image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or transparent is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Converts 16-bit grey, where Pillow's own conversion saturates at 255, and two levels."""
    if image.mode in ("I;16", "I;16B", "I", "F"):
        grey = np.asarray(image, np.float64) / 257
        return Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))
    return image.convert("L") if image.mode == "1" else image


def _without_colour(image: Image.Image, colour: np.ndarray, depth: int) -> Image.Image:
    """Returns a grey or RGB image with white in place of one colour, which is transparent.

    The colour has the depth of the file, the pixels 8 bits; but 16-bit grey keeps its 16 bits.
    """
    samples = np.asarray(_to_8_bits(image) if image.mode == "1" else image)
    if samples.dtype == np.uint8:
        colour = colour >> 8 if depth == 16 else colour * 255 // (2**depth - 1)
    is_colour = samples == colour
    pixels = np.array(_to_8_bits(image))
    pixels[is_colour if is_colour.ndim == 2 else is_colour.all(-1)] = 255
    return Image.fromarray(pixels).convert("RGB")


def check_decoder(decoder: str) -> None:
    """Raises ConfigError for a decoder that is not installed."""
    if decoder in SIMPLEJPEG:
        simplejpeg(), opencv()


@functools.cache
def simplejpeg():
    """Returns the module simplejpeg; raises ConfigError if it is not installed."""
    try:
        import simplejpeg
    except ImportError as error:
        raise _missing("simplejpeg") from error
    return simplejpeg


@functools.cache
def opencv():
    """Returns OpenCV, limited to one thread because the loader has its own."""
    try:
        import cv2
    except ImportError as error:
        raise _missing("opencv-python-headless") from error
    cv2.setNumThreads(1)
    return cv2


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"config.data.decoder is one of {', '.join(SIMPLEJPEG)}, but {package} is not installed: "
        "pip install 'vit-jax[fast-jpeg]'."
    )


def _plain_jpeg_size(data: bytes, max_megapixels: float) -> tuple[int, int] | None:
    """Returns the size of a JPEG that simplejpeg decodes as Pillow does; None for other files."""
    try:
        height, width, colours, _ = simplejpeg().decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray") or height * width > max_megapixels * 1e6:
        return None
    head = data[: before_scan(data)]
    if b"Exif\0\0" in head or b"tiff:Orientation" in head:  # It may be rotated.
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as file:
                return (height, width) if _orientation(file) == 1 else None
        except Exception:  # The error of Pillow's decoder says what is wrong.
            return None
    return height, width


def _by_simplejpeg(
    data: bytes, max_megapixels: float, shrink: int, is_fast_dct: bool
) -> np.ndarray | None:
    size = _plain_jpeg_size(data, max_megapixels)
    if size is None:
        return None
    height, width = (-(-side // shrink) for side in size) if shrink > 1 else (0, 0)
    try:
        return simplejpeg().decode_jpeg(
            data, min_height=height, min_width=width, fastdct=is_fast_dct
        )
    except ValueError:  # Damaged: the error of Pillow says how.
        return None
