"""Checks of user-defined steps of augmentation, on one image before a run starts."""

import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data.augment import (
    FIELD,
    LOCAL_FIELD,
    Crop,
    Step,
    augmentations,
    parse,
    pixels_of,
    user_steps,
)
from vit_jax.data.preprocess import to_unit_range
from vit_jax.data.view import Size
from vit_jax.errors import ConfigError, form, raised

SEEDS = range(4)  # A step can depend on its random numbers.
DTYPES = {"uint8": ("uint8",), "float32": ("float32",), "any": ("uint8", "float32")}


def check_augmentations(data: Data, size: Size) -> None:
    """Checks the user-defined steps of all augmentations of a config, as `check_user_steps`.

    Args:
      size: of a training image; that of local crops is in `data`.
    """
    for field, text in augmentations(data).items():
        check_user_steps(text, data.local_sides if field == LOCAL_FIELD else size, field)


def check_user_steps(text: str, size: Size, field: str = FIELD) -> None:
    """Applies each user-defined step of an augmentation string to an image of a size.

    Raises ConfigError for a step that raises an error, returns another shape or dtype, changes
    its input, or does not repeat its result for the same state of the generator.
    """
    crop, uint8_steps, float_steps = parse(text, field)
    for name, step in zip(map(str.strip, text.split("|")), (crop, *uint8_steps, *float_steps)):
        if name not in user_steps(text):
            continue
        if step is crop:
            _check_crop(crop, size, f"{field}: {name}")
        else:
            _check_step(step, size, f"{field}: {name}")


def _check_crop(crop: Crop, size: Size, where: str) -> None:
    old = (2 * size[0] + 1, 3 * size[1])
    try:
        height, width = crop.view(old, size, np.random.default_rng(0)).window[2:]
    except Exception as error:  # A crop of the user can raise anything.
        raise ConfigError(f"{where} raised {raised(error)}.") from error
    if (height, width) != tuple(size):
        raise ConfigError(
            f"{where} returned a view of {height}x{width} pixels; expected {size[0]}x{size[1]}."
        )


def _check_step(step: Step, size: Size, where: str) -> None:
    noise = np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)
    images = {"uint8": noise, "float32": to_unit_range(noise)}
    for dtype in DTYPES[pixels_of(step)]:
        for seed in SEEDS:
            first, second = (_apply(step, images[dtype], seed, where) for _ in range(2))
            if not np.array_equal(first, second, equal_nan=True):
                raise ConfigError(
                    f"{where} returned two results for the same image and the same state of the "
                    "generator; it must take all random numbers from the generator."
                )


def _apply(step: Step, image: np.ndarray, seed: int, where: str) -> np.ndarray:
    taken = image.copy()
    try:
        result = step(taken, np.random.default_rng(seed))
    except Exception as error:  # A step of the user can raise anything.
        raise ConfigError(f"{where}, applied to {form(image)}, raised {raised(error)}.") from error
    if not isinstance(result, np.ndarray) or form(result) != form(image):
        raise ConfigError(
            f"{where} returned {form(result)} for {form(image)}; it must return a numpy array of "
            "the same shape and dtype."
        )
    if not np.array_equal(taken, image):
        raise ConfigError(f"{where} changes its input; it must change a copy of the image.")
    return result
