"""Predictions of patches that a model does not see (Figure 2 of arXiv:2111.06377)."""

from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from vit_jax.figures import style
from vit_jax.models import trees
from vit_jax.tasks.registry import Objective, can_reconstruct
from vit_jax.weights import load_task
from vit_jax.weights.finite import require_finite_params
from vit_jax.weights.lazy_weights import LazyWeights

GREY = 0.5  # Of a patch that the model does not see.


class Reconstruction(NamedTuple):
    """Images B H W 3 in [0, 1], in the order of the columns of the figure.

    Attributes:
      original: the images.
      masked: grey in place of the patches whose content is predicted.
      predicted: the predictions of all patches.
      combined: the predictions beside the other patches of the image.
    """

    original: np.ndarray
    masked: np.ndarray
    predicted: np.ndarray
    combined: np.ndarray


TITLES = Reconstruction("original", "masked", "reconstruction", "with visible patches")


def find_objective(where: str) -> tuple[Objective, LazyWeights] | None:
    """Returns the task of a run that predicts patches, and its weights; None for others."""
    found = load_task.load_objective(where)
    return found if found and can_reconstruct(found[0]) else None


def reconstruct(objective: Objective, weights: LazyWeights, images: np.ndarray) -> Reconstruction:
    """Returns images B H W 3 in [-1, 1] beside what the model predicts for them.

    The patches of an image are chosen by its place among the images, as in evaluation.

    Args:
      objective: a task whose `reconstruct` predicts patches.
      weights: all parameters of the task's model; CheckpointError if any is not finite.
    """
    params = trees.unflatten(dict(weights.read(None)))
    require_finite_params(params, weights.where)
    batch = {"image": images, "number": np.arange(len(images), dtype=np.int32)}
    is_predicted, predictions = jax.device_get(jax.jit(objective.reconstruct)(params, batch))
    return combine(images, is_predicted, predictions, objective.model.grid)


def combine(
    images: np.ndarray, is_predicted: np.ndarray, predictions: np.ndarray, grid: tuple[int, int]
) -> Reconstruction:
    """Returns the columns of the figure.

    Args:
      images, predictions: B H W 3 in [-1, 1]; predictions may exceed this range.
      is_predicted: B N, True for the patches whose content is predicted.
      grid: number of patches along height and width.
    """
    B, H, W, _ = images.shape
    rows, columns = grid
    where = is_predicted.reshape(B, rows, columns, 1)
    where = where.repeat(H // rows, axis=1).repeat(W // columns, axis=2)
    original, predicted = (np.clip((pixels + 1) / 2, 0, 1) for pixels in (images, predictions))
    return Reconstruction(
        original=original,
        masked=np.where(where, np.float32(GREY), original),
        predicted=predicted,
        combined=np.where(where, predicted, original),
    )


def plot_reconstructions(reconstruction: Reconstruction) -> Figure:
    """Plots a row for each image, with the columns `TITLES`."""
    count, height, width, _ = reconstruction.original.shape
    figure = style.make_figure(1.9 * len(TITLES), 1.95 * count * height / width + 0.3)
    panels = figure.subplots(count, len(TITLES), squeeze=False)
    for column, (title, images) in enumerate(zip(TITLES, reconstruction, strict=True)):
        panels[0, column].set_title(title)
        for panel, pixels in zip(panels[:, column], images, strict=True):
            style.hide_axes(panel)
            panel.imshow(pixels)
    return figure
