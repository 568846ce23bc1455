"""Checkpoint formats: the name tables of other projects, for reading and for writing.

In a name, `{i}` is the index of an encoder layer; `{b}` and `{u}` are the stage and the unit of
a ResNet counted from 1, `{b0}` and `{u0}` the same counted from 0.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable

from vit_jax.weights import (
    names_flax,
    names_huggingface,
    names_original,
    names_timm,
    names_torch,
)
from vit_jax.weights.metadata import BIG_VISION_EVALUATION, UNKNOWN, WeightsMetadata
from vit_jax.weights.tensor_layouts import Row


@dataclasses.dataclass(frozen=True)
class Format:
    """Tensor names of one project for one family of models.

    Attributes:
      name: name shown in messages.
      key_tensor: name of a tensor that only this format has; identifies the format.
      rows: the name table.
      decoder: the name table of the decoder of a masked autoencoder, which is read for a model that
        has one, and else ignored.
      prefixes: prefixes that may precede every name; files are written with the first.
      is_torch: names of PyTorch, which any attribute of a user's own module may precede.
      ignored: regular expression of tensors that are not parameters of the model.
      other_tower: regular expression of tensors beside the prefix that belong to another model,
        such as the text tower of an image-text model.
      gelu, norm_eps: defaults of the project's models, where a file does not give them.
      evaluation: crop and resampling of the project's evaluation, where a file does not give them.
      model_type: model_type of a config.json of Hugging Face, whose defaults a file without one
        gets; '' for other projects.
    """

    name: str
    key_tensor: str
    rows: tuple[Row, ...]
    decoder: tuple[Row, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    is_torch: bool = False
    ignored: str = r"(?!)"
    other_tower: str = r"(?!)"
    gelu: str | None = None
    norm_eps: float | None = None
    evaluation: WeightsMetadata = UNKNOWN
    model_type: str = ""


MAE_DECODER = r"mask_token|decoder_.*"  # Of the pre-training.
MAX_CANDIDATES = 16  # Models in one file that are counted.

_BLOCK_0 = "Transformer/encoderblock_0"
_LAYER_0 = "encoder.layer.0"

OFFICIAL, BIG_VISION, FLAX, BIT_NPZ = "official npz", "big_vision npz", "Flax npz", "BiT npz"
TIMM, TIMM_STEM, TIMM_BIT = "timm", "timm without units", "timm BiT"
DINO, DINO_3, EVA_02 = "DINOv2", "DINOv3", "EVA-02"
OPEN_CLIP, TIPS = "open_clip", "TIPS npz"
# Gate and value of an MLP, or queries, keys and values, may be tensors of their own.
TIMM_EVA, TIMM_EVA_SPLIT = "timm Eva", "timm Eva with split MLP"
TIMM_EVA_SEPARATE = "timm Eva with separate projections"
HF_VIT, HF_DEIT, HF_BIT = "Hugging Face ViT", "Hugging Face DeiT", "Hugging Face BiT"
HF_DINO, HF_DINO_3 = "Hugging Face DINOv2", "Hugging Face DINOv3"
HF_DINO_GATED = "Hugging Face DINOv2 with gated MLP"
HF_SIGLIP, HF_CLIP = "Hugging Face SigLIP", "Hugging Face CLIP"


def _flax_formats() -> list[Format]:
    # Prefixes of an old Flax optimizer and of big_vision, whose files hold its state too. In its
    # models of images and text (LiT, SigLIP), the ViT is `img`; t and b scale and shift the logits.
    roots = ("", "opt/target/", "params/")
    options = {
        "prefixes": (*roots, *(f"{root}img/" for root in roots)),
        "ignored": r"opt/.*|chrono/.*",
        "other_tower": rf"({'|'.join(roots)})(txt/.*|t|b)",
    }
    formats = [
        Format(
            name,
            f"{_BLOCK_0}/{spelling[2]}/Dense_0/kernel",
            names_flax.flax_vit(spelling),
            **options,
        )
        for name, spelling in ((OFFICIAL, names_flax.PUBLISHED), (FLAX, names_flax.LINEN))
    ]
    return [
        Format(
            BIG_VISION,
            "pos_embedding",
            names_flax.big_vision(),
            evaluation=BIG_VISION_EVALUATION,
            **options,
        ),
        *formats,
        Format(BIT_NPZ, "resnet/root_block/standardized_conv2d/kernel", names_flax.bit_npz()),
    ]


def _timm_formats() -> list[Format]:
    options = {"is_torch": True, "ignored": MAE_DECODER, "gelu": "erf", "norm_eps": 1e-6}
    options["other_tower"] = r"(.+\.)?(text\..*|logit_(scale|bias))"  # Beside open_clip's trunk.
    vit, rename = names_timm.timm_vit(), names_torch.rename
    stem_without_units = rename(vit, ("backbone.stem.", "backbone."))
    eva = {
        TIMM_EVA: names_timm.timm_eva(),
        TIMM_EVA_SPLIT: names_timm.timm_eva(has_split_mlp=True),
        TIMM_EVA_SEPARATE: names_timm.timm_eva(has_split_mlp=True, has_separate_qkv=True),
    }
    return [
        Format(TIMM_STEM, "patch_embed.backbone.conv.weight", stem_without_units, **options),
        Format(TIMM, "patch_embed.proj.weight", vit, names_timm.mae_decoder(), **options),
        *(Format(name, "patch_embed.proj.weight", rows, **options) for name, rows in eva.items()),
        Format(TIMM_BIT, "stem.conv.weight", names_timm.timm_bit(), is_torch=True),
    ]


def _original_formats() -> list[Format]:
    options = {"is_torch": True, "gelu": "erf", "norm_eps": 1e-6, "ignored": "mask_token"}
    key = "patch_embed.proj.weight"
    unused = r"mask_token|rope_embed\.periods|local_cls_norm\..*|.*\.bias_mask"
    training = r"mask_token|lm_head\..*|(.*\.)?rope\.freqs_(cos|sin)"
    text = r"text\..*|transformer\..*|token_embedding\.weight|positional_embedding|ln_final\..*"
    text += r"|text_projection(\.weight)?|logit_(scale|bias)|attn_mask"
    scalars = "|input_resolution|context_length|vocab_size"  # Of OpenAI's files.
    clip = {"is_torch": True, "norm_eps": 1e-5, "prefixes": ("visual.", "")}  # Either of two GELUs.
    tips = {"gelu": "tanh", "norm_eps": 1e-6, "prefixes": ("encoder/", "params/encoder/", "")}
    tables = names_original
    return [
        Format(DINO, key, tables.dino_2(), **options),
        Format(DINO_3, key, tables.dino_3(), **options | {"ignored": unused, "norm_eps": 1e-5}),
        Format(EVA_02, key, tables.eva_02(), **options | {"ignored": training}),
        Format(
            OPEN_CLIP,
            "ln_pre.weight",
            tables.open_clip(),
            other_tower=rf"(.+\.)?({text}{scalars})",
            **clip,
        ),
        Format(TIPS, "ToTokenSequence_0/posembed_input", tables.tips(), **tips),
    ]


def _huggingface_formats() -> list[Format]:
    names = names_huggingface
    exact = {"gelu": "erf", "ignored": r"(.*\.)?(mask_token|decoder\..*)"}
    tower = {
        "prefixes": ("vision_model.", ""),
        "ignored": r"(.*\.)?position_ids",
        "other_tower": r"(.*\.)?(text_model\..*|text_projection\.weight|logit_(scale|bias))",
    }

    def versions(name: str, keys: tuple[str, str], rows: Callable, **options) -> list[Format]:
        options = exact | options
        return [
            Format(name, keys[0], rows(4), is_torch=True, **options),
            Format(f"{name}, version 5", keys[1], rows(5), is_torch=True, **options),
        ]

    vit_keys = f"{_LAYER_0}.layernorm_before.weight", "layers.0.layernorm_before.weight"
    dino_keys = (
        f"{_LAYER_0}.attention.attention.query.weight",
        f"{_LAYER_0}.attention.q_proj.weight",
    )
    vit = {"prefixes": ("vit.", "deit.", "ijepa.", ""), "norm_eps": 1e-12, "model_type": "vit"}
    vit["decoder"] = names.huggingface_mae_decoder()
    deit = {"prefixes": ("deit.", ""), "norm_eps": 1e-12, "model_type": "deit"}
    deit["ignored"] = rf"{exact['ignored']}|pooler\..*"  # Of the class token alone.
    dino = {"prefixes": ("dinov2.", "dinov2_with_registers.", ""), "norm_eps": 1e-6}
    dino |= {"model_type": "dinov2"}
    gated_dino = functools.partial(names.huggingface_dino, is_gated=True)
    dino_3 = {"norm_eps": 1e-5, "model_type": "dinov3_vit"}
    siglip = tower | {"gelu": "tanh", "norm_eps": 1e-6, "model_type": "siglip_vision_model"}
    clip = tower | {"norm_eps": 1e-5, "model_type": "clip_vision_model"}  # Either of two GELUs.
    bit = {"prefixes": ("bit.", ""), "model_type": "bit"}
    return [
        *versions(HF_VIT, vit_keys, names.huggingface_vit, **vit),
        *versions(HF_DEIT, ("embeddings.distillation_token",) * 2, names.huggingface_deit, **deit),
        *versions(HF_DINO, dino_keys, names.huggingface_dino, **dino),
        *versions(HF_DINO_GATED, dino_keys, gated_dino, **dino),
        *versions(
            HF_DINO_3,
            ("embeddings.patch_embeddings.weight",) * 2,
            names.huggingface_dino_3,
            **dino_3,
        ),
        *(
            Format(name, key, rows(), is_torch=True, **options)
            for name, key, rows, options in (
                (HF_SIGLIP, "embeddings.patch_embedding.bias", names.huggingface_siglip, siglip),
                (HF_CLIP, "embeddings.class_embedding", names.huggingface_clip, clip),
                (HF_BIT, "embedder.convolution.weight", names.huggingface_bit, bit),
            )
        ),
    ]


FORMATS = {
    format.name: format
    for format in (
        *_flax_formats(),
        *_timm_formats(),
        *_original_formats(),
        *_huggingface_formats(),
    )
}


def detect_formats(names: Iterable[str]) -> list[tuple[Format, str]]:
    """Returns the formats and prefixes of a file's tensor names that fit most names.

    The list is empty for an unknown format, and longer than one for a file of several models.
    """
    names = [without_wrappers(name) for name in names]
    candidates = []
    for format in FORMATS.values():
        for name in names:
            prefix = name.removesuffix(format.key_tensor)
            is_wrapped = format.is_torch and prefix.endswith(".")
            if name.endswith(format.key_tensor) and (prefix in format.prefixes or is_wrapped):
                candidates.append((format, prefix))
    if not 1 < len(candidates) <= MAX_CANDIDATES:
        return candidates
    counts = [sum(_is_known(*candidate, name) for name in names) for candidate in candidates]
    return [candidate for candidate, n in zip(candidates, counts) if n == max(counts)]


def _is_known(format: Format, prefix: str, name: str) -> bool:
    bare_name = name.removeprefix(prefix)
    has_row = row_of_tensor(format, bare_name) is not None
    return name.startswith(prefix) and (has_row or bool(re.fullmatch(format.ignored, bare_name)))


def without_wrappers(name: str) -> str:
    """Returns a tensor name without the modules that PyTorch wraps around others.

    These are `torch.compile`, fully sharded training, and checkpointing of activations.
    """
    wrappers = r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
    return re.sub(wrappers, "", name)


def row_of_tensor(format: Format, name: str, has_gated_fc1: bool = False) -> Row | None:
    """Returns the row of a tensor name without prefix, indices filled in; None if unknown.

    Args:
      format: format of the file.
      name: name of the tensor.
      has_gated_fc1: as the function of this name in `names_timm`.
    """
    for row, pattern in _patterns(format.name, "tensor"):
        is_excluded = row.layout == "gated" and ".fc1." in row.tensor and not has_gated_fc1
        if not is_excluded and (match := pattern.fullmatch(name)):
            return _fill_indices(row, match)
    return None


def decoder_row_of_tensor(format: Format, name: str) -> Row | None:
    """Returns the row of a tensor of the decoder, as `row_of_tensor`; None for other tensors."""
    for row, pattern in _patterns(format.name, "decoder"):
        if match := pattern.fullmatch(name):
            return _fill_indices(row, match)
    return None


def rows_of_params(format: Format, names: Iterable[str]) -> tuple[list[Row], list[str]]:
    """Returns rows that store the named parameters, and the names that the format cannot store.

    A row applies if all its parameters are among them; the first that applies is taken.
    """
    rows, unknown, names = {}, [], dict.fromkeys(names)
    for name in names:
        for row, pattern in _patterns(format.name, "params"):
            if match := pattern.fullmatch(name):
                filled = _fill_indices(row, match)
                if not names.keys() >= set(filled.params):
                    continue
                rows[filled.tensor] = filled
                break
        else:
            unknown.append(name)
    return list(rows.values()), unknown


@functools.cache
def _patterns(format_name: str, field: str) -> list[tuple[Row, re.Pattern]]:
    """Each row with the pattern of its tensor name, or of each of its parameter names.

    Args:
      field: tensor, params, or decoder for the tensor names of the decoder.
    """
    format = FORMATS[format_name]
    return [
        (row, re.compile(_as_pattern(name)))
        for row in (format.decoder if field == "decoder" else format.rows)
        for name in (row.params if field == "params" else (row.tensor,))
    ]


def _as_pattern(template: str) -> str:
    return re.sub(r"\\\{(\w+)(:02d)?\\\}", r"(?P<\1>\\d{1,4})", re.escape(template))


def _fill_indices(row: Row, match: re.Match) -> Row:
    """The row with the indices of a match; stages and units are counted from 1 and from 0."""
    indices = {name: int(digits) for name, digits in match.groupdict().items()}
    for name in ("b", "u"):
        if name in indices:
            indices[f"{name}0"] = indices[name] - 1
        elif f"{name}0" in indices:
            indices[name] = indices[f"{name}0"] + 1
    params = tuple(name.format(**indices) for name in row.params)
    return Row(row.tensor.format(**indices), params, row.layout)
