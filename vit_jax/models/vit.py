"""The Vision Transformer (section 3.1 of arXiv:2010.11929).

Alphabet of shapes, used by comments, einsum strings and unpacking alike:
  B batch   H W image   C channels   P patch side   N patches (HW / PP)
  T tokens (N, or N + 1 with the class token)   D hidden size   M MLP size
  h heads   d size of one head (D / h)   K classes

Submodules carry the names of the published checkpoints: names are the checkpoint's API.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Size:
    """One row of Table 1."""

    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int


SIZES = {  # Table 1; Ti and S from arXiv:2106.10270.
    "Ti": Size(12, 192, 768, 3),
    "S": Size(12, 384, 1536, 6),
    "B": Size(12, 768, 3072, 12),
    "L": Size(24, 1024, 4096, 16),
    "H": Size(32, 1280, 5120, 16),
}


@dataclasses.dataclass(frozen=True)
class Layers:
    """What all layers of a model have in common; it travels whole."""

    dropout: float
    drop_path: float  # Stochastic depth of the last layer.
    gelu: str
    norm_eps: float
    dtype: jnp.dtype

    def norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)


GELUS = {"tanh": True, "erf": False}  # Flax and the official code; PyTorch's default.
POOLS = {
    "token": "class token (equation 4)",
    "gap": "mean of the patch tokens (appendix D.3)",
    "map": "multi-head attention pooling (arXiv:2106.04560)",
}

# The official code's initialisers.
kernel_init = nn.initializers.xavier_uniform()
mlp_bias_init = nn.initializers.normal(1e-6)
position_init = nn.initializers.normal(0.02)


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images B H W C into flattened patches B N PPC, row by row: x_p of section 3.1."""
    B, H, W, C = images.shape
    P = patch_size
    x = images.reshape(B, H // P, P, W // P, P, C)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # B H/P W/P P P C
    return x.reshape(B, (H // P) * (W // P), P * P * C)


class PatchEmbedding(nn.Module):
    """The E of equation 1: equal to a convolution with stride and window P."""

    patch_size: int
    hidden_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # B H W C -> B N D
        P, C, D = self.patch_size, images.shape[-1], self.hidden_size
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (P, P, C, D))
        bias = self.param("bias", nn.initializers.zeros, (D,))
        patches = patchify(images.astype(self.dtype), P)
        E = kernel.reshape(P * P * C, D).astype(self.dtype)
        return jnp.einsum("BNp,pD->BND", patches, E) + bias.astype(self.dtype)[None, None]


class PositionEmbedding(nn.Module):
    """The E_pos of equation 1: a learned vector for each place in the sequence."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:  # B T D -> B T D
        E_pos = self.param("pos_embedding", position_init, (1, *z.shape[1:]))
        return z + E_pos.astype(z.dtype)


class Attention(nn.Module):
    """Multi-head attention of queries over keys (appendix A, equations 5 to 8)."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:  # B T D, B S D -> B T D
        h, D = self.num_heads, x.shape[-1]

        dense = functools.partial(nn.DenseGeneral, kernel_init=kernel_init, dtype=self.dtype)
        q = dense((h, D // h), name="query")(x)
        k = dense((h, D // h), name="key")(y)
        v = dense((h, D // h), name="value")(y)
        # The softmax inside is float32: bfloat16 loses small probabilities.
        heads = jax.nn.dot_product_attention(q, k, v)  # B T h d
        return dense(D, axis=(-2, -1), name="out")(heads)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, each followed by dropout."""

    mlp_size: int
    layers: Layers

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:  # B T D -> B T D
        inits = {"kernel_init": kernel_init, "bias_init": mlp_bias_init}
        dtype, D = self.layers.dtype, z.shape[-1]
        z = nn.Dense(self.mlp_size, **inits, dtype=dtype, name="Dense_0")(z)
        z = nn.gelu(z, approximate=GELUS[self.layers.gelu])
        z = nn.Dropout(self.layers.dropout, deterministic=not train)(z)
        z = nn.Dense(D, **inits, dtype=dtype, name="Dense_1")(z)
        return nn.Dropout(self.layers.dropout, deterministic=not train)(z)


def drop_path(module: nn.Module, branch: jax.Array, rate: float, train: bool) -> jax.Array:
    """Stochastic depth: drops a residual branch B ... whole, for single examples."""
    if not train or rate == 0.0:
        return branch
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, shape)
    return jnp.where(kept, branch / (1 - rate), 0)


class Block(nn.Module):
    """One encoder layer: equations 2 and 3."""

    size: Size
    layers: Layers
    drop_path: float

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:  # B T D -> B T D
        size, layers = self.size, self.layers
        attention = Attention(size.num_heads, layers.dtype, name="MultiHeadDotProductAttention_0")
        y = layers.norm("LayerNorm_0")(z)
        y = nn.Dropout(layers.dropout, deterministic=not train)(attention(y, y))
        z = z + drop_path(self, y, self.drop_path, train)
        y = layers.norm("LayerNorm_1")(z)
        y = Mlp(size.mlp_size, layers, name="MlpBlock_0")(y, train=train)
        return z + drop_path(self, y, self.drop_path, train)


class Encoder(nn.Module):
    """Position embedding, the layers, and the LayerNorm of equation 4."""

    size: Size
    layers: Layers

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:  # B T D -> B T D
        z = PositionEmbedding(name="posembed_input")(z)
        z = nn.Dropout(self.layers.dropout, deterministic=not train)(z)
        L = self.size.num_layers
        for i in range(L):
            rate = self.layers.drop_path * i / max(L - 1, 1)  # Linear in depth: arXiv:2106.10270.
            z = Block(self.size, self.layers, rate, name=f"encoderblock_{i}")(z, train=train)
        return self.layers.norm("encoder_norm")(z)


class AttentionPooling(nn.Module):
    """The MAP head of arXiv:2106.04560: a learned query attends to all tokens."""

    size: Size
    layers: Layers

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:  # B T D -> B D
        size, layers = self.size, self.layers
        probe = self.param("probe", kernel_init, (1, 1, z.shape[-1])).astype(layers.dtype)
        probe = jnp.broadcast_to(probe, (z.shape[0], 1, z.shape[-1]))
        attention = Attention(size.num_heads, layers.dtype, name="MultiHeadDotProductAttention_0")
        x = attention(probe, z)
        y = layers.norm("LayerNorm_0")(x)
        y = Mlp(size.mlp_size, layers, name="MlpBlock_0")(y, train=False)
        return (x + y)[:, 0]


class ViT(nn.Module):
    """Images B H W 3, float32 in [-1, 1] -> logits B K, or features B D when K is 0.

    Parameters are float32; `layers.dtype` is that of the computation, and softmax, LayerNorm
    statistics and the logits stay float32. Dropout and stochastic depth act only with
    `train=True`, and then need `rngs={"dropout": key}`.

    Raises ConfigError for images of another size than `image_size`.
    """

    size: Size
    patch_size: int
    image_size: tuple[int, int]
    num_classes: int
    pool: str
    pre_logits: bool
    layers: Layers

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        if images.shape[1:3] != self.image_size:
            raise ConfigError(
                f"images are {images.shape[1]}x{images.shape[2]}, "
                f"the model is made for {self.image_size[0]}x{self.image_size[1]}."
            )
        D = self.size.hidden_size
        z = PatchEmbedding(self.patch_size, D, self.layers.dtype, name="embedding")(images)
        if self.pool == "token":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, D)).astype(z.dtype)
            z = jnp.concatenate([jnp.broadcast_to(cls, (z.shape[0], 1, D)), z], axis=1)
        z = Encoder(self.size, self.layers, name="Transformer")(z, train=train)
        y = self.pool_tokens(z).astype(jnp.float32)
        if self.pre_logits:
            y = nn.tanh(nn.Dense(D, name="pre_logits")(y))
        if self.num_classes:
            y = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(y)
        return y

    def pool_tokens(self, z: jax.Array) -> jax.Array:  # B T D -> B D
        """The y of equation 4, or what takes its place in appendix D.3."""
        if self.pool == "token":
            return z[:, 0]
        if self.pool == "gap":
            return jnp.mean(z, axis=1, dtype=jnp.float32)
        return AttentionPooling(self.size, self.layers, name="MAPHead_0")(z)
