"""What figures need of a model and its parameters: attention weights, positions, filters."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from vit_jax.errors import ConfigError
from vit_jax.models import ViT
from vit_jax.models.layers import WEIGHTS
from vit_jax.models.position import PositionEmbedding

ATTENTION = "MultiHeadDotProductAttention_0"
ROOT = "conv_root"  # Of a hybrid's ResNet: the filters that see colours.


def refuse_without_attention(model, where: str) -> None:
    """Raises ConfigError for a model that has no attention to show."""
    if not isinstance(model, ViT):
        raise ConfigError(f"{where} is a ResNet: it has no attention and no positions to show.")


def make_attention(model: ViT, tell: Callable = lambda A, layer: A) -> Callable:
    """Returns `attention(params, images) -> [B h T T]`, the weights of each layer in turn.

    Images are B H W 3 in [-1, 1], as the model takes them.

    Args:
      tell: (A, layer) -> what is told of a layer's weights A in their place, where not all of
        them are wanted: on the devices, and from 0.
    """
    layers = dataclasses.replace(model.layers, scan=False, remat="none")
    body = model.clone(num_classes=0, layers=layers)

    @jax.jit
    def attention(params, images: jax.Array) -> list[jax.Array]:
        _, state = body.apply({"params": params}, images, mutable=[WEIGHTS])
        told = state[WEIGHTS]["Transformer"]
        names = [f"encoderblock_{i}" for i in range(model.size.num_layers)]
        return [tell(told[name][ATTENTION]["A"][0], i) for i, name in enumerate(names)]

    return attention


def positions(model: ViT, params: dict) -> np.ndarray | None:
    """The position embeddings N D of the patches; None where nothing is added to them."""
    kind = model.layers.pos_embed
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
