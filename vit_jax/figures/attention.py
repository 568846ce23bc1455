"""Attention weights, position embeddings and patch filters of a model and its parameters."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from vit_jax.errors import ConfigError
from vit_jax.models.layers import WEIGHTS, Block
from vit_jax.models.position import PositionEmbedding
from vit_jax.models.registry import ViT
from vit_jax.models.transformer import insert_registers, rotary_of
from vit_jax.weights import load
from vit_jax.weights.finite import require_finite_params

FIRST_LAYER = "encoderblock_0"
ATTENTION = "MultiHeadDotProductAttention_0"
STEM_ROOT = "conv_root"  # First convolution of a hybrid's ResNet.


def require_attention(model, where: str) -> None:
    """Raises ConfigError for a model without attention."""
    if not isinstance(model, ViT):
        raise ConfigError(
            f"{where} is a ResNet, which has no attention and no position embeddings; give the "
            "weights of a Vision Transformer or hybrid."
        )


def make_attention_fn(
    model: ViT, reduce_fn: Callable = lambda weights: weights
) -> Callable[..., Iterator]:
    """Returns a function that yields the attention weights of each layer.

    It is called as `attention_fn(params, images, layers=None)` with images B H W 3 in [-1, 1], and
    yields B h T T per layer. If `layers` yields the parameters of each layer, `params` need not
    contain them; then at most two layers are in memory at once.

    Args:
      model: a Vision Transformer or hybrid.
      reduce_fn: function of a layer's weights B h T T that runs on the device; its result is
        yielded in place of the weights.
    """
    config = dataclasses.replace(model.config, scan=False, remat="none")
    one_layer = model.clone(config=dataclasses.replace(config, num_layers=1), num_classes=0)
    block, rotary = Block(config), rotary_of(config, model.grid)

    @jax.jit
    def apply_first_layer(params, images: jax.Array) -> tuple:
        """Returns the tokens B T D after the first layer, and its reduced weights."""
        _, state = one_layer.apply(
            {"params": params},
            images,
            capture_intermediates=lambda module, _: module.name == FIRST_LAYER,
            mutable=["intermediates", WEIGHTS],
        )
        (z,) = state["intermediates"]["Transformer"][FIRST_LAYER]["__call__"]
        return z, reduce_fn(state[WEIGHTS]["Transformer"][FIRST_LAYER][ATTENTION]["A"][0])

    @jax.jit
    def apply_layer(params, z: jax.Array) -> tuple:
        z, state = block.apply({"params": params}, z, rotary=rotary, mutable=[WEIGHTS])
        return z, reduce_fn(state[WEIGHTS][ATTENTION]["A"][0])

    def attention_fn(params, images, layers: Iterable[dict] | None = None) -> Iterator:
        encoder = params["Transformer"]
        names = [f"encoderblock_{i}" for i in range(model.size.num_layers)]
        if layers is None:
            layers = (encoder[name] for name in names)
        layers = iter(layers)
        others = {name: value for name, value in encoder.items() if name not in names}
        first = params | {"Transformer": others | {FIRST_LAYER: next(layers)}}
        z, weights = apply_first_layer(first, images)
        for i, layer in enumerate(layers, 1):  # Reading a layer overlaps with computing the last.
            yield jax.block_until_ready(weights)
            z, weights = apply_layer(layer, _add_position_embeddings(model, encoder, z, i))
        yield weights

    return attention_fn


def _add_position_embeddings(model: ViT, encoder: dict, z: jax.Array, layer: int) -> jax.Array:
    """Returns the input of a layer after the first, for models that add embeddings at each."""
    kind, where = model.config.pos_embed, model.config.pos_embed_at
    if kind in ("none", "relative", "rope") or where == "stem":
        return z
    params = encoder.get("posembed_input" if where == "shared" else f"posembed_{layer}", {})
    module = PositionEmbedding(kind, model.grid, model.num_class_tokens, model.size.hidden_size)
    E_pos = insert_registers(
        module.apply({"params": params}), model.num_class_tokens, model.config.registers
    )
    return z + E_pos.astype(z.dtype)


def position_embeddings(model: ViT, params: dict) -> np.ndarray | None:
    """Returns the position embeddings N D of the patches; None if the model adds none."""
    kind = model.config.pos_embed
    if kind in ("none", "relative", "rope"):
        return None
    module = PositionEmbedding(kind, model.grid, model.num_class_tokens, model.size.hidden_size)
    own = params["Transformer"].get("posembed_input", {})
    return np.array(module.apply({"params": own})[0, model.num_class_tokens :])


def read_position_embeddings(
    where: str | pathlib.Path,
) -> tuple[load.Model, np.ndarray | None]:
    """Reads a model and its `position_embeddings`, and no other parameters.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
    """
    loaded = load.load(where)
    if not isinstance(loaded.model, ViT):
        return loaded.model, None
    names = [name for name in loaded.weights.shapes if "posembed_input" in name]
    params = {"Transformer": {}} | loaded.params(names)
    require_finite_params(params, str(where))
    return loaded.model, position_embeddings(loaded.model, params)


def pixel_filters(model: ViT, params: dict) -> np.ndarray:
    """Returns the filters P P 3 D that are applied to pixels.

    These are the patch embedding's, or those of the first convolution of a hybrid's ResNet.
    """
    kernel = params[STEM_ROOT if model.stem else "embedding"]["kernel"]
    return np.array(kernel, np.float32)
