"""Cosine similarity of position embeddings (Figures 7, centre, and 10; appendix D.4)."""

import numpy as np
from matplotlib.figure import FigureBase

from vit_jax.figures import style

GAP = 1  # Cells between tiles.
MAX_TICKS = 8


def cosine_similarity(embeddings: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns the cosine similarity of the embeddings of all pairs of patches: N D -> r c r c.

    The similarity of an embedding of zeros with any other is 0.
    """
    embeddings = embeddings.astype(np.float64)
    norm = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(norm > 0, norm, 1)
    return (unit @ unit.T).reshape(*grid, *grid)


def tile_similarities(similarities: np.ndarray) -> np.ndarray:
    """Returns the tiles r c of similarities r c r c side by side, with NaN between them."""
    rows, columns, r, c = similarities.shape
    tiles = np.pad(similarities, ((0, 0), (0, 0), (0, GAP), (0, GAP)), constant_values=np.nan)
    height, width = rows * (r + GAP), columns * (c + GAP)
    return tiles.transpose(0, 2, 1, 3).reshape(height, width)[:-GAP, :-GAP]


def plot_similarities(
    similarities: dict[str, np.ndarray], figure: FigureBase | None = None
) -> FigureBase:
    """Plots a tile per patch with its similarity to all patches, in a panel per model.

    Args:
      similarities: title of a panel -> cosine similarities r c r c.
      figure: figure or subfigure to plot into; a new one by default.
    """
    figure = figure or style.make_figure(4.4 * len(similarities) + 0.8, 4.4)
    panels = figure.subplots(1, len(similarities), squeeze=False)[0]
    for panel, (title, cosines) in zip(panels, similarities.items(), strict=True):
        tiles = tile_similarities(cosines)
        image = panel.imshow(tiles, vmin=-1, vmax=1, interpolation="nearest")
        panel.set(title=title, xlabel="input patch column", ylabel="input patch row")
        for axis, side in ((panel.xaxis, cosines.shape[1]), (panel.yaxis, cosines.shape[0])):
            step = -(-side // MAX_TICKS)
            tick_patches = np.arange(0, side, step)
            axis.set_ticks(tick_patches * (side + GAP) + (side - 1) / 2, tick_patches + 1)
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
    figure.colorbar(image, ax=list(panels), label="cosine similarity", shrink=0.8)
    return figure
