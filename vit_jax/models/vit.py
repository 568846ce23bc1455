"""The Vision Transformer (section 3.1 of arXiv:2010.11929); its encoder is in transformer.py.

Letters of shapes, used in comments, einsum strings and unpacking:
  B batch   H W image   C channels   P patch side   N patches (HW / PP)
  T tokens (patches, class tokens and registers)   D hidden size
  M MLP size   h heads   d head size (D / h)   K classes

Submodules have the names of the published checkpoints.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.config.schema import Model
from vit_jax.models import cpu_ops, resnet_stem
from vit_jax.models.layers import (
    Attention,
    LayerNorm,
    kernel_init,
    layer_norm,
    make_mlp,
)
from vit_jax.models.pixel_stats import check_images, normalize
from vit_jax.models.size_table import Size
from vit_jax.models.sizes import VitShape, shape_of
from vit_jax.models.transformer import Encoder, has_cls, num_class_tokens, shard_over_batch

HEAD_NORM_EPS = 1e-6  # Added to the variance that `model.head_norm` divides by.
POOLS = {
    "token": "class token (equation 4)",
    "gap": "mean of the patch tokens (appendix D.3)",
    "map": "multi-head attention pooling (arXiv:2106.04560)",
    "token_gap": "class token and mean of the patch tokens (arXiv:2304.07193)",
}


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images B H W C into flattened patches B N PPC, row by row (x_p in section 3.1)."""
    B, H, W, C = images.shape
    P = patch_size
    x = images.reshape(B, H // P, P, W // P, P, C)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # B H/P W/P P P C
    return x.reshape(B, (H // P) * (W // P), P * P * C)


class PatchEmbedding(nn.Module):
    """The embedding E of equation 1, equal to a convolution with stride and window P."""

    config: Model

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # B H W C -> B N D
        size, _, P = shape_of(self.config)
        C, D = images.shape[-1], size.hidden_size
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (P, P, C, D))
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (D,)) if self.config.patch_bias else jnp.zeros(D)
        patches = patchify(images.astype(self.config.dtype), P)
        E = kernel.reshape(P * P * C, D)
        return cpu_ops.choose(self.config.kernels).dense(patches, E, bias)


class HeadNorm(nn.Module):
    """Standardises features by fixed statistics: BatchNorm in evaluation, without scale and bias.

    The statistics are parameters that no gradient changes; `training/head_norm.py` measures them.
    """

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:  # B D -> B D
        mean = self.param("mean", nn.initializers.zeros, y.shape[-1:])
        var = self.param("var", nn.initializers.ones, y.shape[-1:])
        return (y - mean[None]) * jax.lax.rsqrt(var + HEAD_NORM_EPS)[None]


class AttentionPooling(nn.Module):
    """The MAP head of arXiv:2106.04560: a learned query attends to all tokens."""

    config: Model

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:  # B T D -> B D
        config = self.config
        probe = self.param("probe", kernel_init, (1, 1, z.shape[-1])).astype(config.dtype)
        probe = jnp.broadcast_to(probe, (z.shape[0], 1, z.shape[-1]))
        attention = Attention(config, name="MultiHeadDotProductAttention_0")
        x = attention(probe, z)
        y = layer_norm(config, "LayerNorm_0")(x)
        y = make_mlp(config, "MlpBlock_0")(y)
        return (x + y)[:, 0]


class ViT(nn.Module):
    """Vision Transformer: images B H W 3 in [-1, 1] -> logits B K, or features B D for K = 0.

    `ViT()` is ViT-B/16 for 224x224 images and 1,000 classes. With a stem, patches are taken from
    its feature map (the hybrid of section 3.1). Features of `pool="token_gap"` are B 2D.

    The steps can be called one by one, with `model.apply(variables, x, method="embed")`: `embed`,
    `encode` (or `intermediate` for outputs of several layers), and `pool`.

    Parameters are float32. `config.dtype` is the dtype of the computation; softmax, LayerNorm
    statistics and logits stay float32. Dropout and stochastic depth act with `train=True` only,
    and then need `rngs={"dropout": key}`.

    Attributes:
      config: the section `config.model`.
      num_classes: K; 0 for features.
      image_size: height and width in pixels.
      position_size: image size that the position embeddings belong to; None for `image_size`. They
        are resized inside the program, so that images of another size share the parameters:
        `model.clone(image_size=(96, 96), position_size=model.image_size)`.

    Raises ConfigError for images of another size than `image_size`, and for integers.
    """

    config: Model = Model()
    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    position_size: tuple[int, int] | None = None

    @property
    def shape(self) -> VitShape:
        """Size, stem and patch side, from the name and the fields that replace parts of it."""
        return shape_of(self.config)

    @property
    def size(self) -> Size:
        """Depth, widths and heads."""
        return self.shape.size

    @property
    def stem(self) -> resnet_stem.Stem | None:
        """The ResNet of a hybrid."""
        return self.shape.stem

    @property
    def patch_size(self) -> int:
        """Side of a patch, on the stem's feature map if there is a stem."""
        return self.shape.patch_size

    @property
    def patch_pixels(self) -> int:
        """Side of a patch in pixels of the image."""
        return self.patch_size * (self.stem.stride if self.stem else 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches along height and width."""
        return _grid(self.image_size, self.patch_pixels)

    @property
    def position_grid(self) -> tuple[int, int]:
        """Number of patches along height and width that the position embeddings belong to."""
        return _grid(self.position_size or self.image_size, self.patch_pixels)

    @property
    def has_cls(self) -> bool:
        """True if the model has a class token."""
        return has_cls(self.config)

    @property
    def num_class_tokens(self) -> int:
        """Number of tokens with a head: class token and distillation token."""
        return num_class_tokens(self.config)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before those of the patches: class tokens and registers."""
        return self.num_class_tokens + self.config.registers

    @property
    def num_output_tokens(self) -> int:
        """Number of class tokens that are pooled; 0 if the patches are."""
        return self.num_class_tokens if self.config.pool.startswith("token") else 0

    @property
    def num_tokens(self) -> int:
        """Number of tokens T that the layers process."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]

    # Initial values of the class token and of the distillation token.
    token_init = staticmethod(nn.initializers.zeros)

    def setup(self):
        config, D = self.config, self.size.hidden_size
        if self.stem:
            for name, module in resnet_stem.modules(self.stem, jnp.dtype(config.dtype)).items():
                setattr(self, name, module)
        self.embedding = PatchEmbedding(config)
        if self.has_cls:
            self.cls = self.param("cls", self.token_init, (1, 1, D))
        if config.distill_token:
            self.dist_token = self.param("dist_token", self.token_init, (1, 1, D))
        if config.registers:
            shape = (1, config.registers, D)
            self.registers = self.param("registers", nn.initializers.normal(1e-6), shape)
        self.Transformer = Encoder(config, self.grid, self.position_grid)
        if config.pool == "map":
            self.MAPHead_0 = AttentionPooling(config)
        if config.fc_norm:
            self.fc_norm = LayerNorm(config)
        if config.projection:
            self.projection = nn.Dense(config.projection, use_bias=False)
        if config.pre_logits:
            self.pre_logits = nn.Dense(D)
        if self.num_classes and config.head_norm:
            self.head_norm = HeadNorm()
        if self.num_classes:
            self.head = self.make_head()
            if config.distill_token:
                self.head_dist = self.make_head()

    def make_head(self) -> nn.Dense:
        """Returns an initial head, which is named by the attribute that it is assigned to."""
        std, initializers = self.config.head_std, nn.initializers
        return nn.Dense(
            self.num_classes,
            kernel_init=initializers.normal(std) if std else initializers.zeros,
            bias_init=nn.initializers.constant(self.config.head_bias),
        )

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        if self.num_classes and self.config.distill_token:
            return sum(self.both_heads(images, train=train)) / 2
        z = self.encode(self.embed(images), train=train)
        return shard_over_batch(self.classify(shard_over_batch(_float32(self.pool(z)))))

    def both_heads(self, images: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Returns the logits B K of the class token and those of the distillation token."""
        z = self.encode(self.embed(images), train=train)
        tokens = [shard_over_batch(_float32(z[:, i])) for i in (0, 1)]
        logits = self.head(tokens[0]), self.head_dist(tokens[1])
        return shard_over_batch(logits[0]), shard_over_batch(logits[1])

    def classify(self, y: jax.Array) -> jax.Array:  # B D -> B K
        """Returns the logits of a pooled representation, or its features if K is 0."""
        y = self.projection(y) if self.config.projection else y
        y = nn.tanh(self.pre_logits(y)) if self.config.pre_logits else y
        y = self.head_norm(y) if self.num_classes and self.config.head_norm else y
        return self.head(y) if self.num_classes else y

    def embed(self, images: jax.Array) -> jax.Array:  # B H W 3 -> B N D
        """Returns the patch embeddings x_p E of equation 1, without positions."""
        check_images(images, self.image_size)
        x = normalize(images, self.config.pixel_stats)
        if self.stem:
            x = resnet_stem.apply(self, self.stem, x)
        return self.embedding(x)

    def encode(  # B N D -> B T D
        self, z: jax.Array, *, train: bool = False, keep: jax.Array | None = None
    ) -> jax.Array:
        """Returns the output z_L for patch embeddings; class tokens and registers come first.

        It is normalised, except with `config.fc_norm`.

        Args:
          train: applies dropout and stochastic depth.
          keep: B V, the patches to encode; None for all.
        """
        return self._encode(z, train, keep=keep)

    def intermediate(  # B H W 3 -> B N D each
        self, images: jax.Array, layers: Sequence[int], *, train: bool = False
    ) -> list[jax.Array]:
        """Returns the patch tokens of z_l (equation 3), not normalised, for each l in `layers`.

        Args:
          layers: numbers from 1 to L.
        """
        return [self.patches_of(z) for z in self._encode(self.embed(images), train, layers)]

    def _encode(self, z: jax.Array, train: bool, layers: Sequence[int] = (), keep=None):
        tokens = [self.cls] if self.has_cls else []
        tokens += [self.dist_token] if self.config.distill_token else []
        tokens += [self.registers] if self.config.registers else []
        dtype = self.config.dtype
        tokens = [jnp.broadcast_to(t.astype(dtype), (z.shape[0], *t.shape[1:])) for t in tokens]
        z = jnp.concatenate([*tokens, z], axis=1)
        is_noisy = bool(self.config.dropout or self.config.drop_path)
        key = self.make_rng("dropout") if train and is_noisy else None
        return self.Transformer(z, key, layers, keep)

    def pool(self, z: jax.Array) -> jax.Array:  # B T D -> B D
        """Returns the image representation y (equation 4, or its alternatives in `POOLS`)."""
        y = self._pool(z)
        return self.fc_norm(y) if self.config.fc_norm else y

    def _pool(self, z: jax.Array) -> jax.Array:
        if self.config.pool == "token":
            return (z[:, 0] + z[:, 1]) / 2 if self.config.distill_token else z[:, 0]
        if self.config.pool == "map":
            return self.MAPHead_0(z)
        mean = jnp.mean(self.patches_of(z), axis=1, dtype=jnp.float32)
        return mean if self.config.pool == "gap" else jnp.concatenate([z[:, 0], mean], axis=-1)

    def patches_of(self, z: jax.Array) -> jax.Array:  # B T D -> B N D
        """Returns the tokens of the patches, which come last."""
        return z[:, self.num_prefix_tokens :]


def fields_of(vit: ViT) -> dict[str, object]:
    """Returns the attributes of `ViT` that a model has, with which to make one that extends it."""
    names = {field.name for field in dataclasses.fields(ViT)} - {"parent", "name"}
    return {name: getattr(vit, name) for name in names}


def encoder_of(model):
    """Returns the model that turns images B H W 3 into features B D, for a model of any task.

    Its parameters are among those of the task, whose others `apply` ignores.
    """
    if not isinstance(model, ViT):
        return model.clone(num_classes=0)
    return ViT(**fields_of(model) | {"num_classes": 0})


def _grid(image_size: tuple[int, int], patch: int) -> tuple[int, int]:
    height, width = image_size
    return height // patch, width // patch


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
