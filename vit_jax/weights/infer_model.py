"""Infers the options of `create_model` from a weights file."""

import dataclasses
import re
from collections.abc import Mapping

from vit_jax.errors import CheckpointError
from vit_jax.models.encoders import ENCODERS
from vit_jax.models.resnet_blocks import ROOT_FEATURES, UNITS
from vit_jax.models.rope import ROPES
from vit_jax.models.size_table import SIZES, Size
from vit_jax.weights import families
from vit_jax.weights.families import BLOCK, ask
from vit_jax.weights.reader import MAX_LAYERS, WeightsFile
from vit_jax.weights.tensor_layouts import CLS, POSITIONS, num_layers, resnet_units, stem_stride

MAX_RELATIVE_TOKENS = 2**12  # Relative positions take memory for all pairs of tokens.


def infer_model_options(weights: WeightsFile) -> dict:
    """Returns the keyword arguments of `create_model` that give the model of the weights.

    Raises:
      CheckpointError: tensors are missing, or their shapes are not those of a supported model.
    """
    try:
        if "gn_final/scale" in weights.shapes:
            return _bit_options(weights)
        return _vit_options(weights)
    except KeyError as error:
        raise CheckpointError(f"{weights.path}: the parameter {error} is missing.") from error
    except IndexError as error:
        raise CheckpointError(
            f"{weights.path}: its tensors do not have the shapes of a supported model."
        ) from error


def _num_classes(shapes: Mapping[str, tuple]) -> int:
    return shapes.get("head/bias", shapes.get("head/kernel", (0,)))[-1]


def _bit_options(weights: WeightsFile) -> dict:
    shapes, units = weights.shapes, resnet_units(weights.shapes)
    width = shapes["conv_root/kernel"][3] // ROOT_FEATURES
    depths = {known_units: depth for depth, known_units in UNITS.items()}
    if units not in depths:
        raise _unknown_resnet(weights, units)
    return {
        "name": f"bit_r{depths[units]}x{width}",
        "num_classes": _num_classes(shapes),
        "image_size": weights.metadata.image_size or (224, 224),
        **_required(weights, "pixel_stats"),
    }


def _required(weights: WeightsFile, *names: str) -> dict:
    """Returns options of the metadata; raises CheckpointError that asks for those missing."""
    options = {name: getattr(weights.metadata, name) for name in names}
    if unknown := [name for name, value in options.items() if value is None]:
        raise ask(str(weights.path), unknown, weights.shapes)
    return options


def _unknown_resnet(weights: WeightsFile, units: tuple[int, ...]) -> CheckpointError:
    known = ", ".join(map(str, UNITS.values()))
    return CheckpointError(
        f"{weights.path}: its ResNet has {units} units in its stages; expected one of {known}."
    )


def _vit_options(weights: WeightsFile) -> dict:
    shapes, metadata = weights.shapes, weights.metadata
    block = BLOCK
    stem, patch = _stem_and_patch(weights)
    D = shapes["embedding/kernel"][3]
    width = shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][0]
    if width != D:
        raise CheckpointError(
            f"{weights.path}: layers have the width {width}; expected that of the patch "
            f"embeddings, {D}."
        )
    if (depth := num_layers(shapes)) > MAX_LAYERS:
        raise CheckpointError(f"{weights.path}: {depth} layers; expected at most {MAX_LAYERS}.")
    mlp_size = shapes[f"{block}/MlpBlock_0/Dense_0/kernel"][1]
    pool, size = _pool(weights, D), Size(depth, D, mlp_size, metadata.num_heads)
    options = {
        **_name_options(stem, patch, size),
        "num_classes": _num_classes(shapes),
        "pool": pool,
        "class_token": True if CLS in shapes and pool in ("gap", "map") else None,
        "distill_token": "dist_token" in shapes,
        "projection": shapes.get("projection/kernel", (None,))[-1],
        "pre_logits": "pre_logits/kernel" in shapes,
        "pre_norm": "Transformer/pre_norm/scale" in shapes,
        "fc_norm": "fc_norm/scale" in shapes,
        "patch_bias": "embedding/bias" in shapes,
        "mlp_norm": f"{block}/MlpBlock_0/LayerNorm_0/scale" in shapes,
        **_mlp_options(weights),
        "qkv_bias": _qkv_bias(shapes),
        "registers": shapes["registers"][1] if "registers" in shapes else 0,
        "qk_norm": f"{block}/MultiHeadDotProductAttention_0/query_ln/scale" in shapes,
        **_position_options(weights),
    }
    if any(f"{block}/LayerScale_{n}/scale" in shapes for n in (0, 1)):
        options["layer_scale"] = 1.0  # Its initial value, which trained weights do not give.
    eps = {} if metadata.norm_eps is None else {"norm_eps": metadata.norm_eps}
    options |= eps | _required(weights, "gelu", "pixel_stats")
    return _with_family(options, metadata.family, size, patch)


def _with_family(options: dict, family: str | None, size: Size, patch: int) -> dict:
    """The options with the name of a family, if they are all those of the family."""
    encoder = ENCODERS.get(family)
    names = {**SIZES, **encoder.sizes} if encoder else ()
    # For an unnamed size, the name of B and the changed sizes.
    for name in sorted(names, key=lambda name: (encoder.size(name) != size, name != "b")):
        own, sizes, is_named = encoder.options_of(name), vars(size), encoder.size(name) == size
        named = {key: value for key, value in options.items() if key not in sizes}
        named |= ({} if is_named else sizes) | {"name": f"{family}_{name}{patch}"}
        scale = own.pop("layer_scale", None)  # Trained weights do not give its initial value.
        if own.items() <= named.items() and (scale is None) == ("layer_scale" not in named):
            return named | ({"layer_scale": scale} if scale and is_named else {})
    return options


