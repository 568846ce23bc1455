"""From the bytes of an image file to pixels, with what is not an image refused."""

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

# The only decoders that ever run: others of Pillow's many parse hostile formats.
FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 64_000_000  # Checked in the header, before memory is taken for the pixels.
ORIENTATION = 0x0112  # EXIF: where the stored row 0 and column 0 lie; 1 is upright.


class UnreadableImage(DataError):
    """A file whose pixels nothing makes out."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image as a file holds it; a recipe decodes it."""

    data: bytes
    name: str  # As errors call it.


Pixels = Image.Image | np.ndarray  # RGB, upright, as whichever decoder left them.


def decode(image: Encoded | np.ndarray, decoder: str = "pillow") -> np.ndarray:
    """H W 3 uint8, upright as a viewer shows it; pixels stay as they are.

    Grey, palette, CMYK and 16-bit images are converted; transparency is laid over white.
    Raises UnreadableImage, a DataError, with the image's name.
    """
    return np.asarray(read(image, decoder))


def read(image: Encoded | np.ndarray, decoder: str, shrink: int = 1) -> Pixels:
    """`decode` without the copy from Pillow's memory to numpy's.

    A JPEG is decoded at 1/`shrink` of its sides, rounded up, for 2, 4 and 8; others whole.
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
        return _to_rgb(ImageOps.exif_transpose(file) if _is_turned(file) else file)


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
    """H W 3 uint8, or H W 4, as the bytes of a 'png' or a 'jpeg' file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, optimize=True)
    return file.getvalue()


def size_of(image: Encoded | np.ndarray, decoder: str) -> tuple[int, int]:
    """Height and width, upright, from the header alone."""
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    if decoder == "simplejpeg":
        size = _plain_jpeg_size(image.data)
        if size is not None:
            return size
    with _opened(image) as file:
        turned = file.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)  # By a quarter.
        return (file.width, file.height) if turned else (file.height, file.width)


@contextlib.contextmanager
def _opened(image: Encoded) -> Iterator[Image.Image]:
    """Pillow's view of a file, of a size that is permitted; all its errors become ours."""
    try:
        with Image.open(io.BytesIO(image.data), formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{image.name}: {file.width}x{file.height} pixels are more than {MAX_PIXELS:,}."
                )
            yield file
    except DataError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds for damaged files.
        words = str(error).split(" <_io.BytesIO")[0] or type(error).__name__
        raise UnreadableImage(f"{image.name}: unreadable image ({words}).") from error


def _is_turned(file: Image.Image) -> bool:
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
    """libjpeg-turbo without Pillow around it."""
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
    """Height and width of a JPEG that simplejpeg shows just as Pillow does; None of others."""
    try:
        height, width, colours, _ = simplejpeg().decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
        return None
    head = _before_pixels(data)
    if b"Exif\0\0" in head or b"tiff:Orientation" in head:  # Turned, perhaps.
        try:
            with _opened(Encoded(data, "")) as file:
                return None if _is_turned(file) else (height, width)
        except DataError:
            return None
    return height, width


def _before_pixels(data: bytes) -> bytes:
    """A JPEG's segments up to the first scan: a search in these costs a twentieth."""
    end = 2
    while data[end : end + 1] == b"\xff":
        marker = data[end + 1 : end + 2]
        if marker == b"\xda":
            return data[:end]
        # A segment tells its length; a marker may be preceded by any number of 0xFF.
        end += 1 if marker == b"\xff" else 2 + int.from_bytes(data[end + 2 : end + 4], "big")
    return data


def _by_simplejpeg(data: bytes, shrink: int) -> np.ndarray | None:
    size = _plain_jpeg_size(data)
    if size is None:
        return None
    height, width = (-(-side // shrink) for side in size) if shrink > 1 else (0, 0)
    try:
        return simplejpeg().decode_jpeg(data, min_height=height, min_width=width)
    except ValueError:  # Damaged: Pillow says how badly.
        return None
