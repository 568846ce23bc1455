"""The ResNet stem of a hybrid (section 3.1), with post-activation units.

Weights are standardised, and GroupNorm replaces BatchNorm. Names count from 1, as in the
published checkpoints. The BiT ResNet, with pre-activation units, is a different network.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.resnet_blocks import EXPANSION, ROOT_FEATURES, UNITS, Stage, StdConv, group_norm

NORM_EPS = 1e-6
STD_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Stem:
    """The root of a ResNet and the number of units in each of its stages."""

    units: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the last feature map, along one side."""
        return 4 * 2 ** max(len(self.units) - 1, 0)

    @property
    def features(self) -> int:
        """Channels of the last feature map."""
        return (
            EXPANSION * ROOT_FEATURES * 2 ** (len(self.units) - 1) if self.units else ROOT_FEATURES
        )


def stem_of(depth: int | None, patch: int) -> tuple[Stem, int]:
    """Returns the stem of `r<depth>_<size><patch>` and the patch side on its feature map.

    /32 has all four stages. /16 has three, and the units of the fourth are added to the third
    (section 4.1). Without depth the stem is the root alone, with 8x8 patches; the published
    R+Ti/16 has patches of 32 pixels.
    """
    if depth is None:
        return Stem(()), 8
    units = UNITS[depth]
    return Stem((*units[:2], units[2] + units[3]) if patch == 16 else units), 1


def modules(stem: Stem, dtype: jnp.dtype) -> dict[str, nn.Module]:
    """Returns the submodules of a stem by name, for `setup` of the module that contains it."""
    named = {
        "conv_root": _conv(ROOT_FEATURES, 7, dtype, stride=2),
        "gn_root": group_norm(None, NORM_EPS, dtype),
    }
    for b, num_units in enumerate(stem.units):
        stride = 1 if b == 0 else 2
        named[f"block{b + 1}"] = Stage(Unit, num_units, ROOT_FEATURES * 2**b, stride, dtype)
    return named


def apply(parent: nn.Module, stem: Stem, images: jax.Array) -> jax.Array:
    """Applies the stem whose `modules` are attributes of `parent`: B H W 3 -> B h w C."""
    x = nn.relu(parent.gn_root(parent.conv_root(images)))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
    for b in range(len(stem.units)):
        x = getattr(parent, f"block{b + 1}")(x)
    return x


def _conv(features: int, kernel_size: int, dtype, **options) -> StdConv:
    return StdConv(features, kernel_size, dtype, STD_EPS, eps_outside_root=True, **options)


class Unit(nn.Module):
    """Bottleneck of three convolutions with a residual, activated after the sum."""

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        F, dtype = self.features, self.dtype
        residual = x
        if x.shape[-1] != EXPANSION * F or self.stride != 1:
            residual = _conv(EXPANSION * F, 1, dtype, stride=self.stride, name="conv_proj")(x)
            residual = group_norm("gn_proj", NORM_EPS, dtype)(residual)
        y = _conv(F, 1, dtype, name="conv1")(x)
        y = nn.relu(group_norm("gn1", NORM_EPS, dtype)(y))
        y = _conv(F, 3, dtype, stride=self.stride, name="conv2")(y)
        y = nn.relu(group_norm("gn2", NORM_EPS, dtype)(y))
        y = _conv(EXPANSION * F, 1, dtype, name="conv3")(y)
        # Initialised to zero, so that every unit starts as its residual.
        y = group_norm("gn3", NORM_EPS, dtype, scale_init=nn.initializers.zeros)(y)
        return nn.relu(residual + y)
