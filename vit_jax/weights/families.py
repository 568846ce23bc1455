"""Families of published weights: options of their models that their files do not contain.

A value that neither a file nor the user gives is taken from a family only if all published weights
of the family have it. Everything taken is reported.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vit_jax.config.schema import Model
from vit_jax.distributed import multihost
from vit_jax.errors import CheckpointError
from vit_jax.models.encoders import ENCODERS, parse_name
from vit_jax.models.layers import GATED_MLPS
from vit_jax.models.size_table import SIZES, Size
from vit_jax.text import warn_once
from vit_jax.weights import formats, image_processor
from vit_jax.weights.formats import Format
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.tensor_layouts import CLS, POSITIONS, num_layers

BLOCK = "Transformer/encoderblock_0"
QUERY = f"{BLOCK}/MultiHeadDotProductAttention_0/query/kernel"
PROBE, PRE_NORM = "MAPHead_0/probe", "Transformer/pre_norm/scale"
EVA_FORMATS = (formats.TIMM_EVA, formats.TIMM_EVA_SPLIT, formats.TIMM_EVA_SEPARATE)
FROM_MODEL = ("num_heads", "gelu", "norm_eps", "pixel_stats", "mlp")
OFFICIAL = {"gelu": "tanh", "norm_eps": 1e-6, "pixel_stats": "half"}
OFFICIAL_EVALUATION = {"crop": "resize", "resample": "tf_bilinear"}
OFFICIAL_CODE = "the official code"


class Family(NamedTuple):
    """Published weights with a common recipe.

    Attributes:
      title: name for messages.
      options: fields of the metadata that all its weights have.
      key: its name in `ENCODERS`; None for a family without a row.
      has_six_heads: the models of size S have 6 heads; those of MoCo v3 have 12.
    """

    title: str
    options: Mapping[str, object]
    key: str | None = None
    has_six_heads: bool = True


BIT, AUGREG = Family("BiT", {"pixel_stats": "half"}), Family("AugReg", {"pixel_stats": "half"})
DEIT_3_OR_DINO_2 = Family("DeiT III and DINOv2", {"pixel_stats": "imagenet"})
TIMM = Family("timm's model of this name", {"pixel_stats": "half"})
HUGGING_FACE = Family(
    "Hugging Face's ViTImageProcessor", {"pixel_stats": "half"}, has_six_heads=False
)
CLIP = Family("CLIP", {"norm_eps": 1e-5})  # Of OpenAI or of open_clip, as the GELU shows.
CLIP_OF_GELU = {"quick": "clip", "erf": "openclip"}
EVA = Family("EVA", {"gelu": "erf", "norm_eps": 1e-6, "pos_embed": "learned"})
TIMM_ROPE = Family(
    "timm's ViT with rotary positions",
    {"gelu": "erf", "norm_eps": 1e-6, "pos_embed": "rope", "rope": "eva02"},
)
KINDS = (  # Pattern of timm's architecture, also with its tag, or model_type -> row, or family.
    (r"vit_\w+\.mae", "mae"),
    (r"vit_\w+\.dino", "dino"),
    (r"vit_\w+\.\w+_ijepa", "ijepa"),
    (r".*reg\d*_dinov2.*|dinov2_with_registers", "dinov2_reg"),
    (r".*dinov2.*", "dinov2"),
    (r".*dinov3.*|.*_lingbot", "dinov3"),
    (r".*_tipsv2", "tips"),
    (r"deit3_.*", "deit3"),
    (r"deit_.*distilled.*", "deit_distilled"),
    (r"deit.*", "deit"),
    (r".*siglip.*", "siglip"),
    (r"eva02_.*", "eva02"),
    (r"eva_.*", EVA),
    (r"vit_\w+_rope_reg\d_gap_\d+", TIMM_ROPE),
    (r".*clip_quickgelu.*", "clip"),
    (r".*_clip_.*", "openclip"),
    (r"clip.*", CLIP),
    (r"vit_mae", "mae"),
    (r"ijepa", "ijepa"),
    (r"vit_msn", None),
    (r".*(dino|eva|mae|moco|rope|sam).*", None),  # Several, or one without a row.
    (r"vit_(tiny|small|base|large|huge)(_(patch|r)\w+)?", TIMM),
)
WHOLE, CENTRE = {"crop": "resize"}, {"crop": "timm", "crop_fraction": 1.0}
EVALUATIONS = {  # Row of ENCODERS -> evaluation in the authors' code, for files of these formats.
    "siglip": WHOLE | {"resample": "tf_bilinear_uint8"},
    "tips": WHOLE | {"resample": "antialias"},
    "dinov3": WHOLE | {"resample": "antialias"},
    "clip": CENTRE | {"resample": "bicubic"},
    "openclip": CENTRE | {"resample": "bicubic"},
}
ORIGINAL = (formats.BIG_VISION, formats.DINO, formats.DINO_3, formats.OPEN_CLIP, formats.TIPS)
UNDETERMINED = {"openclip": ("pixel_stats",)}  # Options in which the weights of a row differ.


def of_encoder(key: str, undetermined: Iterable[str] = ()) -> Family:
    """Returns the family of a row of `ENCODERS`, without the undetermined options."""
    encoder = ENCODERS[key]
    options = {name: getattr(Model, name) for name in ("gelu", "norm_eps", "pixel_stats")}
    known = [field.name for field in dataclasses.fields(WeightsMetadata)]
    options |= {name: value for name, value in encoder.options.items() if name in known}
    if "rope" in options.get("pos_embed", ""):
        options.setdefault("rope", Model.rope)
    mlps = (encoder.options_of(size).get("mlp") for size in ("", *encoder.size_options))
    options["mlp"] = next(filter(None, mlps), None)
    for name in (*UNDETERMINED.get(key, ()), *undetermined):
        del options[name]
    return Family(encoder.title, options, key)


def find_family(
    format: Format,
    prefix: str,
    shapes: Mapping[str, tuple],
    kind: str,
    *,
    gelu: str | None = None,
    ignored: Iterable[str] = (),
) -> Family | None:
    """Returns the family of weights, or None if several have such files.

    Args:
      format, prefix: as in `reader.WeightsFile`.
      shapes: shape of the tensor by parameter name.
      kind: model_type (Hugging Face), or architecture and tag (timm), in config.json, or ''.
      gelu: activation that the user or the file gives.
      ignored: tensors of the file that are not parameters of the model.
    """
    found = _find(format, prefix, shapes, kind, ignored)
    found = CLIP_OF_GELU.get(gelu) if found is CLIP else found
    return of_encoder(found) if isinstance(found, str) else found


def _find(format: Format, prefix: str, shapes: Mapping, kind: str, ignored: Iterable[str]):
    """The row of `ENCODERS`, or the family."""
    kinds = (kind, kind.partition(".")[0])
    for pattern, found in KINDS:
        if any(re.fullmatch(pattern, each) for each in kinds) and not (
            found == "deit" and "dist_token" in shapes
        ):
            return found
    is_scaled = f"{BLOCK}/LayerScale_0/scale" in shapes and CLS in shapes
    is_eva = format.name in EVA_FORMATS
    has_decoder = any("decoder" in name for name in ignored)
    for found, is_found in (
        ("siglip", prefix.endswith("img/") and "MAPHead_0/probe" in shapes),
        (of_encoder("tips", ["gelu"]), format.name == formats.TIPS),  # Not that of timm.
        (None, is_of_official_code(format)),
        (BIT, format.name in (formats.TIMM_BIT, formats.HF_BIT)),
        ("dinov3", format.name == formats.DINO_3 or format.model_type == "dinov3_vit"),
        ("eva02", format.name == formats.EVA_02),
        (CLIP, format.name in (formats.OPEN_CLIP, formats.HF_CLIP)),
        (CLIP, format.name == formats.TIMM and PRE_NORM in shapes),
        ("eva02", is_eva and _is_gated(shapes) and POSITIONS in shapes),
        ("dinov3", is_eva and is_scaled and "registers" in shapes and POSITIONS not in shapes),
        (None, is_eva),
        (of_encoder("siglip", ["gelu"]), format.name == formats.TIMM and PROBE in shapes),
        (_dino_2(shapes), format.name == formats.DINO or format.model_type == "dinov2"),
        ("deit_distilled", "dist_token" in shapes),
        ("mae", has_decoder),
        ("deit", "deit" in (format.model_type, prefix.removesuffix("."))),
        (HUGGING_FACE, format.name.startswith(formats.HF_VIT)),
        ("dino", prefix == "teacher.backbone."),
        (AUGREG, "conv_root/kernel" in shapes or "pre_logits/kernel" in shapes),
        ("siglip", "MAPHead_0/probe" in shapes),
        (_deit_3_or_dino_2(shapes), is_scaled),
    ):
        if is_found:
            return found
    return None


def _dino_2(shapes: Mapping[str, tuple]) -> str | None:
    """The row of a file with the names of DINOv2; TIPS has a second class token as register."""
    registers = {0: "dinov2", 1: "tips", 4: "dinov2_reg"}
    return registers.get(shapes.get("registers", (1, 0))[1])


def _deit_3_or_dino_2(shapes: Mapping[str, tuple]) -> Family | str:
    """DeiT III has no position embedding of the class token, and DINOv2 has."""
    num_positions = shapes.get(POSITIONS, (1, 0))[1]
    for key, count in (("deit3", num_positions), ("dinov2", num_positions - 1)):
        if count > 0 and math.isqrt(count) ** 2 == count and "registers" not in shapes:
            return key
    return DEIT_3_OR_DINO_2


def num_heads(shapes: Mapping[str, tuple], family: Family | None) -> tuple[int, str] | None:
    """Returns the number of heads of all published models of a size, and the reason, or None."""
    size = (num_layers(shapes), width := _width(shapes), _mlp_size(shapes, width))
    if family and family.key:
        encoder = ENCODERS[family.key]
        for name in {parse_name(f"{family.key}_{name}").size for name in encoder.published}:
            if size == _shape(encoder.size(name)):
                return encoder.size(name).num_heads, family.title
    for name, known in SIZES.items():
        if size == _shape(known):
            if name != "s":
                return known.num_heads, f"ViT-{name.capitalize()}"
            if family and family.has_six_heads:
                return known.num_heads, family.title
    return None


def _shape(size: Size) -> tuple[int, int, int]:
    return size.num_layers, size.hidden_size, size.mlp_size


def _width(shapes: Mapping[str, tuple]) -> int:
    return shapes.get(f"{BLOCK}/LayerNorm_0/scale", (0,))[-1]


def _mlp_size(shapes: Mapping[str, tuple], width: int) -> int:
    """Size of the MLP, from its last layer in any layout."""
    return math.prod(shapes.get(f"{BLOCK}/MlpBlock_0/Dense_1/kernel", (0,))) // max(width, 1)


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
    if family:
        options = {**family.options, **({} if _is_gated(shapes) else {"mlp": None})}
        metadata = metadata.assuming(family.title, **options)
        metadata = dataclasses.replace(metadata, family=family.key)
    metadata = metadata.assuming(format.name, **_format_options(format, shapes))
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
        metadata = metadata.assuming(source, **_evaluation(format, family, where))
    if CLS in shapes or has_layers:
        if metadata.num_heads is None and (found := num_heads(shapes, family)):
            metadata = metadata.assuming(found[1], num_heads=found[0])
        if metadata.num_heads is None:
            unknown = ["num_heads"] + ["pixel_stats"] * (metadata.pixel_stats is None)
            raise ask(where, unknown, shapes)
    return metadata


def _is_gated(shapes: Mapping[str, tuple]) -> bool:
    return f"{BLOCK}/MlpBlock_0/Dense_gate/kernel" in shapes


def may_rotate(format: Format, shapes: Mapping[str, tuple]) -> bool:
    """Returns True for tensors that models with and without rotary positions have."""
    is_clip = format.name == formats.TIMM and {PROBE, PRE_NORM} <= set(shapes)
    return is_clip or format.name in EVA_FORMATS


def _format_options(format: Format, shapes: Mapping[str, tuple]) -> dict[str, object]:
    """The options that all models of a format have which have tensors of these shapes."""
    options = {"gelu": format.gelu, "norm_eps": format.norm_eps}
    if format.name == formats.TIMM and {PROBE, PRE_NORM} & set(shapes):
        del options["gelu"]  # timm's SigLIP and CLIP have either of two.
    if format.name in (formats.TIMM, *EVA_FORMATS) and "fc_norm/scale" in shapes:
        options["pool"] = "gap"  # The only pooling with which timm's models have it.
    if format.name in EVA_FORMATS and _is_gated(shapes):
        options["mlp"] = GATED_MLPS["silu"]  # timm's class has no other gate.
    return options


def report(
    metadata: WeightsMetadata, where: str, is_published: bool, num_of_other_tower: int = 0
) -> None:
    """Prints the assumed options of a file in one line on standard error, once for each file.

    Args:
      metadata: metadata of the file.
      where: its location.
      is_published: the file has a published name, so only what the model changes is an assumption.
      num_of_other_tower: number of its tensors that are of another tower, in a line of their own.
    """
    values_of: dict[str, list[str]] = {}
    for note in metadata.assumed or ():
        value, _, source = note.partition(" ")
        if not is_published or source == "(the model)":
            values_of.setdefault(source, []).append(value)
    if values_of and multihost.is_process_0():
        listed = "; ".join(f"{', '.join(values)} {source}" for source, values in values_of.items())
        warn_once(f"{where}: assumed {listed}.")
    if num_of_other_tower and multihost.is_process_0():
        warn_once(f"{where}: ignored {num_of_other_tower} tensors of another tower.")


def grid_note(metadata: WeightsMetadata) -> str:
    """Returns the assumption about the position grid if two grids fit, else ''."""
    note = metadata.assumption("image_size")
    return f" (assumed {note})" if "fits, too" in note else ""


def _evaluation(format: Format, family: Family | None, where: str) -> dict:
    """Returns crop and resampling of the evaluation of a project."""
    if format.name in ORIGINAL and family and family.key in EVALUATIONS:
        return EVALUATIONS[family.key]
    if format.evaluation.crop:
        return format.evaluation.known_fields()
    if is_of_official_code(format):
        return OFFICIAL_EVALUATION
    if format.model_type:
        return image_processor.from_huggingface({}, format.model_type, None, where)
    return image_processor.from_timm({}, where)


def ask(where: str, unknown: Sequence[str], shapes: Mapping[str, tuple]) -> CheckpointError:
    """Returns the error that asks the user for options of a file."""
    width = _width(shapes)
    known = "6 heads in DeiT, 12 in MoCo v3" if width == 384 else "any divisor of it"
    texts = {
        "num_heads": f"num_heads for width {width} ({known})",
        "pixel_stats": "pixel_stats (half in AugReg, imagenet in DeiT, DINO, MAE and MoCo v3)",
        "gelu": "gelu (quick in OpenAI's CLIP, erf in most weights of open_clip)",
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
        f"Give it, or the family ({', '.join(ENCODERS)}), after a colon, as in {where}:{example}."
    )
