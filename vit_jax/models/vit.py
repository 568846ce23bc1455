"""The Vision Transformer (section 3.1 of arXiv:2010.11929).

Letters of shapes, used in comments, einsum strings and unpacking:
  B batch   H W image   C channels   P patch side   N patches (HW / PP)
  T tokens (patches, class token and registers)   D hidden size
  M MLP size   h heads   d head size (D / h)   K classes

Submodules have the names of the published checkpoints.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vit_jax.config.schema import Model
from vit_jax.models import cpu_ops, resnet_stem
from vit_jax.models.layers import (
    WEIGHTS,
    Attention,
    Block,
    dropout,
    kernel_init,
    layer_norm,
    make_mlp,
)
from vit_jax.models.pixel_stats import check_images, normalize
from vit_jax.models.position import PositionEmbedding
from vit_jax.models.sizes import Size, VitShape, shape_of, size_of

POOLS = {
    "token": "class token (equation 4)",
    "gap": "mean of the patch tokens (appendix D.3)",
    "map": "multi-head attention pooling (arXiv:2106.04560)",
    "token_gap": "class token and mean of the patch tokens (arXiv:2304.07193)",
}

REMAT_POLICIES = {  # What a layer saves for its backward pass; everything else is recomputed.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def has_cls(config: Model) -> bool:
    """Returns True for a model with a class token."""
    return config.pool in ("token", "token_gap")


def shard_over_batch(z: jax.Array) -> jax.Array:
    """Constrains activations B ... to be sharded over the batch, if a mesh is set.

    Parameters are then moved to the examples, and never examples to the parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)
    return jax.lax.with_sharding_constraint(z, PartitionSpec(axes)) if axes else z


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
        bias = self.param("bias", nn.initializers.zeros, (D,))
        patches = patchify(images.astype(self.config.dtype), P)
        E = kernel.reshape(P * P * C, D)
        return cpu_ops.choose(self.config.kernels).dense(patches, E, bias)


@functools.lru_cache(maxsize=16)
def make_apply_layer(config: Model, uses_remat: bool) -> Callable:
    """Returns `apply(params, z, drop_rate, key) -> z` of a layer, traced once for all layers."""
    block = Block(config, parent=None)

    def apply(params: dict, z: jax.Array, drop_rate: float, key: jax.Array | None) -> jax.Array:
        return block.apply({"params": params}, z, drop_rate, key)

    if uses_remat:
        apply = jax.checkpoint(apply, policy=REMAT_POLICIES[config.remat], static_argnums=2)
    return jax.jit(apply, static_argnums=2)


