"""The Vision Transformer (section 3.1 of arXiv:2010.11929).

Alphabet of shapes, used by comments, einsum strings and unpacking alike:
  B batch   H W image   C channels   P patch side   N patches (HW / PP)
  T tokens (N, one more with the class token, and the registers)   D hidden size
  M MLP size   h heads   d size of one head (D / h)   K classes

Submodules carry the names of the published checkpoints: names are the checkpoint's API.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import hybrid
from vit_jax.models.pixels import check_size, normalize
from vit_jax.models.position import PositionEmbedding, RelativeKeys


@dataclasses.dataclass(frozen=True)
class Size:
    """One row of Table 1."""

    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int


SIZES = {  # Table 1; Ti and S: arXiv:2106.10270; M: arXiv:2204.07118; g and G: arXiv:2106.04560.
    "ti": Size(12, 192, 768, 3),
    "s": Size(12, 384, 1536, 6),
    "m": Size(12, 512, 2048, 8),
    "b": Size(12, 768, 3072, 12),
    "l": Size(24, 1024, 4096, 16),
    "so400m": Size(27, 1152, 4304, 16),  # arXiv:2305.13035.
    "h": Size(32, 1280, 5120, 16),
    "g": Size(40, 1408, 6144, 16),
    "gg": Size(48, 1664, 8192, 16),  # ViT-G.
}


@dataclasses.dataclass(frozen=True)
class Layers:
    """What all layers of a model have in common; it travels whole."""

    dropout: float
    drop_path: float  # Stochastic depth of the last layer.
    gelu: str
    norm_eps: float
    pos_embed: str
    pos_embed_at: str
    layer_scale: float | None  # What LayerScale begins with.
    qk_norm: bool
    dtype: jnp.dtype

    def norm(self, name: str, use_bias: bool = True) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, use_bias=use_bias, name=name)


GELUS = {"tanh": True, "erf": False}  # Flax and the official code; PyTorch's default.
POOLS = {
    "token": "class token (equation 4)",
    "gap": "mean of the patch tokens (appendix D.3)",
    "map": "multi-head attention pooling (arXiv:2106.04560)",
    "token_gap": "class token beside the mean of the patch tokens (arXiv:2304.07193)",
}

# The official code's initialisers.
kernel_init = nn.initializers.xavier_uniform()
mlp_bias_init = nn.initializers.normal(1e-6)


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


class Attention(nn.Module):
    """Multi-head attention of queries over keys (appendix A, equations 5 to 8)."""

    num_heads: int
    layers: Layers
    is_relative: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:  # B T D, B S D -> B T D
        h, D, layers = self.num_heads, x.shape[-1], self.layers
        dense = functools.partial(nn.DenseGeneral, kernel_init=kernel_init, dtype=layers.dtype)
        q = dense((h, D // h), name="query")(x)
        k = dense((h, D // h), name="key")(y)
        v = dense((h, D // h), name="value")(y)
        if layers.qk_norm:  # Scales only, as in arXiv:2302.05442.
            q = layers.norm("query_ln", use_bias=False)(q)
            k = layers.norm("key_ln", use_bias=False)(k)
        bias = RelativeKeys(name="relative")(q) if self.is_relative else None
        # The softmax inside is float32: bfloat16 loses small probabilities.
        heads = jax.nn.dot_product_attention(q, k, v, bias)  # B T h d
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


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (arXiv:2103.17239)."""

    initial: float

    @nn.compact
    def __call__(self, branch: jax.Array) -> jax.Array:  # B T D -> B T D
        initial = nn.initializers.constant(self.initial)
        scale = self.param("scale", initial, branch.shape[-1:]).astype(branch.dtype)
        return branch * scale[None, None]


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
        attention = Attention(
            size.num_heads,
            layers,
            is_relative=layers.pos_embed == "relative",
            name="MultiHeadDotProductAttention_0",
        )
        y = layers.norm("LayerNorm_0")(z)
        y = nn.Dropout(layers.dropout, deterministic=not train)(attention(y, y))
        z = z + drop_path(self, self.scale("LayerScale_0", y), self.drop_path, train)
        y = layers.norm("LayerNorm_1")(z)
        y = Mlp(size.mlp_size, layers, name="MlpBlock_0")(y, train=train)
        return z + drop_path(self, self.scale("LayerScale_1", y), self.drop_path, train)

    def scale(self, name: str, branch: jax.Array) -> jax.Array:
        initial = self.layers.layer_scale
        return branch if initial is None else LayerScale(initial, name=name)(branch)


