"""Mean attention distance by head and depth (Figures 7, right, and 11; appendix D.7)."""

import matplotlib
import numpy as np
from matplotlib.figure import FigureBase

from vit_jax.figures import style


def patch_distances(grid: tuple[int, int], patch_pixels: int) -> np.ndarray:
    """Returns the distances N N between the centres of patches, in pixels."""
    centres = np.stack(np.mgrid[: grid[0], : grid[1]], axis=-1).reshape(-1, 2)
    return patch_pixels * np.linalg.norm(centres[:, None] - centres[None], axis=-1)


def mean_distance(weights: np.ndarray, grid: tuple[int, int], patch_pixels: int) -> np.ndarray:
    """Returns the mean attention distance of each head of a layer, in pixels: B h T T -> h.

    The distance between query and key patch is weighted by attention and averaged over images and
    queries. The paper does not say how it treats the class token. Here the class token and
    registers are neither queries nor keys, and the remaining weights are normalized to sum to 1.
    """
    N = grid[0] * grid[1]
    patch_weights = weights[..., -N:, -N:]
    distances = patch_distances(grid, patch_pixels)[None, None]
    weighted = (patch_weights * distances).sum(axis=-1)  # B h N
    return (weighted / patch_weights.sum(axis=-1)).mean(axis=(0, 2))


def plot_distances(
    distances: dict[str, np.ndarray], figure: FigureBase | None = None
) -> FigureBase:
    """Plots a dot per head over the depth of its layer, in a panel per model.

    Args:
      distances: title of a panel -> mean distances L h in pixels.
      figure: figure or subfigure to plot into; a new one by default.
    """
    figure = figure or style.make_figure(4.4 * len(distances), 3.4)
    panels = figure.subplots(1, len(distances), sharey=True, squeeze=False)[0]
    for panel, (title, pixels) in zip(panels, distances.items(), strict=True):
        num_layers, num_heads = pixels.shape
        colours = matplotlib.colormaps[style.COLOUR_MAP](np.linspace(0.25, 0.95, num_heads))
        for head, colour in enumerate(colours):
            label = f"head {head + 1}" if head in (0, num_heads - 1) else None
            panel.scatter(range(num_layers), pixels[:, head], 14, color=colour, label=label)
        panel.plot(pixels.mean(axis=1), color=style.COLOURS[1], label="mean")
        panel.set(title=title, xlabel="network depth (layer)")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_ylim(0, 1.08 * max(pixels.max() for pixels in distances.values()))
        panel.grid(alpha=0.4)
    panels[0].set_ylabel("mean attention distance (pixels)")
    panels[0].legend(fontsize="small")
    return figure
