"""Frozen features: what a model makes of images before its head."""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.errors import ConfigError
from vit_jax.models.vit import ViT, encoder_of

LAYERS = ("pre_logits", "token", "mean", "tokens", "block_I")
BLOCK = r"block_(0|[1-9][0-9]*)"


def check_layer(model, layer: str) -> None:
    """Raises ConfigError, with what there is, for a layer that the model has not."""
    if layer == "pre_logits":
        return
    if not isinstance(model, ViT):
        raise ConfigError(f"--layer is {layer!r}; a ResNet has pre_logits only.")
    block = re.fullmatch(BLOCK, layer)
    if block:
        if int(block[1]) < model.size.num_layers:
            return
        raise ConfigError(f"--layer is {layer!r}; the last is block_{model.size.num_layers - 1}.")
    if layer not in LAYERS[:-1]:
        raise ConfigError(
            f"--layer is {layer!r}; choose from {', '.join(LAYERS)}, I from 0 to "
            f"{model.size.num_layers - 1}."
        )
    if layer == "token" and not model.has_cls:
        raise ConfigError(
            f"--layer is 'token'; a model with pool={model.config.pool!r} has no class token."
        )


def make_extractor(model, layer: str = "pre_logits") -> Callable:
    """Returns `extract(params, batch) -> {"features": ...}`, for `scored_batches`.

    Args:
      layer: 'pre_logits', what the head is given, B D; of the encoder's output, normalised except
        with `model.fc_norm`, the class token or the mean of the patches, B D, or all 'tokens',
        B T D; or 'block_I', the tokens B T D after layer I, from 0. T is as in `models/vit.py`.

    Raises ConfigError for a layer that the model has not.
    """
    check_layer(model, layer)
    body = encoder_of(model)
    if layer == "pre_logits":
        return lambda params, batch: {"features": body.apply({"params": params}, batch["image"])}
    block = re.fullmatch(BLOCK, layer)
    is_normalised = not block and not model.config.fc_norm
    index = block[1] if block else model.size.num_layers - 1
    name = "encoder_norm" if is_normalised else f"encoderblock_{index}"
    # Layers that are looped over in one program have no outputs of their own to tell.
    config = dataclasses.replace(model.config, scan=False)
    body = body.clone(config=config)

    def extract(params, batch: dict) -> dict[str, jax.Array]:
        _, state = body.apply(
            {"params": params},
            batch["image"],
            capture_intermediates=lambda module, _: module.name == name,
            mutable="intermediates",
        )
        (z,) = state["intermediates"]["Transformer"][name]["__call__"]
        z = z.astype(jnp.float32)
        if layer == "token":
            return {"features": z[:, 0]}
        return {"features": jnp.mean(body.patches_of(z), axis=1) if layer == "mean" else z}

    return extract
