"""Model names and their constructors."""

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax import trees
from vit_jax.config.schema import Model
from vit_jax.config.validate import check_section
from vit_jax.errors import ConfigError, nearest
from vit_jax.models.bit_resnet import BitResNet
from vit_jax.models.layers import Layers, Size
from vit_jax.models.resnet_blocks import UNITS
from vit_jax.models.resnet_stem import Stem, stem_of
from vit_jax.models.vit import SIZES, ViT

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
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SHAPE = ("patch", "num_layers", "hidden_size", "mlp_size", "num_heads")  # Replace the name's.
BIT_OPTIONS = ("name", "pixel_stats", "head_bias", "dtype")


def list_models(pattern: str = "*") -> list[str]:
    """Names of the shapes published or in the paper that match a pattern such as `vit_*`.

    Every other pair of size and patch, depth and width is made by `create_model` as well.
    """
    return fnmatch.filter(PARAMETERS, pattern)


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    **options,
) -> ViT | BitResNet:
    """A Flax module by name.

    Names are `vit_<size><patch>`, such as `vit_b16`; `r<depth>_<size><patch>` for the hybrids,
    such as `r50_l32`; `bit_r<depth>x<width>` for the BiT ResNets.

    Args:
      num_classes: size of the head; 0 for features.
      image_size: side, or (height, width), in pixels.
      **options: the fields of `vit_jax.config.schema.Model`, where their meanings, defaults and
        bounds stand: `pool`, `pre_logits`, `pos_embed`, `gelu`, `norm_eps`, `dtype`,
        `dropout`, `registers`, `layer_scale`, `num_layers`, and more.

    Raises ConfigError, in one line, for a name or a size that cannot be.
    """
    return build(section(name, **options), num_classes=num_classes, image_size=image_size)


def section(name: str, **options) -> Model:
    """A checked `config.model` section: the fields given, and defaults for the rest."""
    fields = {field.name: field.default for field in dataclasses.fields(Model)}
    return check_section(Model, fields | {"name": name} | options, "model")


def build(config: Model, *, num_classes: int, image_size: int | tuple[int, int]) -> ViT | BitResNet:
    """The model of a `config.model` section; raises ConfigError for what cannot be built."""
    size = _sides(image_size)
    if type(num_classes) is not int or num_classes < 0:
        raise ConfigError(f"num_classes is {num_classes!r}; it must be a whole number, 0 for none.")
    bit = re.fullmatch(r"bit_r(\d{2,3})x([1-9]\d?)", config.name)
    vit = re.fullmatch(r"(r\d{0,3}|vit)_([a-z0-9]*?[a-z])([1-9]\d{0,3})", config.name)
    if bit and int(bit[1]) in UNITS:
        return _build_bit(config, UNITS[int(bit[1])], int(bit[2]), num_classes, size)
    if vit and vit[2] in SIZES:
        if vit[1] == "vit":
            return _build_vit(config, None, vit[2], int(vit[3]), num_classes, size)
        depth = int(vit[1][1:]) if vit[1] != "r" else None
        patches = {None: (16,)} | dict.fromkeys(UNITS, (16, 32))
        if int(vit[3]) in patches.get(depth, ()):
            stem, patch = stem_of(depth, int(vit[3]))
            return _build_vit(config, stem, vit[2], patch, num_classes, size)
    raise ConfigError(
        f"model name {config.name!r} is unknown; it is vit_<{'|'.join(SIZES)}><patch>, "
        f"r<depth>_<size><16|32> or bit_r<depth>x<width>.{nearest(config.name, PARAMETERS)}"
    )


def _sides(image_size) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    is_pair = isinstance(sides, tuple | list) and len(sides) == 2
    if not is_pair or any(type(side) is not int or side < 1 for side in sides):
        raise ConfigError(f"image_size is {image_size!r}; it must be a side, or (height, width).")
    return tuple(sides)


