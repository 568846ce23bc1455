"""Attention from the output token to the input (Figures 6 and 14; appendix D.8)."""

import functools
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_jax.figures import style
from vit_jax.weights.resize_grid import interpolation_matrix


def rollout(layers: Iterable[np.ndarray]) -> np.ndarray:
    """Attention rollout (arXiv:2005.00928): weights B h T T of each layer in turn -> B T T.

    Heads are averaged, half of a residual connection's identity is added, rows are made to sum to
    1, and "the weight matrices of all layers are recursively multiplied": row t of the result is
    how much of each input token is in output token t.
    """
    return functools.reduce(deeper, layers, None)


def deeper(joint: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
    """A rollout B T T, or None before the first layer, and the weights B h T T of one more."""
    mean = weights.mean(axis=1, dtype=np.float64)
    mixed = 0.5 * mean + 0.5 * np.eye(mean.shape[-1])
    mixed /= mixed.sum(axis=-1, keepdims=True)
    return mixed if joint is None else mixed @ joint


def of_output(joint: np.ndarray, grid: tuple[int, int], has_cls: bool) -> np.ndarray:
    """What the output looks at: B T T -> B r c, the largest of each image being 1.

    The row of the class token, or, of a model without, the mean of the patches' rows.
    """
    N = grid[0] * grid[1]
    row = joint[:, 0] if has_cls else joint[:, -N:].mean(axis=1)
    found = row[:, -N:].reshape(-1, *grid)
    return found / found.max(axis=(1, 2), keepdims=True)


def enlarge(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map r c as H W, bilinearly, its corners in the corners."""
    rows, columns = (interpolation_matrix(old, new) for old, new in zip(mask.shape, size))
    return rows @ mask @ columns.T


def plot(images: np.ndarray, masks: np.ndarray, titles: Sequence[str] = ()) -> Figure:
    """Input and attention side by side, a pair for every image, as Figure 6 has them.

    Args:
      images: B H W 3 in [0, 1].
      masks: B r c, from `of_output`.
    """
    columns = min(len(images), 4 if len(images) > 3 else 1)  # Pairs in a row.
    rows = -(-len(images) // columns)
    figure = style.make_figure(1.9 * 2 * columns, 2.0 * rows + 0.3)
    panels = figure.subplots(rows, 2 * columns, squeeze=False)
    for panel in panels.flat:
        style.bare(panel)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        left, right = panels[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2]
        left.imshow(image)
        right.imshow(image * enlarge(mask, image.shape[:2])[..., None])
        if i < columns:
            left.set_title("Input")
            right.set_title("Attention")
        if titles:
            left.set_xlabel(titles[i], fontsize="small")
    return figure
