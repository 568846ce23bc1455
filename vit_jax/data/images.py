"""From the bytes of an image file to pixels, with what is not an image refused."""

import io

import numpy as np
from PIL import Image, ImageOps

from vit_jax.errors import DataError

# The only decoders that ever run: others of Pillow's many parse hostile formats.
FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 64_000_000  # Checked in the header, before memory is taken for the pixels.


def decode(data: bytes, name: str) -> np.ndarray:
    """An encoded image -> H W 3 uint8, upright as a viewer shows it.

    Grey, palette, CMYK and 16-bit images are converted; transparency is laid over white.
    Raises DataError that calls the image `name`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {image.width}x{image.height} pixels are more than {MAX_PIXELS:,}."
                )
            image.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except DataError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds for damaged files.
        words = str(error).split(" <_io.BytesIO")[0] or type(error).__name__
        raise DataError(f"{name}: unreadable image ({words}).") from error


def sample_photo() -> np.ndarray:
    """A real photo, 427 640 3 uint8, that comes with scikit-learn."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I", "F"):  # Pillow's own conversion saturates at 255.
        grey = np.asarray(image, np.float64) / 257
        image = Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
