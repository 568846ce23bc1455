"""The names of every ecosystem's tensors, in tables that are read both ways.

`{i}` counts encoder layers; `{b}` and `{u}` count stages and units from 1, `{b0}` and `{u0}`
from 0.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable

from vit_jax.weights import names_flax, names_torch
from vit_jax.weights.tensor_layouts import Row


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How one ecosystem spells a family of models."""

    name: str
    mark: str  # A foreign name that only this dialect has.
    rows: tuple[Row, ...]
    roots: tuple[str, ...] = ("",)  # What may stand before every name; the first is written.
    left_out: str = r"(?!)"  # Foreign names that carry nothing for us.
    gelu: str | None = None  # Of its models, where no file says otherwise; so is the next.
    norm_eps: float | None = None


_BLOCK_0 = "Transformer/encoderblock_0"
_LAYER_0 = "encoder.layer.0"

OFFICIAL, BIG_VISION, FLAX, BIT_NPZ = "official npz", "big_vision npz", "Flax npz", "BiT npz"
TIMM, TIMM_STEM, TIMM_BIT, DINO = "timm", "timm, stem alone", "timm BiT", "DINOv2"
HF_VIT, HF_DINO, HF_BIT = "Hugging Face ViT", "Hugging Face DINOv2", "Hugging Face BiT"


def _flax_dialects() -> list[Dialect]:
    # Roots of an old optimiser and of big_vision, and what those hold besides.
    options = {"roots": ("", "opt/target/", "params/"), "left_out": r"opt/.*|chrono/.*"}
    names = names_flax
    dialects = [
        Dialect(
            name, f"{_BLOCK_0}/{spelling[2]}/Dense_0/kernel", names.flax_vit(spelling), **options
        )
        for name, spelling in ((OFFICIAL, names.PUBLISHED), (FLAX, names.LINEN))
    ]
    return [
        Dialect(BIG_VISION, "pos_embedding", names.big_vision(), **options),
        *dialects,
        Dialect(BIT_NPZ, "resnet/root_block/standardized_conv2d/kernel", names.bit_npz()),
    ]


def _timm_dialects() -> list[Dialect]:
    roots = ("", "module.", "backbone.", "model.", "teacher.backbone.")
    options = {"roots": roots, "left_out": "mask_token", "gelu": "erf", "norm_eps": 1e-6}
    vit, renamed = names_torch.timm_vit(), names_torch.renamed
    stem_alone = renamed(vit, ("backbone.stem.", "backbone."))
    dino = renamed(vit, ("reg_token", "register_tokens"))
    return [
        Dialect(TIMM_STEM, "patch_embed.backbone.conv.weight", stem_alone, **options),
        Dialect(DINO, "register_tokens", dino, **options),
        Dialect(TIMM, "patch_embed.proj.weight", vit, **options),
        Dialect(TIMM_BIT, "stem.conv.weight", names_torch.timm_bit(), roots=roots),
    ]


def _huggingface_dialects() -> list[Dialect]:
    options = {"left_out": "embeddings.mask_token", "gelu": "erf"}
    vit = {"roots": ("vit.", "deit.", ""), "norm_eps": 1e-12} | options
    dino = {"roots": ("dinov2.", "dinov2_with_registers.", ""), "norm_eps": 1e-6} | options
    marks = {  # The same name is spelt in two ways.
        4: (f"{_LAYER_0}.layernorm_before.weight", f"{_LAYER_0}.attention.attention.query.weight"),
        5: ("layers.0.layernorm_before.weight", f"{_LAYER_0}.attention.q_proj.weight"),
    }
    dialects = []
    for version, suffix in ((4, ""), (5, ", version 5")):
        of_vit, of_dino = marks[version]
        rows = names_torch.huggingface_vit(version)
        dialects.append(Dialect(HF_VIT + suffix, of_vit, rows, **vit))
        rows = names_torch.huggingface_dino(version)
        dialects.append(Dialect(HF_DINO + suffix, of_dino, rows, **dino))
    bit = names_torch.huggingface_bit()
    return [*dialects, Dialect(HF_BIT, "embedder.convolution.weight", bit, roots=("bit.", ""))]


DIALECTS = {
    dialect.name: dialect
    for dialect in (*_flax_dialects(), *_timm_dialects(), *_huggingface_dialects())
}


def recognise(names: Iterable[str]) -> tuple[Dialect, str] | None:
    """The dialect that a file's names are in, with the root before them."""
    names = set(names)
    for dialect in DIALECTS.values():
        for root in dialect.roots:
            if root + dialect.mark in names:
                return dialect, root
    return None


def resolve(dialect: Dialect, name: str) -> Row | None:
    """The row of a foreign name without its root, its counters filled in; None for none."""
    for row, pattern in _patterns(dialect.name, "theirs"):
        if match := pattern.fullmatch(name):
            return _filled(row, match)
    return None


def rows_for(dialect: Dialect, names: Iterable[str]) -> tuple[list[Row], list[str]]:
    """Filled rows that write all of our names, and the names that the dialect cannot write."""
    rows, unknown = {}, []
    for name in names:
        for row, pattern in _patterns(dialect.name, "ours"):
            if match := pattern.fullmatch(name):
                filled = _filled(row, match)
                rows[filled.theirs] = filled
                break
        else:
            unknown.append(name)
    return list(rows.values()), unknown


@functools.cache
def _patterns(dialect: str, side: str) -> list[tuple[Row, re.Pattern]]:
    """Each row with the pattern of its foreign name, or of each of our names."""
    return [
        (row, re.compile(_as_pattern(name)))
        for row in DIALECTS[dialect].rows
        for name in ((row.theirs,) if side == "theirs" else row.ours)
    ]


def _as_pattern(template: str) -> str:
    return re.sub(r"\\\{(\w+)(:02d)?\\\}", r"(?P<\1>\\d{1,4})", re.escape(template))


def _filled(row: Row, match: re.Match) -> Row:
    """The row with the counters of a match; stages and units count from 1 and from 0."""
    counts = {name: int(digits) for name, digits in match.groupdict().items()}
    for name in ("b", "u"):
        if name in counts:
            counts[f"{name}0"] = counts[name] - 1
        elif f"{name}0" in counts:
            counts[name] = counts[f"{name}0"] + 1
    ours = tuple(name.format(**counts) for name in row.ours)
    return Row(row.theirs.format(**counts), ours, row.layout)
