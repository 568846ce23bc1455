"""Pretrained models: architecture, parameters, preprocessing and class names together."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from vit_jax.config.schema import Config
from vit_jax.data.decode import as_image
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.weights import load as load_lib


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its parameters, preprocessing and class names.

    Attributes:
      classes: class names in the order of the outputs.
      config: config of the run; None for weights that are not from a run.
    """

    model: load_lib.Model
    params: dict
    recipe: EvalRecipe
    classes: tuple[str, ...]
    config: Config | None

    def preprocess(self, images: Sequence) -> np.ndarray:
        """Returns images B H W 3 float32 in [-1, 1] for paths, PIL images or H W 3 uint8 arrays."""
        return np.stack([self.recipe(as_image(image)) for image in images])


def load(where: str | pathlib.Path) -> Pretrained:
    """Returns a pretrained model, with its parameters read.

    Args:
      where: a workdir, a stage's folder, a checkpoint, an `.npz` or `.safetensors` file, a
        Hugging Face folder, a URL or a published name.

    Raises:
      CheckpointError: there are no readable weights, or they do not determine a model.
    """
    loaded = load_lib.load(where)
    return Pretrained(loaded.model, loaded.params(), loaded.recipe, loaded.classes, loaded.config)
