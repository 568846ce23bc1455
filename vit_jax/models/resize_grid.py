"""Resizing of grids of vectors, such as position embeddings (section 3.2), by several rules.

Every rule is separable: it is a function of the lengths of one axis before and after, which
returns the matrix, new x old, that resizes the axis. `RESIZE_RULES` has the rules by name.
"""

import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np

from vit_jax.config.registry import Table
from vit_jax.errors import ConfigError

OFFICIAL = "aligned_bilinear"
# Added to the new length where DINO and DINOv2 compute their scale; a remedy for rounding there
# that changes the values (github.com/facebookresearch/dino/issues/8).
DINO_OFFSET = 0.1


class ResizeRule(Protocol):
    """Entry of `RESIZE_RULES`: the new x old matrix that resizes one axis."""

    def __call__(self, old: int, new: int) -> np.ndarray: ...


def interpolation_matrix(old: int, new: int) -> np.ndarray:
    """Returns the matrix of the official code, which keeps the values at both ends.

    This is `scipy.ndimage.zoom(order=1)`; big_vision has it too. `jax.image.resize` samples at
    half-pixel centres and gives other values.
    """
    positions = np.linspace(0.0, old - 1.0, new)
    left = np.clip(np.floor(positions).astype(int), 0, max(old - 2, 0))
    right = np.minimum(left + 1, old - 1)
    fraction = positions - left
    matrix = np.zeros((new, old))
    rows = np.arange(new)
    matrix[rows, left] += 1 - fraction
    matrix[rows, right] += fraction
    return matrix


def bicubic_matrix(old: int, new: int, offset: float = 0.0) -> np.ndarray:
    """Returns the matrix of PyTorch's bicubic interpolation at half-pixel centres.

    Args:
      old, new: lengths of the axis.
      offset: is added to the new length to compute the scale.
    """
    centres = _centres(old, new, old / (new + offset))
    left = np.floor(centres).astype(int)
    matrix, rows = np.zeros((new, old)), np.arange(new)
    for column in range(-1, 3):  # The four nearest values; those beyond an end are the last one.
        weights = _cubic(left + column - centres, a=-0.75)
        np.add.at(matrix, (rows, np.clip(left + column, 0, old - 1)), weights)
    return matrix


def antialiased_matrix(old: int, new: int, kernel: Callable) -> np.ndarray:
    """Returns the matrix of a kernel that is widened to average the values when downsampling."""
    scale = old / new
    distances = np.arange(old) - _centres(old, new, scale)[:, None]
    weights = kernel(distances / max(scale, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def _centres(old: int, new: int, scale: float) -> np.ndarray:
    """Positions of the new values between the old ones, at half-pixel centres."""
    return (np.arange(new) + 0.5) * scale - 0.5


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys' cubic kernel; PyTorch has a=-0.75 without and a=-0.5 with antialiasing."""
    x = np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x**2 + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0.0)


RESIZE_RULES: Table = Table(
    None,
    {
        # The official code and big_vision, with SigLIP and SigLIP 2.
        OFFICIAL: interpolation_matrix,
        # MAE, DeiT, DeiT III, BEiT, EVA-02, I-JEPA, and Hugging Face's interpolate_pos_encoding.
        "bicubic": bicubic_matrix,
        # DINO, and DINOv2 without registers (dinov2/models/vision_transformer.py).
        "bicubic_offset": functools.partial(bicubic_matrix, offset=DINO_OFFSET),
        # DINOv2 with registers (dinov2/hub/backbones.py), open_clip, and all models of timm.
        "bicubic_antialias": functools.partial(antialiased_matrix, kernel=_cubic),
        # TIPS (jax.image.resize).
        "bilinear_antialias": functools.partial(antialiased_matrix, kernel=_triangle),
    },
)


def axis_matrix(rule: ResizeRule, old: int, new: int) -> np.ndarray:
    """Returns the new x old matrix of a rule; raises ConfigError for a rule with another result."""
    matrix = np.asarray(rule(old, new))
    if matrix.shape != (new, old) or not np.isfinite(matrix).all():
        raise ConfigError(
            f"the resize rule {getattr(rule, '__name__', rule)} returns an array of "
            f"{matrix.shape} for lengths {old} and {new}; expected finite numbers, {new} x {old}."
        )
    return matrix


def resize_grid(
    grid: np.ndarray, shape: tuple[int, int], rule: ResizeRule = interpolation_matrix
) -> np.ndarray:
    """Returns a grid h w D resized to shape[0] shape[1] D, in the dtype of the grid.

    Args:
      grid: the vectors.
      shape: the new rows and columns.
      rule: a value of `RESIZE_RULES`.
    """
    rows, columns = (axis_matrix(rule, old, new) for old, new in zip(grid.shape, shape))
    resized = np.einsum("yh,xw,hwD->yxD", rows, columns, np.asarray(grid, np.float64))
    return resized.astype(grid.dtype)
