"""Mean attention distance by head and depth (Figures 7, right, and 11; appendix D.7)."""

import matplotlib
import numpy as np
from matplotlib.figure import FigureBase

from vit_jax.figures import style


def distances(grid: tuple[int, int], patch_pixels: int) -> np.ndarray:
    """Pixels between the centres of every two patches: N N."""
    places = np.stack(np.mgrid[: grid[0], : grid[1]], axis=-1).reshape(-1, 2)
    return patch_pixels * np.linalg.norm(places[:, None] - places[None], axis=-1)


def mean_distance(weights: np.ndarray, grid: tuple[int, int], patch_pixels: int) -> np.ndarray:
    """How far away a head looks, in pixels: attention weights B h T T of a layer -> h.

    The distance between query and key, weighted by attention; the mean over images and queries.
    The paper does not say what becomes of the class token: here neither it nor a register asks or
    is asked, and the weights that are left are made to sum to 1.
    """
    N = grid[0] * grid[1]
    among_patches = weights[..., -N:, -N:]
    far = distances(grid, patch_pixels)[None, None]
    found = (among_patches * far).sum(axis=-1)  # B h N
    return (found / among_patches.sum(axis=-1)).mean(axis=(0, 2))


def plot(found: dict[str, np.ndarray], figure: FigureBase | None = None) -> FigureBase:
    """A dot for every head over the depth of its layer; a panel for each model.

    Args:
      found: title -> pixels L h.
      figure: a part of a figure to draw into.
    """
    figure = figure or style.make_figure(4.4 * len(found), 3.4)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, (title, pixels) in zip(panels, found.items(), strict=True):
        num_layers, num_heads = pixels.shape
        colours = matplotlib.colormaps[style.MAP](np.linspace(0.25, 0.95, num_heads))
        for head, colour in enumerate(colours):
            label = f"head {head + 1}" if head in (0, num_heads - 1) else None
            panel.scatter(range(num_layers), pixels[:, head], 14, color=colour, label=label)
        panel.plot(pixels.mean(axis=1), color=style.COLOURS[1], label="mean")
        panel.set(title=title, xlabel="network depth (layer)")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_ylim(0, 1.08 * max(each.max() for each in found.values()))
        panel.grid(alpha=0.4)
    panels[0].set_ylabel("mean attention distance (pixels)")
    panels[0].legend(fontsize="small")
    return figure
