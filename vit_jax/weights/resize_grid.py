"""Align-corners bilinear resizing of grids of vectors, such as position embeddings (section 3.2).

The official code interpolates with `scipy.ndimage.zoom(order=1)`, which keeps the values at the
four corners of the grid. `jax.image.resize` samples at half-pixel centres and gives other values.
"""

import numpy as np


def interpolation_matrix(old: int, new: int) -> np.ndarray:
    """Returns the new x old matrix that resizes one axis with fixed end points."""
    positions = np.linspace(0.0, old - 1.0, new)
    left = np.clip(np.floor(positions).astype(int), 0, max(old - 2, 0))
    right = np.minimum(left + 1, old - 1)
    fraction = positions - left
    matrix = np.zeros((new, old))
    rows = np.arange(new)
    matrix[rows, left] += 1 - fraction
    matrix[rows, right] += fraction
    return matrix


def resize_grid(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns a grid h w D resized to shape[0] shape[1] D, in the dtype of the grid."""
    rows = interpolation_matrix(grid.shape[0], shape[0])
    columns = interpolation_matrix(grid.shape[1], shape[1])
    resized = np.einsum("yh,xw,hwD->yxD", rows, columns, np.asarray(grid, np.float64))
    return resized.astype(grid.dtype)
