"""The options of `create_model` that make the model of some weights."""

import dataclasses
import re

from vit_jax.errors import CheckpointError
from vit_jax.models.resnet_blocks import ROOT_FEATURES, UNITS
from vit_jax.models.sizes import SIZES, Size
from vit_jax.weights.reader import MAX_LAYERS, Foreign
from vit_jax.weights.tensor_layouts import CLS, POSITIONS
from vit_jax.weights.units import stride_of, units_of

MAX_RELATIVE = 2**12  # Tokens with an embedding for each offset of two.


def model_options(found: Foreign) -> dict:
    """The arguments of `create_model` that give the model of these weights.

    Raises CheckpointError where the shapes are those of no model.
    """
    try:
        if "gn_final/scale" in found.shapes:
            return _bit_options(found)
        return _vit_options(found)
    except KeyError as error:
        raise CheckpointError(
            f"{found.path}: tensors of a model are missing; {error} is not there."
        ) from error
    except IndexError as error:
        raise CheckpointError(f"{found.path}: its tensors have the shapes of no model.") from error


def _num_classes(shapes: dict) -> int:
    return shapes.get("head/bias", shapes.get("head/kernel", (0,)))[-1]


def _bit_options(found: Foreign) -> dict:
    shapes, units = found.shapes, units_of(found.shapes)
    width = shapes["conv_root/kernel"][3] // ROOT_FEATURES
    depths = {kept: depth for depth, kept in UNITS.items()}
    if units not in depths:
        raise CheckpointError(f"{found.path}: a ResNet of {units} units in its stages is unknown.")
    return {
        "name": f"bit_r{depths[units]}x{width}",
        "num_classes": _num_classes(shapes),
        "image_size": found.facts.image_size or (224, 224),
        "pixel_stats": found.facts.pixel_stats or "half",
    }


def _vit_options(found: Foreign) -> dict:
    shapes, facts_ = found.shapes, found.facts
    block = "Transformer/encoderblock_0"
    stem, patch = _stem(found)
    D = shapes["embedding/kernel"][3]
    layers = {int(m[1]) for m in (re.search(r"encoderblock_(\d+)/", n) for n in shapes) if m}
    width = shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][0]
    if len(layers) > MAX_LAYERS or width != D:
        raise CheckpointError(
            f"{found.path}: {len(layers)} layers of width {width} after patches of width {D}."
        )
    mlp_size = shapes[f"{block}/MlpBlock_0/Dense_0/kernel"][1]
    options = {
        **_named(stem, patch, Size(len(layers), D, mlp_size, facts_.num_heads)),
        "num_classes": _num_classes(shapes),
        "pool": _pool(found, D),
        "pre_logits": "pre_logits/kernel" in shapes,
        "registers": shapes["registers"][1] if "registers" in shapes else 0,
        "qk_norm": f"{block}/MultiHeadDotProductAttention_0/query_ln/scale" in shapes,
        **_position_options(found),
    }
    if f"{block}/LayerScale_0/scale" in shapes:
        options["layer_scale"] = 1.0  # Whatever it began with.
    known = {"gelu": facts_.gelu, "norm_eps": facts_.norm_eps, "pixel_stats": facts_.pixel_stats}
    return options | {name: value for name, value in known.items() if value is not None}


def _pool(found: Foreign, D: int) -> str:
    if "MAPHead_0/probe" in found.shapes:
        return "map"
    if CLS not in found.shapes:
        return "gap"
    if found.facts.pool is None:
        return "token_gap" if found.shapes.get("head/kernel", (D,))[0] == 2 * D else "token"
    return found.facts.pool


def _position_options(found: Foreign) -> dict:
    known, shapes = found.facts, found.shapes
    kind = "learned" if POSITIONS in shapes else known.pos_embed
    if "Transformer/posembed_input/x_embedding" in shapes:
        kind = "learned_2d"
    if any("/relative_embedding" in name for name in shapes):
        kind = "relative"
    if kind is None or known.image_size is None:
        raise CheckpointError(
            f"{found.path}: no position embeddings in it, and nothing says whether they are "
            "fixed (sincos) or none; load it into a model that does."
        )
    if kind == "relative":
        _refuse_relative(found)
    place = known.pos_embed_at or "stem"
    if any("/posembed_1/" in name for name in shapes):
        place = "layers"
    return {"pos_embed": kind, "pos_embed_at": place, "image_size": known.image_size}


def _refuse_relative(found: Foreign) -> None:
    """Each offset of two tokens has an embedding; a model takes memory for all pairs of tokens."""
    shapes, (height, width) = found.shapes, found.facts.image_size
    patch = shapes["embedding/kernel"][0] * stride_of(shapes)
    tokens = (height // patch) * (width // patch) + (CLS in shapes)
    tokens += shapes["registers"][1] if "registers" in shapes else 0
    offsets = {s[0] for name, s in shapes.items() if name.endswith("/relative_embedding")}
    if tokens > MAX_RELATIVE or offsets != {2 * tokens - 1}:
        raise CheckpointError(
            f"{found.path}: no relative positions of {tokens} tokens; at most {MAX_RELATIVE} are "
            "read, with an embedding for each of their offsets."
        )


def _named(stem: str, patch: int, size: Size) -> dict:
    """The name of a shape, or the name and changes that make one that has none."""
    for name, row in SIZES.items():
        if row == size:
            return {"name": f"{stem}_{name}{patch}"}
    return {"name": f"{stem}_b{patch}", **dataclasses.asdict(size)}


def _stem(found: Foreign) -> tuple[str, int]:
    """What stands before the size in a model's name, and the patch after it."""
    if "conv_root/kernel" not in found.shapes:
        return "vit", found.shapes["embedding/kernel"][0]
    units = units_of(found.shapes)
    if not units:
        return "r", 16
    for depth, kept in UNITS.items():
        if units == kept:
            return f"r{depth}", 32
        if units == (*kept[:2], kept[2] + kept[3]):
            return f"r{depth}", 16
    raise CheckpointError(f"{found.path}: a ResNet of {units} units in its stages is unknown.")