class Encoder(nn.Module):
    """Position embeddings, the layers, and the LayerNorm of equation 4.

    Registers are placed between class token and patches; they get no position embedding.
    """

    config: Model
    grid: tuple[int, int]

    @nn.compact
    def __call__(
        self, z: jax.Array, key: jax.Array | None, layers: Sequence[int] = ()
    ) -> jax.Array | list[jax.Array]:
        """Returns the normalised z_L, B T D; or with `layers` their z_l, B T D each."""
        config, L = self.config, self.size.num_layers
        keys = [None] * (L + 1) if key is None else jax.random.split(key, L + 1)
        add_positions = self.positions("posembed_input")
        z = shard_over_batch(dropout(config, add_positions(z), keys[0]))
        rates = np.linspace(0, config.drop_path, L)  # Linear in depth: arXiv:2106.10270.
        if self.is_initializing():
            self.init_layers(z)
        # Initialisation needs only shapes from the layers, and a scan is traced faster.
        are_equal = config.pos_embed_at != "layers"
        if config.scan or (self.is_initializing() and are_equal):
            keys = None if key is None else keys[1:]
            z, outputs = self.scan(z, rates, keys, add_positions, layers)
        else:
            z, outputs = self.loop(z, rates, keys[1:], add_positions, layers)
        return outputs if layers else layer_norm(config, "encoder_norm")(z)

    def init_layers(self, z: jax.Array) -> None:
        """Initialises all layers by one vmapped program, L times smaller than a loop."""
        block = Block(self.config, parent=None)
        keys = jax.random.split(self.make_rng("params"), self.size.num_layers)
        stacked = jax.vmap(lambda key: block.init(key, z)["params"])(keys)
        for i in range(self.size.num_layers):
            params = jax.tree.map(lambda arrays, i=i: arrays[i], stacked)
            self.put_variable("params", f"encoderblock_{i}", params)

    def loop(self, z: jax.Array, rates, keys, add_positions: Callable, layers: Sequence[int]):
        """Applies the layers one after the other; returns z_L and the z_l of `layers`."""
        apply_layer = make_apply_layer(self.config, self.uses_remat)
        only_reads = not any(map(self.is_mutable_collection, ("params", "intermediates", WEIGHTS)))
        outputs = {}
        for i, (rate, key) in enumerate(zip(rates, keys, strict=True)):
            if i and self.config.pos_embed_at == "shared":
                z = add_positions(z)
            elif i and self.config.pos_embed_at == "layers":
                z = self.positions(f"posembed_{i}")(z)
            name = f"encoderblock_{i}"
            if only_reads:
                with jax.named_scope(name):
                    z = apply_layer(self.variables["params"][name], z, float(rate), key)
            else:
                z = Block(self.config, name=name)(z, float(rate), key)
            z = shard_over_batch(z)
            outputs[i + 1] = z
        return z, [outputs[i] for i in layers]

    def scan(self, z: jax.Array, rates, keys, add_positions: Callable, layers: Sequence[int]):
        """Computes the same as `loop` by a scan over stacked parameters of the layers.

        One layer is compiled instead of L. The parameters of the run stay those of single
        layers; they are stacked inside the program.
        """
        block = Block(self.config, parent=None)

        def layer(z: jax.Array, inputs: tuple):
            i, params, rate, key = inputs
            if self.config.pos_embed_at == "shared":
                z = jnp.where(i > 0, add_positions(z), z)
            z = shard_over_batch(block.apply({"params": params}, z, rate, key))
            return z, (z if layers else None)

        if self.uses_remat:
            policy = REMAT_POLICIES[self.config.remat]
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        names = [f"encoderblock_{i}" for i in range(len(rates))]
        params = [self.cast_kernels(self.variables["params"][name]) for name in names]
        params = jax.tree.map(lambda *arrays: jnp.stack(arrays), *params)
        inputs = (np.arange(len(rates)), params, np.float32(rates), keys)
        z, outputs = jax.lax.scan(layer, z, inputs)
        return z, [outputs[i - 1] for i in layers]

    @property
    def size(self) -> Size:
        """Depth, widths and heads."""
        return size_of(self.config)

    @property
    def uses_remat(self) -> bool:
        """True if the backward pass recomputes activations."""
        return self.config.remat != "none" and not self.is_initializing()

    def cast_kernels(self, params: dict) -> dict:
        """Returns parameters with kernels in the dtype of the computation.

        Less is stacked then, and moved between devices.
        """
        dtype = self.config.dtype
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params
        )

    def positions(self, name: str) -> Callable[[jax.Array], jax.Array]:
        """Returns a function that adds the position embeddings of that name."""
        config = self.config
        if config.pos_embed in ("none", "relative"):
            return lambda z: z
        E_pos = PositionEmbedding(
            kind=config.pos_embed,
            grid=self.grid,
            has_cls=has_cls(config),
            hidden_size=self.size.hidden_size,
            std=config.pos_embed_std,
            name=name,
        )()
        E_pos = insert_registers(E_pos, has_cls(config), config.registers)
        return lambda z: z + E_pos.astype(z.dtype)


