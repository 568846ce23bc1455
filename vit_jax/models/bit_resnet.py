"""The BiT ResNet (arXiv:1912.11370), the paper's baseline in Tables 2, 6 and 7.

A ResNet-v2: units normalise and activate first. Weights are standardised, GroupNorm replaces
BatchNorm, and borders are padded evenly with zeros, also before the max-pooling.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.config.schema import Model
from vit_jax.models.pixel_stats import check_images, normalize
from vit_jax.models.resnet_blocks import EXPANSION, ROOT_FEATURES, Stage, StdConv, group_norm
from vit_jax.models.sizes import shape_of

NORM_EPS = 1e-5
STD_EPS = 1e-10


def _conv(features: int, kernel_size: int, dtype, **options) -> StdConv:
    pad = kernel_size // 2
    padding = ((pad, pad), (pad, pad))
    eps = {"eps": STD_EPS, "eps_outside_root": False}
    return StdConv(features, kernel_size, dtype, **eps, padding=padding, **options)


class Unit(nn.Module):
    """Bottleneck of three convolutions with a residual; each input is normalised."""

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        F, dtype = self.features, self.dtype
        y = nn.relu(group_norm("gn1", NORM_EPS, dtype)(x))
        residual = x
        if x.shape[-1] != EXPANSION * F or self.stride != 1:
            residual = _conv(EXPANSION * F, 1, dtype, stride=self.stride, name="conv_proj")(y)
        y = _conv(F, 1, dtype, name="conv1")(y)
        y = nn.relu(group_norm("gn2", NORM_EPS, dtype)(y))
        y = _conv(F, 3, dtype, stride=self.stride, name="conv2")(y)
        y = nn.relu(group_norm("gn3", NORM_EPS, dtype)(y))
        return residual + _conv(EXPANSION * F, 1, dtype, name="conv3")(y)


class BitResNet(nn.Module):
    """BiT ResNet: images B H W 3 in [-1, 1] -> logits B K, or features B 2048w for K = 0.

    Parameters and logits are float32; `config.dtype` is that of the computation.

    Raises ConfigError for images of another size than `image_size`, and for integers.
    """

    config: Model = Model(name="bit_r50x1")
    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)

    @property
    def units(self) -> tuple[int, int, int, int]:
        """Units of each of the four blocks."""
        return shape_of(self.config).units

    @property
    def width(self) -> int:
        """Factor of all channel counts."""
        return shape_of(self.config).width

    grid = None  # There are no position embeddings.

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        check_images(images, self.image_size)
        x, dtype = normalize(images, self.config.pixel_stats), jnp.dtype(self.config.dtype)
        x = _conv(ROOT_FEATURES * self.width, 7, dtype, stride=2, name="conv_root")(x)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="VALID")
        for b, num_units in enumerate(self.units):
            features, stride = ROOT_FEATURES * self.width * 2**b, 1 if b == 0 else 2
            x = Stage(Unit, num_units, features, stride, dtype, name=f"block{b + 1}")(x)
        x = nn.relu(group_norm("gn_final", NORM_EPS, dtype)(x))
        y = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if self.num_classes:
            bias_init = nn.initializers.constant(self.config.head_bias)
            zeros = nn.initializers.zeros
            y = nn.Dense(self.num_classes, kernel_init=zeros, bias_init=bias_init, name="head")(y)
        return y