class Encoder(nn.Module):
    """Position embeddings, the layers, and the LayerNorm of equation 4.

    Registers stand between the class token and the patches; no position is added to them.
    """

    size: Size
    layers: Layers
    grid: tuple[int, int]
    has_cls: bool
    num_registers: int

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:  # B T D -> B T D
        layers, L = self.layers, self.size.num_layers
        place = self.positions("posembed_input")
        z = nn.Dropout(layers.dropout, deterministic=not train)(place(z))
        for i in range(L):
            if i and layers.pos_embed_at == "shared":
                z = place(z)
            elif i and layers.pos_embed_at == "layers":
                z = self.positions(f"posembed_{i}")(z)
            rate = layers.drop_path * i / max(L - 1, 1)  # Linear in depth: arXiv:2106.10270.
            z = Block(self.size, layers, rate, name=f"encoderblock_{i}")(z, train=train)
        return layers.norm("encoder_norm")(z)

    def positions(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """Returns `add(z)` for the position embeddings of that name."""
        kind = self.layers.pos_embed
        if kind in ("none", "relative"):
            return lambda z: z
        D = self.size.hidden_size
        embedding = PositionEmbedding(kind, self.grid, self.has_cls, D, name=name)

        def add(z: jax.Array) -> jax.Array:
            E_pos = embedding().astype(z.dtype)  # 1 T D, registers left out.
            if not self.num_registers:
                return z + E_pos
            cls, patches = jnp.split(E_pos, [int(self.has_cls)], axis=1)
            registers = jnp.zeros((1, self.num_registers, D), z.dtype)
            return z + jnp.concatenate([cls, registers, patches], axis=1)

        return add


class AttentionPooling(nn.Module):
    """The MAP head of arXiv:2106.04560: a learned query attends to all tokens."""

    size: Size
    layers: Layers

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:  # B T D -> B D
        size, layers = self.size, self.layers
        probe = self.param("probe", kernel_init, (1, 1, z.shape[-1])).astype(layers.dtype)
        probe = jnp.broadcast_to(probe, (z.shape[0], 1, z.shape[-1]))
        attention = Attention(size.num_heads, layers, name="MultiHeadDotProductAttention_0")
        x = attention(probe, z)
        y = layers.norm("LayerNorm_0")(x)
        y = Mlp(size.mlp_size, layers, name="MlpBlock_0")(y, train=False)
        return (x + y)[:, 0]


class ViT(nn.Module):
    """Images B H W 3, float32 in [-1, 1] -> logits B K, or features B D when K is 0.

    With a `stem`, patches are taken of its feature map: the hybrid of section 3.1. The
    features of `pool="token_gap"` are B 2D.

    Parameters are float32; `layers.dtype` is that of the computation, and softmax, LayerNorm
    statistics and the logits stay float32. Dropout and stochastic depth act only with
    `train=True`, and then need `rngs={"dropout": key}`.

    Raises ConfigError for images of another size than `image_size`.
    """

    size: Size
    stem: hybrid.Stem | None
    patch_size: int  # On the stem's feature map where there is one.
    image_size: tuple[int, int]
    num_classes: int
    pool: str
    pre_logits: bool
    head_bias: float  # What the bias of the head begins with.
    num_registers: int
    pixel_stats: str
    layers: Layers

    @property
    def patch_pixels(self) -> int:
        """Pixels of the image along the side of a patch."""
        return self.patch_size * (self.stem.stride if self.stem else 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        height, width = self.image_size
        return height // self.patch_pixels, width // self.patch_pixels

    @property
    def has_cls(self) -> bool:
        """Whether there is a class token."""
        return self.pool in ("token", "token_gap")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        z = self.encode(self.embed(images), train=train)
        y = self.pool_tokens(z).astype(jnp.float32)
        if self.pre_logits:
            y = nn.tanh(nn.Dense(self.size.hidden_size, name="pre_logits")(y))
        if self.num_classes:
            bias_init = nn.initializers.constant(self.head_bias)
            zeros = nn.initializers.zeros
            y = nn.Dense(self.num_classes, kernel_init=zeros, bias_init=bias_init, name="head")(y)
        return y

    def embed(self, images: jax.Array) -> jax.Array:  # B H W 3 -> B N D
        """The x_p E of equation 1, without positions."""
        check_size(images, self.image_size)
        D, dtype = self.size.hidden_size, self.layers.dtype
        x = normalize(images, self.pixel_stats)
        if self.stem:
            x = hybrid.resnet(self.stem, x, dtype)
        return PatchEmbedding(self.patch_size, D, dtype, name="embedding")(x)

    def encode(self, z: jax.Array, *, train: bool) -> jax.Array:  # B N D -> B T D
        """The z_L of the patches and the tokens before them, normalised."""
        D, dtype = self.size.hidden_size, self.layers.dtype
        first = []
        if self.has_cls:
            first.append(self.param("cls", nn.initializers.zeros, (1, 1, D)))
        if self.num_registers:
            registers = (1, self.num_registers, D)
            first.append(self.param("registers", nn.initializers.normal(1e-6), registers))
        first = [jnp.broadcast_to(t.astype(dtype), (z.shape[0], *t.shape[1:])) for t in first]
        z = jnp.concatenate([*first, z], axis=1)
        encoder = Encoder(
            self.size, self.layers, self.grid, self.has_cls, self.num_registers, name="Transformer"
        )
        return encoder(z, train=train)

    def pool_tokens(self, z: jax.Array) -> jax.Array:  # B T D -> B D
        """The y of equation 4, or what takes its place in appendix D.3."""
        if self.pool == "token":
            return z[:, 0]
        if self.pool == "map":
            return AttentionPooling(self.size, self.layers, name="MAPHead_0")(z)
        mean = jnp.mean(self.patches_of(z), axis=1, dtype=jnp.float32)
        return mean if self.pool == "gap" else jnp.concatenate([z[:, 0], mean], axis=-1)

    def patches_of(self, z: jax.Array) -> jax.Array:  # B T D -> B N D
        """The tokens of the patches, which stand last."""
        return z[:, self.has_cls + self.num_registers :]