def insert_registers(E_pos: jax.Array, has_cls: bool, num_registers: int) -> jax.Array:
    """Inserts zeros for the registers into position embeddings of class token and patches."""
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

    Raises ConfigError for images of another size than `image_size`, and for integers.
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
        """Side of a patch in pixels of the image."""
        return self.patch_size * (self.stem.stride if self.stem else 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches along height and width."""
        height, width = self.image_size
        return height // self.patch_pixels, width // self.patch_pixels

    @property
    def has_cls(self) -> bool:
        """True if the model has a class token."""
        return has_cls(self.config)

    def setup(self):
        config, D = self.config, self.size.hidden_size
        if self.stem:
            for name, module in resnet_stem.modules(self.stem, jnp.dtype(config.dtype)).items():
                setattr(self, name, module)
        self.embedding = PatchEmbedding(config)
        if self.has_cls:
            self.cls = self.param("cls", nn.initializers.zeros, (1, 1, D))
        if config.registers:
            shape = (1, config.registers, D)
            self.registers = self.param("registers", nn.initializers.normal(1e-6), shape)
        self.Transformer = Encoder(config, self.grid)
        if config.pool == "map":
            self.MAPHead_0 = AttentionPooling(config)
        if config.pre_logits:
            self.pre_logits = nn.Dense(D)
        if self.num_classes:
            self.head = nn.Dense(
                self.num_classes,
                kernel_init=nn.initializers.zeros,
                bias_init=nn.initializers.constant(config.head_bias),
            )

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        z = self.encode(self.embed(images), train=train)
        y = shard_over_batch(self.pool(z).astype(jnp.float32))
        if self.config.pre_logits:
            y = nn.tanh(self.pre_logits(y))
        if self.num_classes:
            y = self.head(y)
        return shard_over_batch(y)

    def embed(self, images: jax.Array) -> jax.Array:  # B H W 3 -> B N D
        """Returns the patch embeddings x_p E of equation 1, without positions."""
        check_images(images, self.image_size)
        x = normalize(images, self.config.pixel_stats)
        if self.stem:
            x = resnet_stem.apply(self, self.stem, x)
        return self.embedding(x)

    def encode(self, z: jax.Array, *, train: bool = False) -> jax.Array:  # B N D -> B T D
        """Returns the normalised output z_L for patch embeddings; class token and registers first.

        Args:
          train: applies dropout and stochastic depth.
        """
        return self._encode(z, train)

    def intermediate(  # B H W 3 -> B N D each
        self, images: jax.Array, layers: Sequence[int], *, train: bool = False
    ) -> list[jax.Array]:
        """Returns the patch tokens of z_l (equation 3), not normalised, for each l in `layers`.

        Args:
          layers: numbers from 1 to L.
        """
        return [self.patches_of(z) for z in self._encode(self.embed(images), train, layers)]

    def _encode(self, z: jax.Array, train: bool, layers: Sequence[int] = ()):
        tokens = [self.cls] if self.has_cls else []
        tokens += [self.registers] if self.config.registers else []
        dtype = self.config.dtype
        tokens = [jnp.broadcast_to(t.astype(dtype), (z.shape[0], *t.shape[1:])) for t in tokens]
        z = jnp.concatenate([*tokens, z], axis=1)
        is_noisy = bool(self.config.dropout or self.config.drop_path)
        key = self.make_rng("dropout") if train and is_noisy else None
        return self.Transformer(z, key, layers)

    def pool(self, z: jax.Array) -> jax.Array:  # B T D -> B D
        """Returns the image representation y (equation 4, or its alternatives in `POOLS`)."""
        if self.config.pool == "token":
            return z[:, 0]
        if self.config.pool == "map":
            return self.MAPHead_0(z)
        mean = jnp.mean(self.patches_of(z), axis=1, dtype=jnp.float32)
        return mean if self.config.pool == "gap" else jnp.concatenate([z[:, 0], mean], axis=-1)

    def patches_of(self, z: jax.Array) -> jax.Array:  # B T D -> B N D
        """Returns the tokens of the patches, which come last."""
        return z[:, self.has_cls + self.config.registers :]
