"""Attention from the output token to the input (Figures 6 and 14; appendix D.8)."""

import functools
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_jax.figures import style
from vit_jax.models.resize_grid import interpolation_matrix


def rollout(layers: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the attention rollout (arXiv:2005.00928) of all layers: L times B h T T -> B T T.

    Row t is the contribution of each input token to output token t. Per layer, the weights are
    averaged over heads, the identity of the residual connection is added with weight 1/2, and rows
    are normalized to sum to 1; then "the weight matrices of all layers are recursively multiplied".
    """
    return functools.reduce(add_layer, layers, None)


def add_layer(rollout: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    """Returns a rollout B T T extended by the weights B h T T of the next layer.

    Args:
      rollout: rollout of the layers before, None for the first layer.
    """
    mean = weights.mean(axis=1, dtype=np.float64)
    mixed = 0.5 * mean + 0.5 * np.eye(mean.shape[-1])
    mixed /= mixed.sum(axis=-1, keepdims=True)
    return mixed if rollout is None else mixed @ rollout


def output_maps(rollout: np.ndarray, grid: tuple[int, int], num_output_tokens: int) -> np.ndarray:
    """Returns the contribution of each patch to the output, at most 1: B T T -> B r c.

    The output is the class token, or the mean of several, or the mean over patches.

    Args:
      num_output_tokens: `model.num_output_tokens`; 0 for the mean over patches.
    """
    N = grid[0] * grid[1]
    outputs = rollout[:, :num_output_tokens] if num_output_tokens else rollout[:, -N:]
    row = outputs.mean(axis=1)
    maps = row[:, -N:].reshape(-1, *grid)
    return maps / maps.max(axis=(1, 2), keepdims=True)


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a map r c resized to H W by bilinear interpolation with aligned corners."""
    rows, columns = (interpolation_matrix(old, new) for old, new in zip(values.shape, size))
    return rows @ values @ columns.T


def plot_rollout(images: np.ndarray, maps: np.ndarray, titles: Sequence[str] = ()) -> Figure:
    """Plots pairs of an image and the same image darkened by attention, as in Figure 6.

    Args:
      images: B H W 3 in [0, 1].
      maps: B r c, from `output_maps`.
      titles: text below each image.
    """
    columns = min(len(images), 4 if len(images) > 3 else 1)  # Pairs in a row.
    rows = -(-len(images) // columns)
    figure = style.make_figure(1.9 * 2 * columns, 2.0 * rows + 0.3)
    panels = figure.subplots(rows, 2 * columns, squeeze=False)
    for panel in panels.flat:
        style.hide_axes(panel)
    for i, (image, values) in enumerate(zip(images, maps, strict=True)):
        left, right = panels[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2]
        left.imshow(image)
        right.imshow(image * resize_map(values, image.shape[:2])[..., None])
        if i < columns:
            left.set_title("Input")
            right.set_title("Attention")
        if titles:
            left.set_xlabel(titles[i], fontsize="small")
    return figure
