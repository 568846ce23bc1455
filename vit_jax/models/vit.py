"""The Vision Transformer (section 3.1 of arXiv:2010.11929).

Alphabet of shapes, used by comments, einsum strings and unpacking alike:
  B batch   H W image   C channels   P patch side   N patches (HW / PP)
  T tokens (N, one more with the class token, and the registers)   D hidden size
  M MLP size   h heads   d size of one head (D / h)   K classes

Submodules carry the names of the published checkpoints: names are the checkpoint's API.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vit_jax.config.schema import Model
from vit_jax.models import cpu_ops, resnet_stem
from vit_jax.models.layers import Attention, Block, Mlp, dropout, kernel_init, layer_norm
from vit_jax.models.pixel_stats import check_size, normalize
from vit_jax.models.position import PositionEmbedding
from vit_jax.models.sizes import Size, VitShape, shape_of, size_of

POOLS = {
    "token": "class token (equation 4)",
    "gap": "mean of the patch tokens (appendix D.3)",
    "map": "multi-head attention pooling (arXiv:2106.04560)",
    "token_gap": "class token beside the mean of the patch tokens (arXiv:2304.07193)",
}


# What a layer keeps for its backward pass; the rest is computed again.
REMATS = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def has_cls(config: Model) -> bool:
    """Returns True for a model with a class token."""
    return config.pool in ("token", "token_gap")


def over_batch(z: jax.Array) -> jax.Array:
    """Activations B ... that stay split over examples alone, where a mesh is set.

    So that parameters move to the examples of a device, never examples to the parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)
    return jax.lax.with_sharding_constraint(z, PartitionSpec(axes)) if axes else z


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images B H W C into flattened patches B N PPC, row by row: x_p of section 3.1."""
    B, H, W, C = images.shape
    P = patch_size
    x = images.reshape(B, H // P, P, W // P, P, C)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # B H/P W/P P P C
    return x.reshape(B, (H // P) * (W // P), P * P * C)


class PatchEmbedding(nn.Module):
    """The E of equation 1: equal to a convolution with stride and window P."""

    config: Model

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # B H W C -> B N D
        size, _, P = shape_of(self.config)
        C, D = images.shape[-1], size.hidden_size
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (P, P, C, D))
        bias = self.param("bias", nn.initializers.zeros, (D,))
        patches = patchify(images.astype(self.config.dtype), P)
        E = kernel.reshape(P * P * C, D)
        return cpu_ops.choose(self.config.kernels).dense(patches, E, bias)


class Encoder(nn.Module):
    """Position embeddings, the layers, and the LayerNorm of equation 4.

    Registers stand between the class token and the patches; no position is added to them.
    """

    config: Model
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, z: jax.Array, key: jax.Array | None) -> jax.Array:  # B T D -> B T D
        config, L = self.config, self.size.num_layers
        keys = [None] * (L + 1) if key is None else jax.random.split(key, L + 1)
        place = self.positions("posembed_input")
        z = over_batch(dropout(config, place(z), keys[0]))
        rates = np.linspace(0, config.drop_path, L)  # Linear in depth: arXiv:2106.10270.
        if self.is_initializing():
            self.draw(z)
        # Quicker to trace where nothing but shapes is wanted of the layers.
        is_alike = config.pos_embed_at != "layers"
        if config.scan or (self.is_initializing() and is_alike):
            z = self.scan(z, rates, None if key is None else keys[1:], place)
        else:
            z = self.loop(z, rates, keys[1:], place)
        return layer_norm(config, "encoder_norm")(z)

    def draw(self, z: jax.Array) -> None:
        """First values of all layers at once: a program L times smaller than one by one."""
        block = Block(self.config, parent=None)
        keys = jax.random.split(self.make_rng("params"), self.size.num_layers)
        drawn = jax.vmap(lambda key: block.init(key, z)["params"])(keys)
        for i in range(self.size.num_layers):
            params = jax.tree.map(lambda stacked, i=i: stacked[i], drawn)
            self.put_variable("params", f"encoderblock_{i}", params)

    def loop(self, z: jax.Array, rates, keys, place: Callable) -> jax.Array:
        """The layers one after the other."""
        layer = nn.remat(Block, policy=REMATS[self.config.remat]) if self.is_remat else Block
        for i, (rate, key) in enumerate(zip(rates, keys, strict=True)):
            if i and self.config.pos_embed_at == "shared":
                z = place(z)
            elif i and self.config.pos_embed_at == "layers":
                z = self.positions(f"posembed_{i}")(z)
            block = layer(self.config, name=f"encoderblock_{i}")
            z = over_batch(block(z, float(rate), key))
        return z

    def scan(self, z: jax.Array, rates, keys, place: Callable) -> jax.Array:
        """The same as `loop`, with one layer compiled and its parameters stacked on the way.

        What the run holds and keeps are the parameters of single layers.
        """
        block = Block(self.config, parent=None)

        def layer(z: jax.Array, at: tuple):
            i, params, rate, key = at
            if self.config.pos_embed_at == "shared":
                z = jnp.where(i > 0, place(z), z)
            return over_batch(block.apply({"params": params}, z, rate, key)), None

        if self.is_remat:
            layer = jax.checkpoint(layer, policy=REMATS[self.config.remat], prevent_cse=False)
        names = [f"encoderblock_{i}" for i in range(len(rates))]
        params = [self.in_dtype(self.variables["params"][name]) for name in names]
        params = jax.tree.map(lambda *arrays: jnp.stack(arrays), *params)
        z, _ = jax.lax.scan(layer, z, (np.arange(len(rates)), params, np.float32(rates), keys))
        return z

    @property
    def size(self) -> Size:
        return size_of(self.config)

    @property
    def is_remat(self) -> bool:
        return self.config.remat != "none" and not self.is_initializing()

    def in_dtype(self, params: dict) -> dict:
        """Kernels in the dtype they are used in: less to stack, and to move between devices."""
        dtype = self.config.dtype
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params
        )

    def positions(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """Returns `add(z)` for the position embeddings of that name."""
        kind = self.config.pos_embed
        if kind in ("none", "relative"):
            return lambda z: z
        E_pos = PositionEmbedding(
            kind, self.grid, has_cls(self.config), self.size.hidden_size, name=name
        )()
        E_pos = past_registers(E_pos, has_cls(self.config), self.config.registers)
        return lambda z: z + E_pos.astype(z.dtype)


def past_registers(E_pos: jax.Array, has_cls: bool, num_registers: int) -> jax.Array:
    """Positions of class token and patches as those of all tokens, zeros for the registers."""
    if not num_registers:
        return E_pos
    cls, patches = jnp.split(E_pos, [int(has_cls)], axis=1)
    registers = jnp.zeros((1, num_registers, E_pos.shape[-1]))
    return jnp.concatenate([cls, registers, patches], axis=1)


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
        y = Mlp(config, name="MlpBlock_0")(y)
        return (x + y)[:, 0]


class ViT(nn.Module):
    """Images B H W 3, float32 in [-1, 1] -> logits B K, or features B D when K is 0.

    With a `stem`, patches are taken of its feature map: the hybrid of section 3.1. The
    features of `pool="token_gap"` are B 2D.

    Parameters are float32; `config.dtype` is that of the computation, and softmax, LayerNorm
    statistics and the logits stay float32. Dropout and stochastic depth act only with
    `train=True`, and then need `rngs={"dropout": key}`.

    Raises ConfigError for images of another size than `image_size`.
    """

    config: Model = Model()
    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)

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
        """Pixels of the image along the side of a patch."""
        return self.patch_size * (self.stem.stride if self.stem else 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        height, width = self.image_size
        return height // self.patch_pixels, width // self.patch_pixels

    @property
    def has_cls(self) -> bool:
        """True if the model has a class token."""
        return has_cls(self.config)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        z = self.encode(self.embed(images), train=train)
        y = over_batch(self.pool_tokens(z).astype(jnp.float32))
        if self.config.pre_logits:
            y = nn.tanh(nn.Dense(self.size.hidden_size, name="pre_logits")(y))
        if self.num_classes:
            bias_init = nn.initializers.constant(self.config.head_bias)
            zeros = nn.initializers.zeros
            y = nn.Dense(self.num_classes, kernel_init=zeros, bias_init=bias_init, name="head")(y)
        return over_batch(y)

    def embed(self, images: jax.Array) -> jax.Array:  # B H W 3 -> B N D
        """The x_p E of equation 1, without positions."""
        check_size(images, self.image_size)
        x = normalize(images, self.config.pixel_stats)
        if self.stem:
            x = resnet_stem.resnet(self.stem, x, jnp.dtype(self.config.dtype))
        return PatchEmbedding(self.config, name="embedding")(x)

    def encode(self, z: jax.Array, *, train: bool) -> jax.Array:  # B N D -> B T D
        """The z_L of the patches and the tokens before them, normalised."""
        D, dtype = self.size.hidden_size, self.config.dtype
        first = []
        if self.has_cls:
            first.append(self.param("cls", nn.initializers.zeros, (1, 1, D)))
        if self.config.registers:
            registers = (1, self.config.registers, D)
            first.append(self.param("registers", nn.initializers.normal(1e-6), registers))
        first = [jnp.broadcast_to(t.astype(dtype), (z.shape[0], *t.shape[1:])) for t in first]
        z = jnp.concatenate([*first, z], axis=1)
        encoder = Encoder(self.config, self.grid, name="Transformer")
        is_noisy = bool(self.config.dropout or self.config.drop_path)
        key = self.make_rng("dropout") if train and is_noisy else None
        return encoder(z, key)

    def pool_tokens(self, z: jax.Array) -> jax.Array:  # B T D -> B D
        """The y of equation 4, or what takes its place in appendix D.3."""
        if self.config.pool == "token":
            return z[:, 0]
        if self.config.pool == "map":
            return AttentionPooling(self.config, name="MAPHead_0")(z)
        mean = jnp.mean(self.patches_of(z), axis=1, dtype=jnp.float32)
        return mean if self.config.pool == "gap" else jnp.concatenate([z[:, 0], mean], axis=-1)

    def patches_of(self, z: jax.Array) -> jax.Array:  # B T D -> B N D
        """The tokens of the patches, which stand last."""
        return z[:, self.has_cls + self.config.registers :]
