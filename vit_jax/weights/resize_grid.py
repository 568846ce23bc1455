"""Align-corners resizing of grids of vectors, such as position embeddings (section 3.2).

The official code interpolates with `scipy.ndimage.zoom(order=1)`, which keeps the four
corners of the grid where they are. `jax.image.resize` samples at half-pixel centres and
gives other numbers.
"""

import numpy as np


def interpolation_matrix(old: int, new: int) -> np.ndarray:
    """The matrix new x old that resizes one axis, end points kept, without antialiasing."""
    places = np.linspace(0.0, old - 1.0, new)
    left = np.clip(np.floor(places).astype(int), 0, max(old - 2, 0))
    right = np.minimum(left + 1, old - 1)
    fraction = places - left
    matrix = np.zeros((new, old))
    rows = np.arange(new)
    matrix[rows, left] += 1 - fraction
    matrix[rows, right] += fraction
    return matrix


def resize_grid(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear resizing of a grid h w D to `shape`, corners kept, in the grid's own dtype."""
    rows = interpolation_matrix(grid.shape[0], shape[0])
    columns = interpolation_matrix(grid.shape[1], shape[1])
    resized = np.einsum("yh,xw,hwD->yxD", rows, columns, np.asarray(grid, np.float64))
    return resized.astype(grid.dtype)
