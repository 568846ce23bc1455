"""The model of self-distillation: a ViT and projection heads onto prototypes.

DINO (arXiv:2104.14294), iBOT (arXiv:2111.07832) and DINOv2 (arXiv:2304.07193). Letters of shapes
as in models/vit.py, with K prototypes.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.config.schema import Model
from vit_jax.models import cpu_ops
from vit_jax.models.layers import Dense
from vit_jax.models.transformer import shard_over_batch
from vit_jax.models.vit import ViT, fields_of

# Truncated in PyTorch at -2 and 2, which are 100 deviations.
MLP_INIT = nn.initializers.normal(0.02)
NORM_EPS = 1e-12  # Smallest norm that a vector is divided by.


@dataclasses.dataclass(frozen=True)
class HeadShape:
    """Sizes of a projection head; defaults are DINO's."""

    num_prototypes: int = 65_536  # K
    num_layers: int = 3
    hidden_size: int = 2048
    bottleneck: int = 256
    has_scale: bool = False  # Prototypes have a learned length instead of 1.


class Prototypes(nn.Module):
    """The last layer of a projection head: products with K prototypes, without bias.

    It is PyTorch's weight-normalised linear layer. `kernel` is bottleneck x K; `scale` K, the
    length of each prototype, is 1 and no parameter with `has_scale=False`.
    """

    shape: HeadShape
    config: Model

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # ... bottleneck, of norm 1 -> ... K, float32
        size, K = self.shape.bottleneck, self.shape.num_prototypes
        kernel = self.param("kernel", uniform_init, (size, K))
        scale = self.param("scale", nn.initializers.ones, (K,)) if self.shape.has_scale else None
        # In float32 whatever the dtype: temperatures multiply the rounding of logits by 25.
        dense = cpu_ops.choose(self.config.kernels).dense
        return dense(x.astype(jnp.float32), prototypes(kernel, scale), jnp.zeros(K))


class ProjectionHead(nn.Module):
    """MLP with GELU, L2 normalisation and prototypes: tokens ... D -> logits ... K, float32.

    Section 3.1 and appendix C of arXiv:2104.14294. Logits are cosines, unless prototypes have a
    learned length.
    """

    shape: HeadShape
    config: Model

    def setup(self):
        shape = self.shape
        widths = [shape.hidden_size] * (shape.num_layers - 1) + [shape.bottleneck]
        for i, width in enumerate(widths):
            dense = Dense((width,), self.config, kernel_init=MLP_INIT)
            setattr(self, f"layer_{i}", dense)
        self.last_layer = Prototypes(shape, self.config)

    def __call__(self, z: jax.Array) -> jax.Array:
        return shard_over_batch(self.last_layer(self.bottleneck(z)))

    def bottleneck(self, z: jax.Array) -> jax.Array:  # ... D -> ... bottleneck
        """Returns the input of the last layer, float32 of norm 1."""
        gelu = cpu_ops.choose(self.config.kernels).gelu
        for i in range(self.shape.num_layers):
            z = gelu(z, "erf") if i else z
            z = getattr(self, f"layer_{i}")(z)
        return normalize(z.astype(jnp.float32), axis=-1)


class DinoViT(ViT):
    """Images B H W 3 -> logits B K of the class token.

    Parameters have the names of a ViT without a head, and those of `class_head`. With `num_masked`
    there is a `mask_token`; with `patch_prototypes` the patches have a `patch_head` of their own,
    and otherwise that of the class token.

    Attributes:
      num_masked: S, the largest number of masked patches of a crop; 0 without the loss of patches.
      patch_prototypes: number of prototypes of the patches; None for the head of the class token.
      local_crops: number of local crops of an image.
      local_size: their height and width.
    """

    head_shape: HeadShape = HeadShape()
    num_masked: int = 0
    patch_prototypes: int | None = None
    local_crops: int = 0
    local_size: tuple[int, int] = (96, 96)

    @classmethod
    def of(cls, vit: ViT, head_shape: HeadShape, **options) -> "DinoViT":
        """Returns a model with the shape and options of a ViT; options are the other attributes."""
        return cls(**fields_of(vit), head_shape=head_shape, **options)

    @property
    def patch_head_shape(self) -> HeadShape:
        """Sizes of the head that the patches have."""
        K = self.patch_prototypes or self.head_shape.num_prototypes
        return dataclasses.replace(self.head_shape, num_prototypes=K)

    @property
    def has_patch_head(self) -> bool:
        """True if the patches have a head of their own."""
        return bool(self.num_masked and self.patch_prototypes)

    @property
    def for_local_crops(self) -> "DinoViT":
        """The model of images of the local size, with the same parameters."""
        return self.clone(image_size=self.local_size, position_size=self.image_size)

    def setup(self):
        super().setup()
        self.class_head = ProjectionHead(self.head_shape, self.config)
        if self.num_masked:
            shape = (1, 1, self.size.hidden_size)
            self.mask_token = self.param("mask_token", nn.initializers.zeros, shape)
        if self.has_patch_head:
            self.patch_head = ProjectionHead(self.patch_head_shape, self.config)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        z = self.tokens(images, train=train)
        if self.is_initializing():
            self.patch_logits(z)
        return self.class_logits(z[:, 0])

    def tokens(
        self, images: jax.Array, is_masked: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:  # B H W 3 -> B T D
        """Returns the normalised output of the encoder; the class token is first.

        Args:
          is_masked: B N; the mask token replaces the embedding of these patches.
        """
        z = self.embed(images)
        if is_masked is not None:
            z = jnp.where(is_masked[..., None], self.mask_token.astype(z.dtype), z)
        return self.encode(z, train=train)

    def class_logits(self, tokens: jax.Array) -> jax.Array:  # ... D -> ... K
        """Returns the logits of class tokens."""
        return self.class_head(tokens)

    def patch_logits(self, tokens: jax.Array) -> jax.Array:  # ... D -> ... K
        """Returns the logits of patch tokens."""
        return (self.patch_head if self.has_patch_head else self.class_head)(tokens)

    def class_bottleneck(self, tokens: jax.Array) -> jax.Array:  # ... D -> ... bottleneck
        """Returns the input of the last layer of the head of class tokens."""
        return self.class_head.bottleneck(tokens)


def prototypes(kernel: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """Returns the prototypes, bottleneck x K, for the parameters of `Prototypes`."""
    unit = normalize(kernel, axis=0)
    return unit if scale is None else unit * scale[None]


def normalize(x: jax.Array, axis: int) -> jax.Array:
    """Divides vectors along an axis by their norm, which is taken as at least `NORM_EPS`."""
    squares = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, NORM_EPS**2))


def uniform_init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Uniform in +-1 / sqrt(inputs), as PyTorch's linear layers."""
    bound = 1 / math.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, -bound, bound)
