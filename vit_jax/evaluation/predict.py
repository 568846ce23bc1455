"""Class predictions for images."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data import decode
from vit_jax.data.class_folders import no_images
from vit_jax.data.listing import TAR, ImageFile, Listing, suffix_of
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import ConfigError, DataError
from vit_jax.text import warn
from vit_jax.weights import load
from vit_jax.weights.finite import require_finite

BATCH_SIZE = 32


class Prediction(NamedTuple):
    """A class and its probability."""

    label: str
    probability: float


def predict(
    where: str | pathlib.Path,
    images: Sequence | str | pathlib.Path,
    *,
    top: int = 5,
    classes: Sequence[str] | None = None,
) -> list[list[Prediction]]:
    """Returns the `top` most probable classes of every image, in order.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
      images: paths, PIL images, or arrays H W 3 uint8, of any size; or one of these. A folder or
        a .tar file is replaced by the image files in it, sorted by name.
      top: number of classes for each image; at most the number of classes of the model.
      classes: class names in the order of the head, instead of those of the weights.

    Raises DataError for an image that cannot be read.
    """
    predictor = Predictor(where, top=top, classes=classes)
    return [
        predictions
        for pixels, count in image_batches(list_images(images), predictor.recipe)
        for predictions in predictor(pixels)[:count]
    ]


class Predictor:
    """Predicts the most probable classes of batches of preprocessed images."""

    def __init__(
        self, where: str | pathlib.Path, *, top: int = 5, classes: Sequence[str] | None = None
    ):
        """The arguments are those of `predict`."""
        if top < 1:
            raise ConfigError(f"top is {top}; expected at least 1.")
        loaded = load.load(where, tuple(classes) if classes is not None else None)
        loaded.require_head()
        model, top = loaded.model, min(top, len(loaded.classes))
        self.recipe, self.classes = loaded.recipe, loaded.classes
        self._params = jax.device_put(loaded.params())

        @jax.jit
        def best(params, batch):
            logits = model.apply({"params": params}, batch)
            is_finite = jnp.isfinite(logits).all(1, keepdims=True)
            probabilities, indices = jax.lax.top_k(jax.nn.softmax(logits), top)
            return jnp.where(is_finite, probabilities, jnp.nan), indices

        self._best, self._where = best, loaded.weights.where

    def __call__(self, pixels: np.ndarray) -> list[list[Prediction]]:
        """Returns the predictions of images B H W 3 in [-1, 1].

        Raises CheckpointError if they are not finite.
        """
        probabilities, indices = jax.device_get(self._best(self._params, pixels))
        require_finite({"probability": probabilities}, self._params, self._where)
        return [
            [Prediction(self.classes[k], float(p)) for k, p in zip(labels, values)]
            for values, labels in zip(probabilities, indices)
        ]


def list_images(images: Sequence | str | pathlib.Path) -> list:
    """Returns a list of images for one image or several, with the files of each folder."""
    if decode.is_one_image(images):
        images = [images]
    files = (
        _image_files([each]) if isinstance(each, str | os.PathLike) else [each] for each in images
    )
    return list(itertools.chain.from_iterable(files))


def image_batches(images: Sequence, recipe: EvalRecipe) -> Iterator[tuple[np.ndarray, int]]:
    """Yields preprocessed images B H W 3 and how many of them are not padding.

    All batches have one shape, so that one program serves them.
    """
    size = min(BATCH_SIZE, len(images))
    for first in range(0, len(images), size or 1):
        pixels = [recipe(decode.as_image(image)) for image in images[first : first + size]]
        yield _padded(pixels, size), len(pixels)


def _padded(pixels: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Returns images, of which there is at least one, as a batch of `size`."""
    return np.stack([*pixels, *[np.zeros_like(pixels[0])] * (size - len(pixels))])


def predict_files(
    where: str,
    images: Sequence[str],
    *,
    top: int = 5,
    classes: Sequence[str] | None = None,
    max_megapixels: float = Data.max_megapixels,
) -> Iterator[tuple[pathlib.Path, list[Prediction] | None]]:
    """Yields each image file with its predictions, or with None if it cannot be read.

    A file that cannot be read is reported on standard error.

    Args:
      images: image files, and folders and .tar files that are searched for image files.
      max_megapixels: largest image to read, in millions of pixels.
    """
    predictor = Predictor(where, top=top, classes=classes)
    recipe = dataclasses.replace(predictor.recipe, max_megapixels=max_megapixels)
    files = list(_image_files(images))
    size = min(BATCH_SIZE, len(files))
    for first in range(0, len(files), size):
        batch = files[first : first + size]
        pixels = [_read(path, recipe) for path in batch]
        readable = [image for image in pixels if image is not None]
        predictions = iter(predictor(_padded(readable, size)) if readable else ())
        for file, image in zip(batch, pixels):
            yield _path_of(file), None if image is None else next(predictions)


def _path_of(file: pathlib.Path | ImageFile) -> pathlib.Path:
    return pathlib.Path(file.container, file.path) if isinstance(file, ImageFile) else file


def _read(file: pathlib.Path | ImageFile, recipe: EvalRecipe) -> np.ndarray | None:
    try:
        return recipe(decode.as_image(file))
    except DataError as error:
        warn(error)
        return None


def _image_files(images: Sequence[str]) -> Iterator[pathlib.Path | ImageFile]:
    """Yields the files named, and those in folders and tar files, sorted.

    Raises DataError for a folder or tar file without images.
    """
    for name in images:
        path = pathlib.Path(name)
        is_tar = suffix_of(str(path)) == TAR and path.is_file()
        if not (path.is_dir() or is_tar):
            yield path  # A missing file is reported when it is read.
            continue
        listing = Listing(str(path), reads_tar=is_tar)
        found = listing.images()
        files = sorted(found if is_tar else (pathlib.Path(image.container) for image in found))
        skipped = listing.skipped.describe()
        if not files:
            raise DataError(f"{name}: {no_images(skipped)}")
        if skipped:
            warn(f"{name}: skipped {skipped}")
        yield from files
