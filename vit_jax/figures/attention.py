"""What figures need of a model and its parameters: attention weights, positions, filters."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from vit_jax.errors import ConfigError
from vit_jax.models.layers import WEIGHTS, Block
from vit_jax.models.position import PositionEmbedding
from vit_jax.models.registry import ViT
from vit_jax.models.vit import insert_registers
from vit_jax.weights import load

FIRST = "encoderblock_0"
ATTENTION = "MultiHeadDotProductAttention_0"
ROOT = "conv_root"  # Of a hybrid's ResNet: the filters that see colours.


def refuse_without_attention(model, where: str) -> None:
    """Raises ConfigError for a model that has no attention to show."""
    if not isinstance(model, ViT):
        raise ConfigError(f"{where} is a ResNet: it has no attention and no positions to show.")


def make_attention(model: ViT, tell: Callable = lambda A: A) -> Callable[..., Iterator]:
    """Returns `attention(params, images, layers=None)`, which yields the weights of each layer.

    Images are B H W 3 in [-1, 1], as the model takes them, the weights of a layer B h T T.
    `layers` are the parameters of each layer in turn, where `params` is without them: no more
    than two layers' need memory at once.

    Args:
      tell: A -> what is told of a layer's weights in their place, on the devices.
    """
    plain = dataclasses.replace(model.config, scan=False, remat="none")
    one = dataclasses.replace(plain, num_layers=1)
    beginning = model.clone(config=one, num_classes=0)
    block = Block(plain)

    @jax.jit
    def begin(params, images: jax.Array) -> tuple:
        """What comes out of the first layer, and what is told of it."""
        _, state = beginning.apply(
            {"params": params},
            images,
            capture_intermediates=lambda module, _: module.name == FIRST,
            mutable=["intermediates", WEIGHTS],
        )
        (z,) = state["intermediates"]["Transformer"][FIRST]["__call__"]
        return z, tell(state[WEIGHTS]["Transformer"][FIRST][ATTENTION]["A"][0])

    @jax.jit
    def go_on(params, z: jax.Array) -> tuple:
        z, state = block.apply({"params": params}, z, mutable=[WEIGHTS])
        return z, tell(state[WEIGHTS][ATTENTION]["A"][0])

    def attention(params, images, layers: Iterable[dict] | None = None) -> Iterator:
        encoder = params["Transformer"]
        names = [f"encoderblock_{i}" for i in range(model.size.num_layers)]
        if layers is None:
            layers = (encoder[name] for name in names)
        layers = iter(layers)
        others = {name: own for name, own in encoder.items() if name not in names}
        z, told = begin(params | {"Transformer": others | {FIRST: next(layers)}}, images)
        for i, own in enumerate(layers, 1):  # One may be read while the one before it computes.
            yield jax.block_until_ready(told)
            z, told = go_on(own, _placed(model, encoder, z, i))
        yield told

    return attention


def _placed(model: ViT, encoder: dict, z: jax.Array, layer: int) -> jax.Array:
    """The tokens as a layer but the first takes them: with positions, where it adds some."""
    kind, where = model.config.pos_embed, model.config.pos_embed_at
    if kind in ("none", "relative") or where == "stem":
        return z
    own = encoder.get("posembed_input" if where == "shared" else f"posembed_{layer}", {})
    module = PositionEmbedding(kind, model.grid, model.has_cls, model.size.hidden_size)
    E_pos = insert_registers(module.apply({"params": own}), model.has_cls, model.config.registers)
    return z + E_pos.astype(z.dtype)


def positions(model: ViT, params: dict) -> np.ndarray | None:
    """The position embeddings N D of the patches; None where nothing is added to them."""
    kind = model.config.pos_embed
    if kind in ("none", "relative"):
        return None
    D = model.size.hidden_size
    module = PositionEmbedding(kind, model.grid, model.has_cls, D)
    own = params["Transformer"].get("posembed_input", {})
    return np.array(module.apply({"params": own})[0, int(model.has_cls) :])


def filters(model: ViT, params: dict) -> np.ndarray:
    """The filters that see the image, P P 3 D: of the patches, or of a hybrid's ResNet's root."""
    kernel = params[ROOT if model.stem else "embedding"]["kernel"]
    return np.array(kernel, np.float32)


def read_positions(where: str | pathlib.Path) -> tuple[load.Model, np.ndarray | None]:
    """The model behind WHERE and the position embeddings N D of its patches; None without any.

    No other parameters are read.
    """
    loaded = load.load(where)
    if not isinstance(loaded.model, ViT):
        return loaded.model, None
    names = [name for name in loaded.weights.shapes if "posembed_input" in name]
    return loaded.model, positions(loaded.model, {"Transformer": {}} | loaded.params(names))
