"""Shapes of models by name."""

import dataclasses
import re
from typing import NamedTuple

from vit_jax.config.schema import Model
from vit_jax.errors import ConfigError, nearest
from vit_jax.models.encoders import ENCODERS, parse_name
from vit_jax.models.resnet_blocks import UNITS
from vit_jax.models.resnet_stem import Stem, stem_of
from vit_jax.models.size_table import PARAMETERS, SIZES, Size

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
    elif found := parse_name(config.name):
        size = _replaced(found.encoder.size(found.size), config)
        return VitShape(size, None, config.patch or found.patch)
    raise ConfigError(
        f"model name {config.name!r} is unknown; expected vit_<{'|'.join(SIZES)}><patch>, "
        f"r<depth>_<size><16|32>, bit_r<depth>x<width>, or <family>_<size><patch> of the families "
        f"{', '.join(ENCODERS)}.{_suggestion(config.name)}"
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
