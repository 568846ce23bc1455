"""Position embeddings: E_pos of equation 1 and the alternatives of appendix D.4 (Table 8)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.config.schema import Model
from vit_jax.models.resize_grid import RESIZE_RULES, axis_matrix

TEMPERATURE = 10_000.0  # Of sincos.
# Rule of the local crops of DINO, iBOT and DINOv2 (`interpolate_pos_encoding`).
RESIZE_RULE = "bicubic_offset"


class PositionEmbedding(nn.Module):
    """E_pos, 1 T D, of the class and distillation tokens and the patches, row by row.

    Attributes:
      grid: grid of the parameters.
      num_class_tokens: number of tokens before the patches that have a position.
      resized: grid that the embeddings of the patches are resized to by `RESIZE_RULE`; None for
        `grid`.
    """

    kind: str
    grid: tuple[int, int]
    num_class_tokens: int
    hidden_size: int
    std: float | None = Model.pos_embed_std
    resized: tuple[int, int] | None = None

    @nn.compact
    def __call__(self) -> jax.Array:
        E_pos = self.embeddings()
        if self.resized in (None, self.grid):
            return E_pos
        first, patches = jnp.split(E_pos, [self.num_class_tokens], axis=1)
        return jnp.concatenate([first, resize(patches, self.grid, self.resized)], axis=1)

    def embeddings(self) -> jax.Array:
        """Returns the embeddings of `grid`."""
        (rows, columns), D = self.grid, self.hidden_size
        position_init = nn.initializers.normal(D**-0.5 if self.std is None else self.std)
        if self.kind in ("learned", "learned_rope"):
            T = rows * columns + self.num_class_tokens
            return self.param("pos_embedding", position_init, (1, T, D))
        if self.kind == "learned_2d":
            x = self.param("x_embedding", position_init, (1, columns, D // 2))
            y = self.param("y_embedding", position_init, (1, rows, D // 2))
            shape = (1, rows, columns, D // 2)
            halves = [jnp.broadcast_to(x[:, None], shape), jnp.broadcast_to(y[:, :, None], shape)]
            E_pos = jnp.concatenate(halves, axis=-1).reshape(1, rows * columns, D)
        else:
            E_pos = jnp.asarray(sincos(self.grid, D, self.kind))[None]
        return jnp.pad(E_pos, ((0, 0), (self.num_class_tokens, 0), (0, 0)))


def resize(patches: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Returns position embeddings 1 N D of a grid, resized to another by `RESIZE_RULE`."""
    rule = RESIZE_RULES[RESIZE_RULE]
    rows, columns = (np.float32(axis_matrix(rule, *sides)) for sides in zip(old, new))
    grid = patches.reshape(*old, -1)
    resized = jnp.einsum("yh,xw,hwD->yxD", rows, columns, grid, precision="highest")
    return resized.reshape(1, new[0] * new[1], -1)


def sincos(grid: tuple[int, int], hidden_size: int, kind: str = "sincos") -> np.ndarray:
    """Returns fixed embeddings N D: sines and cosines of the column, then of the row.

    The last frequency of `sincos` is 1 / TEMPERATURE; that of `sincos_mae` is one step before it.
    """
    y, x = (axis.ravel() for axis in np.mgrid[: grid[0], : grid[1]])
    quarter = hidden_size // 4
    frequencies = TEMPERATURE ** -np.linspace(0, 1, quarter, endpoint=kind == "sincos")
    angles = [np.outer(x, frequencies), np.outer(y, frequencies)]
    parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


class RelativeKeys(nn.Module):
    """Bias B h T T that relative positions add to the attention logits.

    It is the product of the query with the embedding of the offset p_q - p_k in the sequence,
    in place of the key (appendix D.4).
    """

    @nn.compact
    def __call__(self, q: jax.Array) -> jax.Array:  # B T h d -> B h T T
        _, T, h, d = q.shape
        init = nn.initializers.normal(Model.pos_embed_std)
        keys = self.param("relative_embedding", init, (2 * T - 1, h, d))
        logits = jnp.einsum("Bqhd,ohd->Bhqo", q, keys.astype(q.dtype)) / np.sqrt(d).astype(q.dtype)
        offsets = jnp.arange(T)[:, None] - jnp.arange(T)[None] + T - 1
        return jnp.take_along_axis(logits, offsets[None, None], axis=-1)
