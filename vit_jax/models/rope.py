"""Rotary position embeddings of patches (arXiv:2104.09864), along both axes of the grid.

Pairs of channels of queries and keys are rotated by angles that grow with the position of the
patch: the first half of the pairs with its row, the second half with its column. Letters of
shapes as in models/vit.py.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.config import registry
from vit_jax.config.registry import Table

Grid = tuple[int, int]  # Patches along height and width.


@dataclasses.dataclass(frozen=True)
class Rope:
    """A convention of rotary positions.

    Attributes:
      angles: function (grid, d) -> angles N d/2 in radians, row by row.
      rotates_neighbours: channels 2i and 2i + 1 are a pair; otherwise i and i + d/2 are.
    """

    angles: Callable[[Grid, int], np.ndarray]
    rotates_neighbours: bool = False


def dinov3_angles(grid: Grid, d: int) -> np.ndarray:
    """Returns the angles of arXiv:2508.10104: coordinates in [-1, 1] over periods up to 100."""
    coordinates = [2 * (np.arange(side) + 0.5) / side - 1 for side in grid]
    periods = 100.0 ** (np.arange(d // 4) / (d // 4))
    return axial_angles(coordinates, 2 * np.pi / periods)


def eva02_angles(grid: Grid, d: int) -> np.ndarray:
    """Returns the angles of arXiv:2303.11331: positions scaled to a grid of 16x16 patches."""
    coordinates = [np.arange(side) / side * 16 for side in grid]
    return axial_angles(coordinates, 10_000.0 ** -(np.arange(d // 4) / (d // 4)))


def axial_angles(coordinates: list[np.ndarray], frequencies: np.ndarray) -> np.ndarray:
    """Returns angles N 2F of coordinates [rows, columns] and F frequencies."""
    positions = np.stack(np.meshgrid(*coordinates, indexing="ij"), axis=-1).reshape(-1, 2)
    return (positions[:, :, None] * frequencies).reshape(len(positions), -1)


ROPES = Table(
    Rope,
    {"dinov3": Rope(dinov3_angles), "eva02": Rope(eva02_angles, rotates_neighbours=True)},
)


def find_rope(name: str) -> Rope:
    """Returns a row of `ROPES`, or the row of a user-defined function of angles."""
    return registry.find(ROPES, name, "model.rope")


def make_rotary(name: str, grid: Grid, d: int, num_prefix_tokens: int) -> np.ndarray:
    """Returns cosines and sines 2 T d of all tokens; tokens before the patches are not rotated."""
    rope = find_rope(name)
    angles = np.pad(rope.angles(grid, d), ((num_prefix_tokens, 0), (0, 0)))
    channels = np.repeat(angles, 2, 1) if rope.rotates_neighbours else np.tile(angles, (1, 2))
    return np.stack([np.cos(channels), np.sin(channels)]).astype(np.float32)


def rotate(x: jax.Array, rotary: jax.Array, name: str) -> jax.Array:
    """Rotates queries or keys B T h d by cosines and sines 2 T d or 2 B T d, in float32."""
    y = x.astype(jnp.float32)
    *_, T, d = rotary.shape
    cosines, sines = rotary.reshape(2, -1, T, 1, d)
    if find_rope(name).rotates_neighbours:
        pairs = y.reshape(*y.shape[:-1], -1, 2)
        turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(y.shape)
    else:
        first, second = jnp.split(y, 2, axis=-1)
        turned = jnp.concatenate([-second, first], axis=-1)
    return (y * cosines + turned * sines).astype(x.dtype)
