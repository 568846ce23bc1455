"""Augmentation of training images: the steps of `config.data.augment`.

The field is a string of steps in order, like the preprocessing strings of big_vision:

    inception_crop(0.08)|flip|randaug(2,10)|color_jitter(0.3)|erase(0.25)

A step is a row of AUGMENTATIONS, or `package.module:name` of the user, with literal arguments. A
new step needs a class with the methods of `Step` or `Crop`, and a row of the table.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Annotated, ClassVar, NamedTuple, Protocol

import numpy as np
from PIL import Image

from vit_jax.config import registry
from vit_jax.config.fields import bounds
from vit_jax.config.schema import Data
from vit_jax.config.values import check_kwargs
from vit_jax.data.color_steps import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    Solarize,
    ThreeAugment,
)
from vit_jax.data.crops import (
    AlgoPerfCrop,
    Crop,
    InceptionCrop,
    PadCrop,
    RandomCrop,
    RandomResizedCrop,
    Resize,
)
from vit_jax.data.randaugment import (
    AlgoPerfRandAugment,
    IncreasingRandAugment,
    PublishedRandAugment,
)
from vit_jax.errors import ConfigError, one_line

FIELD = "config.data.augment"
SECOND_FIELD = "config.data.second_augment"
LOCAL_FIELD = "config.data.local_augment"
PIXEL_MEAN = np.array([0.485, 0.456, 0.406])  # ImageNet's, of RGB in [0, 1].
PIXEL_STD = np.array([0.229, 0.224, 0.225])


class Step(Protocol):
    """A step after the crop: maps an image H W 3 to an image of the same shape and dtype.

    The result depends on the image and the generator alone, and the image is not modified:
    threads share the step, workers rebuild it, and a resumed run repeats it.

    The attribute `pixels` names the values that the step takes: "uint8" (the default if there is
    no such attribute) in [0, 255]; "float32" in [-1, 1], for a step that comes after those; or
    "any", for a step that only moves pixels.
    """

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors half of the images, left to right."""

    pixels: ClassVar = "any"

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return mirror(image) if random.random() < 0.5 else image


def mirror(image: np.ndarray) -> np.ndarray:
    """Returns an image H W 3 with left and right exchanged."""
    mirrored = np.empty_like(image, order="C")
    for channel in range(3):  # Several times as fast as all channels at once.
        mirrored[..., channel] = image[:, ::-1, channel]
    return mirrored


@dataclasses.dataclass(frozen=True)
class Affine:
    """Rotates, scales, shears and shifts about the centre, bilinearly; what comes in is black.

    As RandomAffine of torchvision, with one draw, uniform, for each change.

    Args:
      degrees: largest rotation, to either side.
      shift: largest shift along each axis, as a fraction of the side.
      scale: the size is multiplied by a factor of 1 +- this.
      shear: largest angle of the shear along the rows, in degrees, to either side.
    """

    degrees: Annotated[float, bounds(least=0, most=180)]
    shift: Annotated[float, bounds(least=0, most=1)] = 0.0
    scale: Annotated[float, bounds(least=0, most=0.99)] = 0.0
    shear: Annotated[float, bounds(least=0, most=89)] = 0.0

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        turn, right, down, growth, slant = random.uniform(-1, 1, 5).tolist()
        height, width, _ = image.shape
        angle, slope = math.radians(turn * self.degrees), math.tan(math.radians(slant * self.shear))
        cos, sin, size = math.cos(angle), math.sin(angle), 1 + growth * self.scale
        # From pixels of the result to those of the image: the inverse of rotation times shear.
        a, b = (cos + slope * sin) / size, (sin - slope * cos) / size
        c, d = -sin / size, cos / size
        x = width * (0.5 + right * self.shift)  # Where the centre goes.
        y = height * (0.5 + down * self.shift)
        matrix = (a, b, width / 2 - a * x - b * y, c, d, height / 2 - c * x - d * y)
        picture = Image.fromarray(image)
        method = Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        return np.asarray(picture.transform(picture.size, *method))


