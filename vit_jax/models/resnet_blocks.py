"""Convolutions and stages of the ResNet stem of a hybrid and of the BiT ResNet."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Units of the four stages, by depth (arXiv:1512.03385, Table 1; arXiv:2106.10270 for 26).
UNITS = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
ROOT_FEATURES = 64
EXPANSION = 4  # Output features of a unit, relative to its 3x3 convolution.
GROUPS = 32

Padding = str | tuple[tuple[int, int], tuple[int, int]]


class StdConv(nn.Module):
    """Convolution with standardised weights (arXiv:1903.10520) and no bias.

    Mean and standard deviation are taken over height, width and input of the kernel. `eps` is
    added to the variance, or with `eps_outside_root` to the standard deviation.
    """

    features: int
    kernel_size: int
    dtype: jnp.dtype
    eps: float
    eps_outside_root: bool
    stride: int = 1
    padding: Padding = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # B H W C -> B H/stride W/stride features
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        centred = kernel - jnp.mean(kernel, (0, 1, 2), keepdims=True)
        variance = jnp.mean(jnp.square(centred), (0, 1, 2), keepdims=True)
        if self.eps_outside_root:
            kernel = centred / (jnp.sqrt(variance) + self.eps)
        else:
            kernel = centred / jnp.sqrt(variance + self.eps)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def group_norm(name: str | None, eps: float, dtype: jnp.dtype, **options) -> nn.GroupNorm:
    """Returns a GroupNorm of 32 groups, with the variance computed in two passes as published."""
    return nn.GroupNorm(
        GROUPS, epsilon=eps, dtype=dtype, use_fast_variance=False, name=name, **options
    )


class Stage(nn.Module):
    """Units of one width; the first unit changes the resolution."""

    unit: type[nn.Module]
    num_units: int
    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # B H W C -> B H/stride W/stride 4 features
        for u in range(self.num_units):
            stride = self.stride if u == 0 else 1
            x = self.unit(self.features, stride, self.dtype, name=f"unit{u + 1}")(x)
        return x