def _mlp_options(weights: WeightsFile) -> dict:
    """The kind of the MLP; tensors show that it is gated, but not its activation."""
    if f"{BLOCK}/MlpBlock_0/Dense_gate/kernel" not in weights.shapes:
        return {}
    if weights.metadata.mlp is None:
        raise CheckpointError(
            f"{weights.path}: neither tensors nor metadata determine the activation of the gated "
            f"MLP; give it after a colon, as in {weights.path}:mlp=swiglu."
        )
    return {"mlp": weights.metadata.mlp}


def _qkv_bias(shapes: Mapping[str, tuple]) -> str:
    """The value of `model.qkv_bias` with the biases of the first layer, or a few more."""
    attention = f"{BLOCK}/MultiHeadDotProductAttention_0"
    found = [name[0] for name in ("query", "key", "value") if f"{attention}/{name}/bias" in shapes]
    return {"": "none", "qv": "qv"}.get("".join(found), "qkv")


def _pool(weights: WeightsFile, D: int) -> str:
    if "MAPHead_0/probe" in weights.shapes:
        return "map"
    if CLS not in weights.shapes:
        return "gap"
    if weights.metadata.pool is None:
        return "token_gap" if weights.shapes.get("head/kernel", (D,))[0] == 2 * D else "token"
    return weights.metadata.pool


def _position_options(weights: WeightsFile) -> dict:
    metadata, shapes = weights.metadata, weights.shapes
    pos_embed = metadata.pos_embed
    may_rotate = pos_embed is None and families.may_rotate(weights.format, shapes)
    if POSITIONS in shapes and pos_embed != "learned_rope" and not may_rotate:
        pos_embed = "learned"
    if "Transformer/posembed_input/x_embedding" in shapes:
        pos_embed = "learned_2d"
    if any("/relative_embedding" in name for name in shapes):
        pos_embed = "relative"
    unknown = {} if metadata.image_size else {"image_size": ("", "224")}
    if not pos_embed:
        kinds = "learned or learned_rope" if POSITIONS in shapes else "sincos, rope or none"
        unknown["pos_embed"] = f" ({kinds})", re.match(r"\w+", kinds)[0]
    if "rope" in (pos_embed or "") and not metadata.rope:
        unknown["rope"] = f" ({' or '.join(ROPES)})", next(iter(ROPES))
    if unknown:
        listed = " and ".join(name + allowed for name, (allowed, _) in unknown.items())
        example = ",".join(f"{name}={value}" for name, (_, value) in unknown.items())
        raise CheckpointError(
            f"{weights.path}: neither tensors nor metadata determine {listed}; give them after a "
            f"colon, as in {weights.path}:{example}."
        )
    if pos_embed == "relative":
        _check_relative_positions(weights)
    pos_embed_at = metadata.pos_embed_at or "stem"
    if any("/posembed_1/" in name for name in shapes):
        pos_embed_at = "layers"
    rope = {"rope": metadata.rope} if metadata.rope else {}
    return rope | {
        "pos_embed": pos_embed,
        "pos_embed_at": pos_embed_at,
        "image_size": metadata.image_size,
    }


def _check_relative_positions(weights: WeightsFile) -> None:
    """Raises CheckpointError unless each offset between two tokens has an embedding."""
    shapes, (height, width) = weights.shapes, weights.metadata.image_size
    patch = shapes["embedding/kernel"][0] * stem_stride(shapes)
    tokens = (height // patch) * (width // patch) + (CLS in shapes)
    tokens += shapes["registers"][1] if "registers" in shapes else 0
    offsets = {s[0] for name, s in shapes.items() if name.endswith("/relative_embedding")}
    if tokens > MAX_RELATIVE_TOKENS:
        raise CheckpointError(
            f"{weights.path}: relative position embeddings of {tokens} tokens; expected at most "
            f"{MAX_RELATIVE_TOKENS} tokens."
        )
    if offsets != {2 * tokens - 1}:
        raise CheckpointError(
            f"{weights.path}: relative position embeddings of {str(sorted(offsets)[:3])[1:-1]} "
            f"offsets; expected {2 * tokens - 1} offsets for {tokens} tokens."
        )


def _name_options(stem: str, patch: int, size: Size) -> dict:
    """The model name of a size; for an unnamed size, the name of B and the changed sizes."""
    for name, named_size in SIZES.items():
        if named_size == size:
            return {"name": f"{stem}_{name}{patch}"}
    return {"name": f"{stem}_b{patch}", **dataclasses.asdict(size)}


def _stem_and_patch(weights: WeightsFile) -> tuple[str, int]:
    """The first part of the model name, such as vit or r50, and the patch size in it."""
    if "conv_root/kernel" not in weights.shapes:
        return "vit", weights.shapes["embedding/kernel"][0]
    units = resnet_units(weights.shapes)
    if not units:
        return "r", 16
    for depth, known_units in UNITS.items():
        if units == known_units:
            return f"r{depth}", 32
        if units == (*known_units[:2], known_units[2] + known_units[3]):
            return f"r{depth}", 16
    raise _unknown_resnet(weights, units)