def _build_bit(config: Model, units, width: int, num_classes: int, image_size) -> BitResNet:
    for field in dataclasses.fields(Model):
        value = getattr(config, field.name)
        if field.name not in BIT_OPTIONS and value != field.default:
            raise ConfigError(f"model.{field.name} is {value!r}; {config.name} has no such option.")
    return BitResNet(
        units=units,
        width=width,
        image_size=image_size,
        num_classes=num_classes,
        pixel_stats=config.pixel_stats,
        dtype=DTYPES[config.dtype],
        head_bias=config.head_bias,
    )


def _build_vit(
    config: Model, stem: Stem | None, size: str, patch: int, num_classes: int, image_size
) -> ViT:
    changes = {key: getattr(config, key) for key in SHAPE if getattr(config, key) is not None}
    if stem and "patch" in changes:
        raise ConfigError(f"model.patch is {config.patch}; that of {config.name} is in its name.")
    patch = changes.pop("patch", patch)
    shape = dataclasses.replace(SIZES[size], **changes)
    _check_shape(config, shape)
    if config.pos_embed_at != "stem" and config.pos_embed in ("none", "relative"):
        raise ConfigError(
            f"model.pos_embed_at is {config.pos_embed_at!r}; with pos_embed="
            f"{config.pos_embed!r} nothing is added anywhere, so leave it at 'stem'."
        )
    if config.scan and config.pos_embed_at == "layers":
        raise ConfigError(
            "model.scan is True; with pos_embed_at='layers' each layer is another, so set it False."
        )
    model = ViT(
        size=shape,
        stem=stem,
        patch_size=patch,
        image_size=image_size,
        num_classes=num_classes,
        pool=config.pool,
        pre_logits=config.pre_logits,
        head_bias=config.head_bias,
        num_registers=config.registers,
        pixel_stats=config.pixel_stats,
        layers=Layers(
            dropout=config.dropout,
            drop_path=config.drop_path,
            gelu=config.gelu,
            norm_eps=config.norm_eps,
            pos_embed=config.pos_embed,
            pos_embed_at=config.pos_embed_at,
            layer_scale=config.layer_scale,
            qk_norm=config.qk_norm,
            scan=config.scan,
            remat=config.remat,
            kernels=config.kernels,
            dtype=DTYPES[config.dtype],
        ),
    )
    _check_sides(image_size, model.patch_pixels)
    return model


def _check_shape(config: Model, size: Size) -> None:
    if size.hidden_size % size.num_heads:
        raise ConfigError(
            f"model.hidden_size {size.hidden_size} is not divisible by "
            f"model.num_heads {size.num_heads}."
        )
    parts = {"sincos": 4, "learned_2d": 2}.get(config.pos_embed, 1)
    if size.hidden_size % parts:
        raise ConfigError(
            f"model.hidden_size {size.hidden_size} is not divisible by {parts}, "
            f"as model.pos_embed={config.pos_embed!r} wants it."
        )


def _check_sides(image_size: tuple[int, int], patch: int) -> None:
    for side in image_size:
        if side < patch or side % patch:
            below, above = max(side // patch, 1) * patch, (side // patch + 1) * patch
            sizes_near = f"{below} or {above}" if below != above else str(above)
            raise ConfigError(
                f"data.image_size {image_size[0]}x{image_size[1]} does not divide into patches "
                f"of {patch}x{patch}; nearest sizes: {sizes_near}."
            )


@functools.lru_cache(maxsize=4)
def make_init(model: ViT | BitResNet) -> Callable[[jax.Array], dict]:
    """Returns `init(key) -> params`, for `jax.jit` or `jax.eval_shape`.

    Tracing a model takes seconds: the same `init`, so that shapes and values need it once.
    """

    def init(key: jax.Array) -> dict:
        return model.init(key, jnp.zeros((1, *model.image_size, 3)))["params"]

    return jax.jit(init, inline=True)


def param_shapes(model: ViT | BitResNet) -> dict[str, tuple[int, ...]]:
    """Slash name -> shape of every parameter, with no memory taken."""
    shapes = jax.eval_shape(make_init(model), jax.random.key(0))
    return {name: leaf.shape for name, leaf in trees.flatten(shapes).items()}
