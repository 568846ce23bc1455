"""Attention of each head of a layer, from the output token or from one patch."""

import numpy as np
from matplotlib.figure import Figure

from vit_jax.figures import style

COLUMNS = 6  # Panels in a row.


def head_maps(
    weights: np.ndarray, grid: tuple[int, int], num_output_tokens: int, query: int | None = None
) -> np.ndarray:
    """Returns the attention of one query of one image over the patches: h T T -> h r c.

    Args:
      num_output_tokens: `model.num_output_tokens`; 0 for the mean over patches.
      query: index of a patch, row by row; None for the output: the class token, or the mean of
        several or of all patches.
    """
    N = grid[0] * grid[1]
    if query is not None:
        rows = weights[:, weights.shape[1] - N + query]
    else:
        outputs = weights[:, :num_output_tokens] if num_output_tokens else weights[:, -N:]
        rows = outputs.mean(axis=1)
    return rows[:, -N:].reshape(-1, *grid)


def plot_heads(image: np.ndarray, maps: np.ndarray, title: str = "") -> Figure:
    """Plots an image H W 3 and the attention maps h r c of all heads.

    Args:
      title: title of the image.
    """
    columns = min(len(maps) + 1, COLUMNS)
    rows = -(-(len(maps) + 1) // columns)
    figure = style.make_figure(1.6 * columns, 1.75 * rows + 0.3)
    for panel in figure.subplots(rows, columns, squeeze=False).flat:
        style.hide_axes(panel)
    panels = iter(figure.axes)
    first = next(panels)
    first.imshow(image)
    first.set_title(title or "Input")
    for head, (panel, attention_map) in enumerate(zip(panels, maps), 1):
        panel.imshow(attention_map, vmin=0)
        panel.set_title(f"head {head}", fontsize="small")
    return figure
