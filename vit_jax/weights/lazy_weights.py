"""Parameters in storage, which are read on demand, and views of them under other names."""

import dataclasses
from collections.abc import Callable, Collection, Iterator

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.position import sincos
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.tensor_layouts import DECODER_POSITIONS, POSITIONS

POSITION_TOLERANCE = 1e-3  # Of fixed positions; files may have them in bfloat16.


@dataclasses.dataclass(frozen=True)
class LazyWeights:
    """Parameters in storage: shapes are known, arrays are read one at a time on demand.

    Attributes:
      where: location, for messages.
      shapes: shape by slash name.
      grid: grid of the position embeddings; None for a model without.
      metadata: model options that shapes do not give.
      read: names, or None for all -> (name, array) of the parameters.
      read_classes: class names in the order of the head; None for weights without names.
    """

    where: str
    shapes: dict[str, tuple[int, ...]]
    grid: tuple[int, int] | None
    metadata: WeightsMetadata
    read: Callable[[Collection[str] | None], Iterator[tuple[str, np.ndarray]]]
    read_classes: Callable[[], tuple[str, ...] | None]

    def without(self, is_left_out: Callable[[str], bool]) -> "LazyWeights":
        """Returns the weights without the parameters of some names."""
        shapes = {name: shape for name, shape in self.shapes.items() if not is_left_out(name)}

        def read(names: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
            return self.read(shapes.keys() if names is None else names)

        return dataclasses.replace(self, shapes=shapes, read=read)


def without_fixed_positions(weights: LazyWeights, model: ViT | BitResNet) -> LazyWeights:
    """Returns the weights without position tensors that have the values the model computes.

    Files of masked autoencoders contain the fixed embeddings of the encoder and of the decoder.

    Raises:
      CheckpointError: the embeddings of the decoder have other values.
    """
    fixed = {}  # Name -> kind of the positions that the model computes.
    if isinstance(model, ViT) and model.config.pos_embed.startswith("sincos"):
        fixed[POSITIONS] = model.config.pos_embed
    if isinstance(model, MaeViT):
        fixed[DECODER_POSITIONS] = model.decoder.pos_embed
    fixed = {name: kind for name, kind in fixed.items() if name in weights.shapes}
    if not fixed:
        return weights
    computed = {
        name
        for name, array in weights.read(fixed.keys())
        if name in fixed and _is_fixed(array, weights.grid, fixed[name])
    }
    if DECODER_POSITIONS in fixed.keys() - computed:
        raise CheckpointError(
            f"{weights.where}: the positions of the decoder are not those of "
            f"{fixed[DECODER_POSITIONS]}; a decoder with learned positions is not supported."
        )
    return weights.without(computed.__contains__)


def _is_fixed(positions: np.ndarray, grid: tuple[int, int], kind: str) -> bool:
    """Returns True for fixed embeddings 1 T D of patches, and zeros of the tokens before them."""
    _, T, D = positions.shape
    num_tokens = T - grid[0] * grid[1]
    if num_tokens < 0 or D % 4:
        return False
    expected = np.pad(sincos(grid, D, kind), ((num_tokens, 0), (0, 0)))
    return np.allclose(positions[0], expected, rtol=0, atol=POSITION_TOLERANCE)


def with_fixed_positions(weights: LazyWeights, model: ViT, grid: tuple[int, int]) -> LazyWeights:
    """Returns the weights with the fixed positions of their model as learned ones.

    Args:
      model: the model of the weights, whose `pos_embed` is 'sincos' or 'sincos_mae'.
      grid: number of patches along height and width.
    """
    positions = sincos(grid, model.size.hidden_size, model.config.pos_embed)
    positions = np.pad(positions, ((model.num_class_tokens, 0), (0, 0)))[None]

    def read(names: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        yield from weights.read(names)
        if names is None or POSITIONS in names:
            yield POSITIONS, positions

    return dataclasses.replace(
        weights,
        shapes=weights.shapes | {POSITIONS: positions.shape},
        grid=grid,
        metadata=dataclasses.replace(weights.metadata, pos_embed="learned"),
        read=read,
    )
