"""Normalisation of pixels by the mean and standard deviation that a model was trained with."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import ConfigError

PIXEL_STATS = {  # Mean and standard deviation of RGB in [0, 1].
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # [-1, 1]: the official code, AugReg, BiT.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # DeiT, DINO, torchvision.
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # [0, 1]: TIPS.
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def normalize(images: jax.Array, pixel_stats: str) -> jax.Array:
    """Normalises images B H W 3 in [-1, 1] by one of `PIXEL_STATS`."""
    mean, deviation = np.array(PIXEL_STATS[pixel_stats])
    if pixel_stats == "half":
        return images
    scale, shift = 0.5 / deviation, (0.5 - mean) / deviation
    return (
        images * scale.astype(np.float32)[None, None, None]
        + shift.astype(np.float32)[None, None, None]
    )


def denormalize(pixels: jax.Array, pixel_stats: str) -> jax.Array:
    """Returns images B H W 3 in [-1, 1] of normalised pixels: the inverse of `normalize`."""
    mean, deviation = np.array(PIXEL_STATS[pixel_stats])
    scale, shift = 2 * deviation, 2 * mean - 1
    return (
        pixels * scale.astype(np.float32)[None, None, None]
        + shift.astype(np.float32)[None, None, None]
    )


def check_images(images: jax.Array, image_size: tuple[int, int]) -> None:
    """Raises ConfigError unless images are floats B H W 3 of the model's size."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ConfigError(
            f"images are {images.dtype}; the model expects floats in [-1, 1], which "
            "vit_jax.preprocess(images, model) returns."
        )
    if images.ndim != 4 or images.shape[3] != 3:
        raise ConfigError(f"images have the shape {images.shape}; the model expects B H W 3.")
    if images.shape[1:3] != image_size:
        raise ConfigError(
            f"images are {images.shape[1]}x{images.shape[2]}; "
            f"the model expects {image_size[0]}x{image_size[1]}."
        )
