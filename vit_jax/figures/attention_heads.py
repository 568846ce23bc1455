"""What each head of a layer looks at: the output token's attention, or a patch's."""

import numpy as np
from matplotlib.figure import Figure

from vit_jax.figures import style

COLUMNS = 6  # Heads in a row, after the image.


def maps(
    weights: np.ndarray, grid: tuple[int, int], has_cls: bool, query: int | None = None
) -> np.ndarray:
    """Attention of one query of one image: h T T -> h r c.

    Args:
      query: the number of a patch, row by row; None for the class token, or, without one, the
        mean of all patches.
    """
    N = grid[0] * grid[1]
    if query is not None:
        rows = weights[:, weights.shape[1] - N + query]
    else:
        rows = weights[:, 0] if has_cls else weights[:, -N:].mean(axis=1)
    return rows[:, -N:].reshape(-1, *grid)


def plot(image: np.ndarray, found: np.ndarray, title: str = "") -> Figure:
    """The image H W 3, and a map r c for every head."""
    columns = min(len(found) + 1, COLUMNS)
    rows = -(-(len(found) + 1) // columns)
    figure = style.make_figure(1.6 * columns, 1.75 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel in panels:
        style.bare(panel)
    panels = iter(figure.axes)
    first = next(panels)
    first.imshow(image)
    first.set_title(title or "Input")
    for head, (panel, each) in enumerate(zip(panels, found), 1):
        panel.imshow(each, vmin=0)
        panel.set_title(f"head {head}", fontsize="small")
    return figure
