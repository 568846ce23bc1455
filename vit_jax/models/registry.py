"""Models by name."""

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.config import registry
from vit_jax.config.schema import Model
from vit_jax.config.values import check_section
from vit_jax.errors import ConfigError
from vit_jax.models import encoders, trees
from vit_jax.models.bit_resnet import BitResNet
from vit_jax.models.encoders import ENCODERS
from vit_jax.models.layers import check_mlp
from vit_jax.models.size_table import PARAMETERS
from vit_jax.models.sizes import BitShape, shape_of
from vit_jax.models.vit import ViT

BIT_OPTIONS = ("name", "pixel_stats", "head_bias", "dtype")


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of published models that match a pattern such as `vit_*`.

    `create_model` builds any other pair of size and patch, or depth and width, as well.
    """
    encoders = [f"{name}_{size}" for name, row in ENCODERS.items() for size in row.published]
    return fnmatch.filter([*PARAMETERS, *encoders], pattern)


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    **options,
) -> ViT | BitResNet:
    """Returns a model, a Flax module, by name.

    Names are `vit_<size><patch>`, such as `vit_b16`; `r<depth>_<size><patch>` for the hybrids,
    such as `r50_l32`; `bit_r<depth>x<width>` for the BiT ResNets; and `<family>_<size><patch>`
    for the families of `vit_jax.models.encoders`, such as `dinov3_s16`, whose options replace
    the defaults.

    Args:
      num_classes: number of classes; 0 for features.
      image_size: side, or (height, width), in pixels.
      **options: fields of `vit_jax.config.schema.Model`, which documents them: `pool`,
        `pos_embed`, `dropout`, `num_layers`, `dtype` and others.

    Raises ConfigError, in one line, for an unknown name, an invalid size, or a user-defined MLP
    that cannot be imported.
    """
    config = section(name, **options)
    registry.import_objects(registry.user_names(config, "model"))
    return build(config, num_classes=num_classes, image_size=image_size)


def section(name: str, **options) -> Model:
    """Returns a checked `config.model` section: the given fields, and defaults for the rest."""
    fields = {field.name: field.default for field in dataclasses.fields(Model)}
    if found := encoders.parse_name(name):
        fields |= found.encoder.options_of(found.size)
    return check_section(Model, fields | {"name": name} | options, "model")


def build(config: Model, *, num_classes: int, image_size: int | tuple[int, int]) -> ViT | BitResNet:
    """Returns the model of a `config.model` section; raises ConfigError for an invalid one."""
    config, size = resolve_dtype(config), _sides(image_size)
    if type(num_classes) is not int or num_classes < 0:
        raise ConfigError(
            f"num_classes is {num_classes!r}; expected a whole number of at least 0 (0: a model "
            "without head, which returns features)."
        )
    if isinstance(shape_of(config), BitShape):
        _check_bit(config)
        return BitResNet(config, num_classes, size)
    model = ViT(config, num_classes, size)
    _check_vit(model)
    check_mlp(config)
    _check_sides(size, model.patch_pixels)
    return model


def resolve_dtype(config: Model) -> Model:
    """Returns the section with the dtype of this machine's devices in place of 'auto'."""
    if config.dtype != "auto":
        return config
    dtype = "bfloat16" if supports_bfloat16(jax.devices()[0]) else "float32"
    return dataclasses.replace(config, dtype=dtype)


def supports_bfloat16(device) -> bool:
    """Returns True for an accelerator whose matrix products are fast in bfloat16."""
    capability = str(getattr(device, "compute_capability", ""))
    is_old_gpu = re.fullmatch(r"[1-7]\.\d+", capability)  # Before NVIDIA's Ampere.
    return device.platform != "cpu" and not is_old_gpu


def _sides(image_size) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    is_pair = isinstance(sides, tuple | list) and len(sides) == 2
    if not is_pair or any(type(side) is not int or side < 1 for side in sides):
        raise ConfigError(
            f"image_size is {image_size!r}; expected a positive whole number, or two of them as "
            "(height, width)."
        )
    return tuple(sides)


def _check_bit(config: Model) -> None:
    for field in dataclasses.fields(Model):
        value = getattr(config, field.name)
        if field.name not in BIT_OPTIONS and value != field.default:
            raise ConfigError(
                f"model.{field.name} is {value!r}; {config.name} does not have this option."
            )


def _check_vit(model: ViT) -> None:
    config, size = model.config, model.size
    if model.stem and config.patch is not None:
        raise ConfigError(
            f"model.patch is {config.patch}; it must be None for {config.name}, whose name sets "
            "the patch size."
        )
    if size.hidden_size % size.num_heads:
        raise ConfigError(
            f"model.hidden_size {size.hidden_size} is not divisible by "
            f"model.num_heads {size.num_heads}."
        )
    parts = {"sincos": 4, "sincos_mae": 4, "learned_2d": 2}.get(config.pos_embed, 1)
    if size.hidden_size % parts:
        raise ConfigError(
            f"model.hidden_size {size.hidden_size} is not divisible by {parts}, "
            f"which model.pos_embed={config.pos_embed!r} requires."
        )
    _check_tokens(config)
    if "rope" in config.pos_embed and size.hidden_size // size.num_heads % 4:
        raise ConfigError(
            f"model.pos_embed is {config.pos_embed!r}, which needs heads of a multiple of 4 "
            f"channels; model.hidden_size {size.hidden_size} with model.num_heads "
            f"{size.num_heads} gives {size.hidden_size // size.num_heads}."
        )
    if config.pos_embed_at != "stem" and config.pos_embed in ("none", "relative", "rope"):
        raise ConfigError(
            f"model.pos_embed_at is {config.pos_embed_at!r}; with pos_embed="
            f"{config.pos_embed!r} no positions are added; use 'stem'."
        )
    if config.scan and config.pos_embed_at == "layers":
        raise ConfigError(
            "model.scan is True; pos_embed_at='layers' makes layers different; use scan=False."
        )


def _check_tokens(config: Model) -> None:
    if config.class_token is False and config.pool in ("token", "token_gap"):
        raise ConfigError(
            f"model.class_token is False; model.pool={config.pool!r} needs it: use pool='gap'."
        )
    if config.distill_token and config.head_norm:
        raise ConfigError("model.head_norm is True; model.distill_token=True does not support it.")
    if config.distill_token and (config.pool != "token" or config.pre_logits or config.projection):
        raise ConfigError(
            f"model.distill_token is True, with pool={config.pool!r}, "
            f"pre_logits={config.pre_logits} and projection={config.projection}; it needs "
            "pool='token', pre_logits=False and projection=None."
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
@functools.lru_cache(maxsize=4)
def make_init(model: ViT | BitResNet) -> Callable[[jax.Array], dict]:
    """Returns `init(key) -> params`, for `jax.jit` or `jax.eval_shape`; a model is traced once."""

    def init(key: jax.Array) -> dict:
        return model.init(key, jnp.zeros((1, *model.image_size, 3)))["params"]

    return jax.jit(init, inline=True)


def param_shapes(model: ViT | BitResNet) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by slash name, without allocating memory."""
    shapes = jax.eval_shape(make_init(model), jax.random.key(0))
    return {name: leaf.shape for name, leaf in trees.flatten(shapes).items()}