@dataclasses.dataclass(frozen=True)
class Erase:
    """Replaces a random rectangle by noise (random erasing, arXiv:1708.04896).

    As in DeiT: the area is 0.02 to 1/3 of the image and the aspect, height over width, 0.3 to
    1/0.3; after ten rectangles that do not fit, nothing is erased. The noise of DeiT is standard
    normal after ImageNet's mean and deviation; here it is the same noise in [-1, 1], with a few
    values beyond.
    """

    probability: Annotated[float, bounds(least=0, most=1)]
    pixels: ClassVar = "float32"

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        if random.random() >= self.probability:
            return image
        height, width, _ = image.shape
        for _ in range(10):
            area = random.uniform(0.02, 1 / 3) * height * width
            aspect = math.exp(random.uniform(math.log(0.3), -math.log(0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = random.integers(height - h + 1), random.integers(width - w + 1)
                noise = random.standard_normal((h, w, 3)) * PIXEL_STD + PIXEL_MEAN
                image = image.copy()
                image[top : top + h, left : left + w] = noise * 2 - 1
                return image
        return image


# Name -> class or function that returns a Crop or a Step.
AUGMENTATIONS: dict[str, Callable[..., Crop | Step]] = {
    "inception_crop": InceptionCrop,
    "random_resized_crop": RandomResizedCrop,
    "resize": Resize,
    "random_crop": RandomCrop,
    "pad_crop": PadCrop,
    "algoperf_crop": AlgoPerfCrop,
    "flip": Flip,
    "randaug": PublishedRandAugment,
    "randaug_increasing": IncreasingRandAugment,
    "randaug_algoperf": AlgoPerfRandAugment,
    "three_augment": ThreeAugment,
    "color_jitter": ColorJitter,
    "grayscale": Grayscale,
    "solarize": Solarize,
    "gaussian_blur": GaussianBlur,
    "affine": Affine,
    "erase": Erase,
}


class Augmentation(NamedTuple):
    """The steps of one augmentation string."""

    crop: Crop
    uint8_steps: tuple[Step, ...]
    float_steps: tuple[Step, ...]  # Begins with the first step that takes float32.


@functools.lru_cache(64)
def parse(text: str, where: str = FIELD) -> Augmentation:
    """Returns the steps of an augmentation string.

    Raises ConfigError, in one line that begins with `where`, for wrong syntax, names, arguments
    or order.
    """
    return _ordered(_calls(text, where), where)


def normalize(text: str, where: str = FIELD) -> str:
    """Returns the canonical spelling of an augmentation string, such as `resize|randaug(2,10)`.

    Raises ConfigError as `parse` does, but imports nothing: only the syntax of user-defined steps
    is checked.
    """
    calls = _calls(text, where)
    if not user_steps(text):
        _ordered(calls, where)
    return "|".join(map(str, calls))


def augmentations(data: Data) -> dict[str, str]:
    """Returns the augmentation of the first and the second global crop, and of local crops.

    The keys are the fields, for messages.
    """
    return {
        FIELD: data.augment,
        SECOND_FIELD: data.second_augment or data.augment,
        LOCAL_FIELD: data.local_augment,
    }


def pixels_of(step: Step) -> str:
    """Returns the pixels that a step takes: "uint8", "float32" or "any"."""
    return getattr(step, "pixels", "uint8")


def user_steps(text: str) -> list[str]:
    """Returns the steps of an augmentation string that are not rows of AUGMENTATIONS."""
    return [step.strip() for step in text.split("|") if ":" in step.partition("(")[0]]


class _Call(registry.Call):
    """One step as written."""

    def __str__(self):
        values = [repr(value) for value in self.args]
        values += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        if self.name in AUGMENTATIONS:
            values = [value.removesuffix(".0") for value in values]
        return self.name + (f"({','.join(values)})" if values else "")


def _calls(text: str, where: str) -> list[_Call]:
    calls = [_call(step.strip(), where) for step in text.split("|")]
    return [call if ":" in call.name else _checked(call, where) for call in calls]


def _call(step: str, where: str) -> _Call:
    """Parses `name` or `name(arguments)` without evaluating it."""
    if call := registry.parse_call(step):
        return _Call(*call)
    raise ConfigError(
        f"{where} has the step {step!r}; expected a name, or a name and arguments that are "
        "literals: flip, erase(0.25) or my_package.my_module:my_step(size=3)."
    )


def _checked(call: _Call, where: str) -> _Call:
    """Returns the call of a row of the table with checked arguments and without defaults."""
    entry = registry.find(AUGMENTATIONS, call.name, f"{where}: a step")
    signature = inspect.signature(entry)
    try:
        arguments = signature.bind(*call.args, **call.kwargs).arguments
    except TypeError as error:
        expected = ", ".join(signature.parameters) or "no arguments"
        raise ConfigError(f"{where}: {call}: {error}; expected {expected}.") from error
    checked = check_kwargs(entry, arguments, f"{where}: {call.name}", call.name)
    args, kwargs = [], {}
    for index, (name, parameter) in enumerate(signature.parameters.items()):
        if name not in checked:
            continue
        if len(args) == index and parameter.kind is not parameter.KEYWORD_ONLY:
            args.append(checked[name])
        else:
            kwargs[name] = checked[name]
    return _Call(call.name, tuple(args), kwargs)


def _ordered(calls: list[_Call], where: str) -> Augmentation:
    crops = [name for name, entry in AUGMENTATIONS.items() if hasattr(entry, "view")]
    steps = [_make(call, where) for call in calls]
    if [hasattr(step, "view") for step in steps] != [True] + [False] * (len(steps) - 1):
        raise ConfigError(
            f"{where} is {'|'.join(map(str, calls))!r}; expected one crop, as the first step: "
            f"{', '.join(crops)}."
        )
    pixels = [None, *map(pixels_of, steps[1:])]
    start = pixels.index("float32") if "float32" in pixels else len(steps)
    if "uint8" in pixels[start:]:
        late = calls[start + pixels[start:].index("uint8")]
        raise ConfigError(
            f"{where}: {late} takes uint8 pixels; it must come before {calls[start]}, "
            "which takes float32 pixels in [-1, 1]."
        )
    return Augmentation(steps[0], tuple(steps[1:start]), tuple(steps[start:]))


def _make(call: _Call, where: str) -> Crop | Step:
    entry = registry.find(AUGMENTATIONS, call.name, f"{where}: a step")
    try:
        step = entry(*call.args, **call.kwargs)
    except Exception as error:  # A step of the user can raise anything.
        is_step = registry.is_user_defined(call.name) and isinstance(error, TypeError)
        hint = "; name a function that returns the step" if is_step else ""
        raise ConfigError(f"{where}: {call}: {one_line(error)}{hint}.") from error
    if not (callable(step) or hasattr(step, "view")):
        raise ConfigError(
            f"{where}: {call} is a {type(step).__name__}; expected a step, which is called with an "
            "image and a numpy.random.Generator, or a crop, which has a method `view`."
        )
    if pixels_of(step) not in ("uint8", "float32", "any"):
        raise ConfigError(
            f"{where}: {call} has pixels={step.pixels!r}; expected 'uint8', 'float32' or 'any'."
        )
    return step
