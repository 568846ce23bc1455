"""Similarity of position embeddings (Figures 7, centre, and 10; appendix D.4)."""

import numpy as np
from matplotlib.figure import FigureBase

from vit_jax.figures import style

GAP = 1  # Cells between tiles.
MOST_TICKS = 8


def similarity(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cosine of the embeddings of every two patches: N D -> r c r c, row by row.

    A patch with an embedding of zeros is similar to none.
    """
    table = table.astype(np.float64)
    length = np.linalg.norm(table, axis=1, keepdims=True)
    unit = table / np.where(length > 0, length, 1)
    return (unit @ unit.T).reshape(*grid, *grid)


def mosaic(found: np.ndarray) -> np.ndarray:
    """Tiles, r c of them, side by side as one picture; the cells between are no numbers."""
    rows, columns, r, c = found.shape
    tiles = np.pad(found, ((0, 0), (0, 0), (0, GAP), (0, GAP)), constant_values=np.nan)
    height, width = rows * (r + GAP), columns * (c + GAP)
    return tiles.transpose(0, 2, 1, 3).reshape(height, width)[:-GAP, :-GAP]


def plot(found: dict[str, np.ndarray], figure: FigureBase | None = None) -> FigureBase:
    """A tile for each patch, which shows its similarity with all; a panel for each table.

    Args:
      found: title -> cosines r c r c.
      figure: a part of a figure to draw into.
    """
    figure = figure or style.make_figure(4.4 * len(found) + 0.8, 4.4)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (title, cosines) in zip(panels, found.items(), strict=True):
        shown = panel.imshow(mosaic(cosines), vmin=-1, vmax=1, interpolation="nearest")
        panel.set(title=title, xlabel="input patch column", ylabel="input patch row")
        for axis, side in ((panel.xaxis, cosines.shape[1]), (panel.yaxis, cosines.shape[0])):
            step = -(-side // MOST_TICKS)
            places = np.arange(0, side, step)
            axis.set_ticks(places * (side + GAP) + (side - 1) / 2, places + 1)
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
    figure.colorbar(shown, ax=list(panels), label="cosine similarity", shrink=0.8)
    return figure
