"""Filters of the initial linear embedding, and patches they answer to (Figure 7, left)."""

import numpy as np
from matplotlib.figure import Figure, FigureBase

from vit_jax.figures import style

NUM_SHOWN = 28  # As many as in Figure 7.
COLUMNS = 7


def principal_components(kernel: np.ndarray, count: int = NUM_SHOWN) -> np.ndarray:
    """Of filters P P 3 D, the first components, of length 1: count P P 3.

    The D filters are the samples, centred; a component's sign, which is arbitrary, makes its
    largest value positive.
    """
    filters = kernel.reshape(-1, kernel.shape[-1]).T.astype(np.float64)  # D PP3
    _, _, components = np.linalg.svd(filters - filters.mean(axis=0), full_matrices=False)
    components = components[:count]
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], axis=1)
    return (components * np.sign(largest)).reshape(-1, *kernel.shape[:3])


def top_patches(patches: np.ndarray, components: np.ndarray, count: int = 8) -> np.ndarray:
    """The patches N P P 3 that answer most to each component K P P 3: indices K count."""
    centred = patches.reshape(len(patches), -1)
    centred = centred - centred.mean(axis=1, keepdims=True)
    answers = centred @ components.reshape(len(components), -1).T
    return np.argsort(-answers, axis=0, kind="stable")[:count].T


def plot(components: np.ndarray, figure: FigureBase | None = None) -> FigureBase:
    """Components K P P 3, each from its least to its largest value.

    Args:
      figure: a part of a figure to draw into.
    """
    rows = -(-len(components) // COLUMNS)
    figure = figure or style.make_figure(0.75 * COLUMNS, 0.78 * rows + 0.35)
    panel = figure.subplots()
    style.bare(panel)
    panel.imshow(style.mosaic(_in_range(components), COLUMNS), interpolation="nearest")
    figure.suptitle("RGB embedding filters\n(principal components)", fontsize="medium")
    return figure


def plot_patches(components: np.ndarray, patches: np.ndarray) -> Figure:
    """Each component K P P 3, and in its row the patches K count P P 3 that answer most to it."""
    K, count = patches.shape[:2]
    figure = style.make_figure(0.8 * (count + 1) + 0.2, 0.8 * K + 0.35)
    left, right = figure.subplots(1, 2, width_ratios=(1, count))
    for panel, pictures, columns, title in (
        (left, _in_range(components), 1, "filter"),
        (right, np.clip(patches.reshape(-1, *patches.shape[2:]), 0, 1), count, "what answers most"),
    ):
        style.bare(panel)
        panel.imshow(style.mosaic(pictures, columns), interpolation="nearest")
        panel.set_title(title, fontsize="small", loc="left")
    return figure


def _in_range(components: np.ndarray) -> np.ndarray:
    """Each component K P P 3 from 0, its least value, to 1."""
    low, high = (f(components, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    return (components - low) / np.maximum(high - low, 1e-12)
