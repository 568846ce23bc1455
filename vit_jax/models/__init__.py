"""Model names and their constructor."""

import dataclasses
import fnmatch
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax import trees
from vit_jax.errors import ConfigError, nearest
from vit_jax.models.vit import GELUS, POOLS, SIZES, Layers, ViT
from vit_jax.schema import Model

PATCHES = {"Ti": (16,), "S": (16, 32), "B": (8, 16, 32), "L": (16, 32), "H": (14,)}  # As published.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the published shapes that match a shell pattern such as `vit_*`."""
    names = [f"vit_{size.lower()}{patch}" for size in SIZES for patch in PATCHES[size]]
    return fnmatch.filter(names, pattern)


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    patch: int | None = None,
    num_layers: int | None = None,
    hidden_size: int | None = None,
    mlp_size: int | None = None,
    num_heads: int | None = None,
    pool: str = Model.pool,
    pre_logits: bool = Model.pre_logits,
    dropout: float = Model.dropout,
    drop_path: float = Model.drop_path,
    gelu: str = Model.gelu,
    norm_eps: float = 1e-6,  # The official code's; 1e-12 in Hugging Face's.
    dtype: str = Model.dtype,
) -> ViT:
    """A Flax module by name: `vit_b16`, or any other `vit_<size><patch>`.

    Args:
      num_classes: size of the head; 0 for features.
      image_size: side, or (height, width), in pixels.
      patch, num_layers, hidden_size, mlp_size, num_heads: in place of the name's.
      pool: 'token' (class token), 'gap' (mean of the patch tokens) or 'map'.
      pre_logits: with the tanh layer of pre-training before the head.
      drop_path: stochastic depth of the last layer; it grows linearly with depth.
      gelu: 'tanh' (official code) or 'erf' (timm, Hugging Face).
      dtype: of the computation, 'float32' or 'bfloat16'.

    Raises ConfigError, in one line, for a name or a size that cannot be.
    """
    match = re.fullmatch(r"vit_([a-z]+)(\d+)", name)
    sizes = {size.lower(): row for size, row in SIZES.items()}
    if not match or match[1] not in sizes or int(match[2]) == 0:
        raise ConfigError(
            f"model name {name!r} is unknown; it is vit_<{'|'.join(sizes)}><patch>."
            f"{nearest(name, list_models())}"
        )
    changes = {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "mlp_size": mlp_size,
        "num_heads": num_heads,
    }
    size = dataclasses.replace(
        sizes[match[1]], **{key: value for key, value in changes.items() if value is not None}
    )
    if size.hidden_size % size.num_heads:
        raise ConfigError(
            f"model.hidden_size {size.hidden_size} is not divisible by "
            f"model.num_heads {size.num_heads}."
        )
    for option, value, allowed in (("pool", pool, POOLS), ("gelu", gelu, GELUS)):
        if value not in allowed:
            raise ConfigError(f"model.{option} is {value!r}; choose from {list(allowed)}.")
    if str(dtype) not in DTYPES:
        raise ConfigError(f"model.dtype is {dtype!r}; choose from {list(DTYPES)}.")
    patch = int(match[2]) if patch is None else patch
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for side in (height, width):
        if side < patch or side % patch:
            below, above = max(side // patch, 1) * patch, (side // patch + 1) * patch
            sizes_near = f"{below} or {above}" if below != above else str(above)
            raise ConfigError(
                f"data.image_size {height}x{width} does not divide into patches of "
                f"{patch}x{patch}; nearest sizes: {sizes_near}."
            )
    return ViT(
        size=size,
        patch_size=patch,
        image_size=(height, width),
        num_classes=num_classes,
        pool=pool,
        pre_logits=pre_logits,
        layers=Layers(dropout, drop_path, gelu, norm_eps, DTYPES[str(dtype)]),
    )


def build(config: Model, *, num_classes: int, image_size: int | tuple[int, int]) -> ViT:
    """The model of a `config.model` section; raises ConfigError for what cannot be built."""
    return create_model(
        num_classes=num_classes, image_size=image_size, **dataclasses.asdict(config)
    )


def make_init(model: ViT) -> Callable[[jax.Array], dict]:
    """Returns `init(key) -> params`, for `jax.jit` or `jax.eval_shape`."""
    images = jnp.zeros((1, *model.image_size, 3))
    return lambda key: model.init(key, images)["params"]


def param_shapes(model: ViT) -> dict[str, tuple[int, ...]]:
    """Slash name -> shape of every parameter, with no memory taken."""
    shapes = jax.eval_shape(make_init(model), jax.random.key(0))
    return {name: leaf.shape for name, leaf in trees.flatten(shapes).items()}
