"""Shapes of models by name (Table 1 of arXiv:2010.11929)."""

import dataclasses
import re
from typing import NamedTuple

from vit_jax.config.schema import Model
from vit_jax.errors import ConfigError, nearest
from vit_jax.models.resnet_blocks import UNITS
from vit_jax.models.resnet_stem import Stem, stem_of


@dataclasses.dataclass(frozen=True)
class Size:
    """One row of Table 1."""

    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int


SIZES = {  # Table 1; Ti and S: arXiv:2106.10270; M: arXiv:2204.07118; g and G: arXiv:2106.04560.
    "ti": Size(12, 192, 768, 3),
    "s": Size(12, 384, 1536, 6),
    "m": Size(12, 512, 2048, 8),
    "b": Size(12, 768, 3072, 12),
    "l": Size(24, 1024, 4096, 16),
    "so400m": Size(27, 1152, 4304, 16),  # arXiv:2305.13035.
    "h": Size(32, 1280, 5120, 16),
    "g": Size(40, 1408, 6144, 16),
    "gg": Size(48, 1664, 8192, 16),  # ViT-G.
}
PARAMETERS = {  # Of the shapes published or in the paper, with 1,000 classes at 224 px.
    "vit_ti16": 5_717_416,
    "vit_s8": 22_055_272,
    "vit_s14": 22_004_584,
    "vit_s16": 22_050_664,
    "vit_s32": 22_878_952,
    "vit_m16": 38_837_736,
    "vit_m32": 39_942_120,
    "vit_b8": 86_576_872,
    "vit_b14": 86_475_496,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_l14": 304_203_752,
    "vit_l16": 304_326_632,
    "vit_l32": 306_535_400,
    "vit_so400m14": 413_597_656,
    "vit_so400m16": 413_735_896,
    "vit_h14": 632_045_800,
    "vit_h16": 632_199_400,
    "vit_g14": 1_012_611_432,
    "vit_gg14": 1_844_440_680,
    "r_ti16": 6_337_704,
    "r26_s32": 36_431_912,
    "r26_b32": 101_383_976,
    "r50_b16": 98_659_112,
    "r50_b32": 110_945_832,
    "r50_l16": 316_483_624,
    "r50_l32": 328_994_856,
    "bit_r50x1": 25_549_352,
    "bit_r50x2": 97_988_712,
    "bit_r50x3": 217_319_080,
    "bit_r101x1": 44_541_480,
    "bit_r101x3": 387_934_888,
    "bit_r152x1": 60_185_128,
    "bit_r152x2": 236_335_208,
    "bit_r152x4": 936_533_224,
    "bit_r200x3": 568_633_000,
}


SIZE_WORDS = {"tiny": "ti", "small": "s", "medium": "m", "base": "b", "large": "l", "huge": "h"}
SIZE_WORDS |= {"giant": "g", "gigantic": "gg"}
_SIZE = rf"(?P<size>{'|'.join((*SIZE_WORDS, *sorted(SIZES, key=len, reverse=True)))})"
OTHER_NAMES = (  # Names of timm, torchvision, Hugging Face and the official code -> ours.
    (r"(?:.*_)?(?:resnetv2_|bit_[sm]_r|bit_r?)(?P<shape>\d+x\d+)(?:_.*)?", "bit_r{shape}"),
    (rf"(?:.*_)?{_SIZE}_r(?P<depth>\d*)_s(?P<patch>\d+)(?:_.*)?", "r{depth}_{size}{patch}"),
    (rf"(?:.*_)?r(?P<depth>\d*)_vit_{_SIZE}_?(?P<patch>\d+)(?:_.*)?", "r{depth}_{size}{patch}"),
    (rf"(?:.*_)?{_SIZE}_(?:patch|p)_?(?P<patch>\d+)(?:_.*)?", "vit_{size}{patch}"),
    (rf"(?:.*_)?vit_?{_SIZE}_?(?P<patch>\d+)(?:_.*)?", "vit_{size}{patch}"),
)


class VitShape(NamedTuple):
    """The shape of a Vision Transformer, with a ResNet stem for a hybrid."""

    size: Size
    stem: Stem | None
    patch_size: int  # On the stem's feature map if there is a stem.


class BitShape(NamedTuple):
    """The shape of a BiT ResNet."""

    units: tuple[int, int, int, int]
    width: int


def shape_of(config: Model) -> VitShape | BitShape:
    """Returns the shape that a `config.model` section names.

    Its fields num_layers, hidden_size, mlp_size, num_heads and patch replace those of the name.
    Raises ConfigError for an unknown name.
    """
    if bit := re.fullmatch(r"bit_r(\d{2,3})x([1-9]\d?)", config.name):
        if int(bit[1]) in UNITS:
            return BitShape(UNITS[int(bit[1])], int(bit[2]))
    elif vit := re.fullmatch(r"(r\d{0,3}|vit)_([a-z0-9]*?[a-z])([1-9]\d{0,3})", config.name):
        stem, patch_size = _stem_and_patch(vit[1], int(vit[3]))
        if vit[2] in SIZES and patch_size is not None:
            return VitShape(_replaced(SIZES[vit[2]], config), stem, config.patch or patch_size)
    raise ConfigError(
        f"model name {config.name!r} is unknown; expected vit_<{'|'.join(SIZES)}><patch>, "
        f"r<depth>_<size><16|32> or bit_r<depth>x<width>.{_suggestion(config.name)}"
    )


def _suggestion(name: str) -> str:
    """A hint such as ' Did you mean vit_b16?', or ''; understands the names of other projects."""
    plain = re.sub(r"[-+/ .]", "_", name.lower())
    for pattern, template in OTHER_NAMES:
        if match := re.fullmatch(pattern, plain):
            parts = match.groupdict()
            size = parts.get("size")
            parts["size"] = SIZE_WORDS.get(size, size)
            return nearest(template.format(**parts), PARAMETERS)
    return nearest(name, PARAMETERS)


def size_of(config: Model) -> Size:
    """Returns num_layers, hidden_size, mlp_size and num_heads of the model that a section names.

    Fields of the section that are None have the values of the model's name.
    """
    return shape_of(config).size


def _stem_and_patch(prefix: str, patch: int) -> tuple[Stem | None, int | None]:
    """Returns stem and patch side of `vit` or `r<depth>`; a patch of None is not allowed."""
    if prefix == "vit":
        return None, patch
    depth = int(prefix[1:]) if prefix != "r" else None
    patches = {None: (16,)} | dict.fromkeys(UNITS, (16, 32))
    return stem_of(depth, patch) if patch in patches.get(depth, ()) else (None, None)


def _replaced(size: Size, config: Model) -> Size:
    changes = {field.name: getattr(config, field.name) for field in dataclasses.fields(Size)}
    given = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(size, **given)
