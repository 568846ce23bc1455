"""Filters of the patch embedding and patches with a high response (Figure 7, left)."""

import numpy as np
from matplotlib.figure import Figure, FigureBase

from vit_jax.figures import style

NUM_COMPONENTS = 28  # As in Figure 7.
COLUMNS = 7


def principal_components(kernel: np.ndarray, count: int = NUM_COMPONENTS) -> np.ndarray:
    """Returns the first principal components of filters, with unit norm: P P 3 D -> count P P 3.

    The D filters are the samples. The sign of a component, which is arbitrary, is chosen such that
    its value of largest magnitude is positive.
    """
    filters = kernel.reshape(-1, kernel.shape[-1]).T.astype(np.float64)  # D PP3
    _, _, components = np.linalg.svd(filters - filters.mean(axis=0), full_matrices=False)
    components = components[:count]
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], axis=1)
    return (components * np.sign(largest)).reshape(-1, *kernel.shape[:3])


def top_patches(patches: np.ndarray, components: np.ndarray, count: int = 8) -> np.ndarray:
    """Returns indices K count of the patches N P P 3 with the highest response.

    Args:
      components: filters K P P 3. The response is the dot product with the centred patch.
    """
    centred = patches.reshape(len(patches), -1)
    centred = centred - centred.mean(axis=1, keepdims=True)
    responses = centred @ components.reshape(len(components), -1).T
    return np.argsort(-responses, axis=0, kind="stable")[:count].T


def plot_filters(components: np.ndarray, figure: FigureBase | None = None) -> FigureBase:
    """Plots components K P P 3, each scaled to its own range of values.

    Args:
      figure: figure or subfigure to plot into; a new one by default.
    """
    rows = -(-len(components) // COLUMNS)
    figure = figure or style.make_figure(0.75 * COLUMNS, 0.78 * rows + 0.35)
    panel = figure.subplots()
    style.hide_axes(panel)
    panel.imshow(style.tile_images(_rescale(components), COLUMNS), interpolation="nearest")
    figure.suptitle("RGB embedding filters\n(principal components)", fontsize="medium")
    return figure


def plot_top_patches(components: np.ndarray, patches: np.ndarray) -> Figure:
    """Plots components K P P 3, and beside each its `top_patches` K count P P 3."""
    K, count = patches.shape[:2]
    figure = style.make_figure(0.8 * (count + 1) + 0.2, 0.8 * K + 0.35)
    left, right = figure.subplots(1, 2, width_ratios=(1, count))
    patches = np.clip(patches.reshape(-1, *patches.shape[2:]), 0, 1)
    for panel, images, columns, title in (
        (left, _rescale(components), 1, "filter"),
        (right, patches, count, "patches with the highest response"),
    ):
        style.hide_axes(panel)
        panel.imshow(style.tile_images(images, columns), interpolation="nearest")
        panel.set_title(title, fontsize="small", loc="left")
    return figure


def _rescale(components: np.ndarray) -> np.ndarray:
    """Returns components K P P 3 with values from 0 to 1 each."""
    low, high = (f(components, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    return (components - low) / np.maximum(high - low, 1e-12)
