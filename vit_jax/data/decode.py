"""Decoding of image files to pixels; rejects files that are not images."""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from vit_jax.errors import ConfigError, DataError

# The only formats that are parsed; decoders of rare formats are a risk with untrusted files.
FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 64_000_000  # Checked in the header, before memory is allocated for the pixels.
ORIENTATION = 0x0112  # EXIF tag; 1 is upright.


class UnreadableImage(DataError):
    """A file that cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Bytes of an image file; a recipe decodes them."""

    data: bytes
    name: str  # Name in errors.


Pixels = Image.Image | np.ndarray  # RGB, upright; the type depends on the decoder.


def decode(image: Encoded | np.ndarray, decoder: str = "pillow") -> np.ndarray:
    """Decodes an image to H W 3 uint8, upright as a viewer shows it; returns pixels unchanged.

    Grey, palette, CMYK and 16-bit images are converted; transparent images are drawn on white.
    Raises UnreadableImage, a DataError, with the name of the image.
    """
    return np.asarray(read(image, decoder))


def read(image: Encoded | np.ndarray, decoder: str, shrink: int = 1) -> Pixels:
    """Decodes as `decode`, without the copy from Pillow's memory to numpy's.

    A JPEG is decoded at 1/`shrink` of its sides, rounded up, for 2, 4 and 8; other formats at
    full size.
    """
    if isinstance(image, np.ndarray):
        return image
    if decoder == "simplejpeg":
        pixels = _by_simplejpeg(image.data, shrink)
        if pixels is not None:
            return pixels
    with _opened(image) as file:
        if shrink > 1:
            file.draft(None, (file.width // shrink, file.height // shrink))
        file.load()
        return _to_rgb(ImageOps.exif_transpose(file) if _is_rotated(file) else file)


def as_image(image: str | os.PathLike | Image.Image | np.ndarray) -> Encoded | np.ndarray:
    """Returns what recipes take for a path, a PIL image, or an array H W 3 uint8.

    Raises DataError for a file that cannot be read and for any other array.
    """
    if isinstance(image, Image.Image):
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    if isinstance(image, str | os.PathLike):
        try:
            return Encoded(pathlib.Path(image).read_bytes(), os.fspath(image))
        except OSError as error:
            raise DataError(f"{image}: {error.strerror}.") from error
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise DataError(f"an image is {array.shape} {array.dtype}; expected H W 3 uint8.")
    return array


def encode(pixels: np.ndarray, kind: str = "png") -> bytes:
    """Encodes H W 3 uint8, or H W 4, as the bytes of a 'png' or a 'jpeg' file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, optimize=True)
    return file.getvalue()


def size_of(image: Encoded | np.ndarray, decoder: str) -> tuple[int, int]:
    """Returns height and width of the upright image, from the header alone."""
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    if decoder == "simplejpeg":
        size = _plain_jpeg_size(image.data)
        if size is not None:
            return size
    with _opened(image) as file:
        is_rotated_90 = file.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (file.width, file.height) if is_rotated_90 else (file.height, file.width)


@contextlib.contextmanager
def _opened(image: Encoded) -> Iterator[Image.Image]:
    """Opens a file with Pillow; raises UnreadableImage for all errors and for too many pixels."""
    try:
        with Image.open(io.BytesIO(image.data), formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{image.name}: {file.width}x{file.height} pixels are more than {MAX_PIXELS:,}."
                )
            yield file
    except DataError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files.
        message = str(error).split(" <_io.BytesIO")[0] or type(error).__name__
        raise UnreadableImage(f"{image.name}: unreadable image ({message}).") from error


def _is_rotated(file: Image.Image) -> bool:
    return file.getexif().get(ORIENTATION, 1) != 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I", "F"):  # Pillow's own conversion saturates at 255.
        grey = np.asarray(image, np.float64) / 257
        image = Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def check_decoder(decoder: str) -> None:
    """Raises ConfigError for a decoder that is not installed."""
    if decoder == "simplejpeg":
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
        f"config.data.decoder is 'simplejpeg', but {package} is not installed: "
        "pip install 'vit-jax[fast-jpeg]'."
    )


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns the size of a JPEG that simplejpeg decodes as Pillow does; None for other files."""
    try:
        height, width, colours, _ = simplejpeg().decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
        return None
    head = _before_pixels(data)
    if b"Exif\0\0" in head or b"tiff:Orientation" in head:  # It may be rotated.
        try:
            with _opened(Encoded(data, "")) as file:
                return None if _is_rotated(file) else (height, width)
        except DataError:
            return None
    return height, width


def _before_pixels(data: bytes) -> bytes:
    """Returns the segments of a JPEG up to the first scan, which are quick to search."""
    end = 2
    while data[end : end + 1] == b"\xff":
        marker = data[end + 1 : end + 2]
        if marker == b"\xda":
            return data[:end]
        # A segment starts with its length; any number of 0xFF may precede a marker.
        end += 1 if marker == b"\xff" else 2 + int.from_bytes(data[end + 2 : end + 4], "big")
    return data


def _by_simplejpeg(data: bytes, shrink: int) -> np.ndarray | None:
    size = _plain_jpeg_size(data)
    if size is None:
        return None
    height, width = (-(-side // shrink) for side in size) if shrink > 1 else (0, 0)
    try:
        return simplejpeg().decode_jpeg(data, min_height=height, min_width=width)
    except ValueError:  # Damaged: the error of Pillow says how.
        return None
