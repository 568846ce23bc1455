"""Families of published weights: options of their models that their files do not contain.

A value that neither a file nor the user gives is taken from a family only if all published weights
of the family have it. Everything taken is reported.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vit_jax.config.schema import Model
from vit_jax.distributed import multihost
from vit_jax.errors import CheckpointError
from vit_jax.models.encoders import ENCODERS, Encoder
from vit_jax.models.size_table import SIZES, Size
from vit_jax.text import warn_once
from vit_jax.weights import formats, image_processor
from vit_jax.weights.formats import Format
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.tensor_layouts import CLS, num_layers

BLOCK = "Transformer/encoderblock_0"
QUERY = f"{BLOCK}/MultiHeadDotProductAttention_0/query/kernel"
GATE = f"{BLOCK}/MlpBlock_0/Dense_gate/kernel"
FROM_MODEL = ("num_heads", "gelu", "norm_eps", "pixel_stats")
OFFICIAL = {"gelu": "tanh", "norm_eps": 1e-6, "pixel_stats": "half"}
OFFICIAL_EVALUATION = {"crop": "resize", "resample": "tf_bilinear"}
OFFICIAL_CODE = "the official code"


class Family(NamedTuple):
    """Published weights with a common recipe.

    Attributes:
      name: name for messages.
      pixel_stats: mean and deviation of the pixels.
      has_six_heads: the models of size S have 6 heads; those of MoCo v3 have 12.
      options: further options that all its models have, but their files do not contain.
      gated_mlp: MLP of its models with a gate.
      sizes: sizes that Table 1 does not have.
    """

    name: str
    pixel_stats: str
    has_six_heads: bool = True
    options: Mapping[str, object] = {}
    gated_mlp: str | None = None
    sizes: Mapping[str, Size] = {}


def family_of(encoder: Encoder) -> Family:
    """Returns the family of the weights of published encoders."""
    section = dataclasses.asdict(dataclasses.replace(Model(), **encoder.options))
    options = {name: section[name] for name in ("gelu", "norm_eps")}
    if "rope" in section["pos_embed"]:
        options |= {name: section[name] for name in ("pos_embed", "rope")}
    mlps = {encoder.options_of(size).get("mlp") for size in (*encoder.sizes, "")}
    gated = next(iter(mlps - {None}), None)
    return Family(encoder.title, section["pixel_stats"], True, options, gated, encoder.sizes)


BIT = Family("BiT", "half")
AUGREG = Family("AugReg", "half")
SIGLIP = family_of(ENCODERS["siglip"])
DEIT, DEIT_3 = Family("DeiT", "imagenet"), Family("DeiT III and DINOv2", "imagenet")
DINO = Family("DINO", "imagenet")
DINO_2, DINO_3 = (family_of(ENCODERS[name]) for name in ("dinov2", "dinov3"))
MAE, I_JEPA = (family_of(ENCODERS[name]) for name in ("mae", "ijepa"))
TIMM = Family("timm's model of this name", "half")
HUGGING_FACE = Family("Hugging Face's ViTImageProcessor", "half", has_six_heads=False)
ARCHITECTURES = (  # Pattern of a name in config.json -> family; None: several.
    (r"dinov3_vit", DINO_3),
    (r"vit_mae", MAE),
    (r"ijepa", I_JEPA),
    (r"vit_msn", None),
    (r".*dinov2.*", DINO_2),
    (r"deit.*", DEIT),
    (r".*siglip.*", SIGLIP),
    (r".*(clip|dino|eva|mae|moco|rope|sam).*", None),
    (r"vit_(tiny|small|base|large|huge)(_(patch|r)\w+)?", TIMM),
)


def find_family(
    format: Format, prefix: str, shapes: Mapping[str, tuple], kind: str
) -> Family | None:
    """Returns the family of weights, or None if several have such files.

    Args:
      format, prefix: as in `reader.WeightsFile`.
      shapes: shape by parameter name.
      kind: model_type (Hugging Face) or architecture (timm) in config.json, or ''.
    """
    for pattern, family in ARCHITECTURES:
        if re.fullmatch(pattern, kind):
            return family
    name = format.name
    has_scale = f"{BLOCK}/LayerScale_0/scale" in shapes
    for family, is_found in (
        (BIT, name in (formats.TIMM_BIT, formats.HF_BIT)),
        (DINO_2, name == formats.DINO or name.startswith(formats.HF_DINO)),
        (DINO_3, format.model_type == "dinov3_vit"),
        (DEIT, format.model_type == "deit"),
        (HUGGING_FACE, name.startswith(formats.HF_VIT)),
        (DINO, prefix == "teacher.backbone."),
        (AUGREG, "conv_root/kernel" in shapes or "pre_logits/kernel" in shapes),
        (SIGLIP, "MAPHead_0/probe" in shapes),
        (DEIT_3, has_scale and CLS in shapes),
    ):
        if is_found and not is_of_official_code(format):
            return DEIT if family is HUGGING_FACE and prefix == "deit." else family
    return None


def num_heads(shapes: Mapping[str, tuple], family: Family | None) -> tuple[int, str] | None:
    """Returns the number of heads of all published models of a size, and the reason, or None."""
    width = shapes.get("Transformer/encoder_norm/scale", (0,))[-1]
    mlp_size = max(shapes.get(f"{BLOCK}/MlpBlock_0/Dense_1/kernel", (0,)))
    depth = num_layers(shapes)
    for name, size in [*SIZES.items(), *(family.sizes.items() if family else ())]:
        if (depth, width, mlp_size) == (size.num_layers, size.hidden_size, size.mlp_size):
            if name != "s":
                return size.num_heads, f"ViT-{name.capitalize()}"
            if family and family.has_six_heads:
                return size.num_heads, family.name
    return None


def is_of_official_code(format: Format) -> bool:
    """Returns True for the npz formats of the official code, big_vision and BiT."""
    return format.name in (formats.OFFICIAL, formats.FLAX, formats.BIG_VISION, formats.BIT_NPZ)


def complete(
    metadata: WeightsMetadata,
    format: Format,
    family: Family | None,
    shapes: Mapping[str, tuple],
    model: WeightsMetadata | None,
    where: str,
) -> WeightsMetadata:
    """Returns metadata with the number of heads and the options that change outputs.

    `assumed` of the result lists all values that the file does not contain.

    Args:
      metadata: options from the user and the file.
      format, family: of the file.
      shapes: shape of the tensor by parameter name.
      model: metadata of the model that the weights are for.
      where: location of the file, for messages.

    Raises:
      CheckpointError: nothing determines the number of heads, or it contradicts the tensors.
    """
    is_official = is_of_official_code(format)
    metadata = metadata.assuming(format.name, gelu=format.gelu, norm_eps=format.norm_eps)
    if family:
        gated = {"mlp": family.gated_mlp} if GATE in shapes else {}
        metadata = metadata.assuming(
            family.name, pixel_stats=family.pixel_stats, **family.options, **gated
        )
    kernel = shapes.get(QUERY, ())
    if len(kernel) == 3:
        if metadata.num_heads not in (None, kernel[1]):
            raise CheckpointError(
                f"{where}: num_heads is {metadata.num_heads}, the tensors have {kernel[1]} heads."
            )
        metadata = dataclasses.replace(metadata, num_heads=kernel[1])
    if model:
        for name in FROM_MODEL:
            value = getattr(model, name)
            is_usual = is_official and value == OFFICIAL.get(name)
            metadata = metadata.assuming(
                OFFICIAL_CODE if is_usual else "the model", **{name: value}
            )
    has_layers = any("/encoderblock_" in name for name in shapes)
    if is_official:
        options = OFFICIAL if has_layers else {"pixel_stats": OFFICIAL["pixel_stats"]}
        metadata = metadata.assuming(OFFICIAL_CODE, **options)
    if model is None and not metadata.crop:
        is_usual = is_official and not format.evaluation.crop
        source = OFFICIAL_CODE if is_usual else format.name
        metadata = metadata.assuming(source, **_evaluation(format, where))
    if CLS in shapes or has_layers:
        if metadata.num_heads is None and (found := num_heads(shapes, family)):
            metadata = metadata.assuming(found[1], num_heads=found[0])
        if metadata.num_heads is None:
            unknown = ["num_heads"] + ["pixel_stats"] * (metadata.pixel_stats is None)
            raise ask(where, unknown, shapes)
    return metadata


def report(metadata: WeightsMetadata, where: str, is_published: bool) -> None:
    """Prints the assumed options of a file in one line on standard error, once for each file.

    Args:
      is_published: the file has a published name, so only what the model changes is an assumption.
    """
    values_of: dict[str, list[str]] = {}
    for note in metadata.assumed or ():
        value, _, source = note.partition(" ")
        if not is_published or source == "(the model)":
            values_of.setdefault(source, []).append(value)
    if values_of and multihost.is_process_0():
        listed = "; ".join(f"{', '.join(values)} {source}" for source, values in values_of.items())
        warn_once(f"{where}: assumed {listed}.")


def grid_note(metadata: WeightsMetadata) -> str:
    """Returns the assumption about the position grid if two grids fit, else ''."""
    note = metadata.assumption("image_size")
    return f" (assumed {note})" if "fits, too" in note else ""


def _evaluation(format: Format, where: str) -> dict:
    """Returns crop and resampling of the evaluation of a project."""
    if format.evaluation.crop:
        return format.evaluation.known_fields()
    if is_of_official_code(format):
        return OFFICIAL_EVALUATION
    if format.model_type:
        return image_processor.from_huggingface({}, format.model_type, None, where)
    return image_processor.from_timm({}, where)


def ask(where: str, unknown: Sequence[str], shapes: Mapping[str, tuple]) -> CheckpointError:
    """Returns the error that asks the user for options of a file."""
    width = shapes.get("Transformer/encoder_norm/scale", (0,))[-1]
    known = "6 heads in DeiT, 12 in MoCo v3" if width == 384 else "any divisor of it"
    texts = {
        "num_heads": f"num_heads for width {width} ({known})",
        "pixel_stats": "pixel_stats (half in AugReg, imagenet in DeiT, DINO, MAE and MoCo v3)",
        "gelu": "gelu (quick in OpenAI's CLIP, erf in OpenCLIP)",
    }
    listed = " and ".join(texts[name] for name in unknown)
    divisors = [h for h in range(1, width + 1) if width % h == 0]
    usual = width / 64  # Heads of most models have 64 dimensions.
    examples = {
        "num_heads": str(min(divisors, key=lambda h: abs(h - usual), default=1)),
        "pixel_stats": "imagenet",
        "gelu": "quick",
    }
    example = ",".join(f"{name}={examples[name]}" for name in unknown)
    return CheckpointError(
        f"{where}: cannot infer {listed}; neither the file nor a config.json beside it gives this. "
        f"Give it after a colon, as in {where}:{example}."
    )
