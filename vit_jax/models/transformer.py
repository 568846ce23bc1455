"""The encoder of the Vision Transformer; letters of shapes as in models/vit.py."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vit_jax.config.schema import Model
from vit_jax.models.layers import WEIGHTS, Block, dropout, layer_norm
from vit_jax.models.position import PositionEmbedding
from vit_jax.models.rope import make_rotary
from vit_jax.models.size_table import Size
from vit_jax.models.sizes import size_of

REMAT_POLICIES = {  # What a layer saves for its backward pass; everything else is recomputed.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def has_cls(config: Model) -> bool:
    """Returns True for a model with a class token."""
    if config.class_token is None:
        return config.pool in ("token", "token_gap")
    return config.class_token


def num_class_tokens(config: Model) -> int:
    """Returns the number of tokens with a head: class token and distillation token."""
    return has_cls(config) + config.distill_token


def shard_over_batch(z: jax.Array) -> jax.Array:
    """Constrains activations B ... to be sharded over the batch, if a mesh is set.

    Parameters are then moved to the examples, and never examples to the parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)
    return jax.lax.with_sharding_constraint(z, PartitionSpec(axes)) if axes else z


def rotary_of(config: Model, grid: tuple[int, int]) -> np.ndarray | None:
    """Returns the cosines and sines 2 T d of rotary positions; None for a model without."""
    if "rope" not in config.pos_embed:
        return None
    size, num_prefix_tokens = size_of(config), num_class_tokens(config) + config.registers
    return make_rotary(config.rope, grid, size.hidden_size // size.num_heads, num_prefix_tokens)


def keep_patches(
    z: jax.Array, rotary: np.ndarray | None, keep: jax.Array, num_prefix_tokens: int
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the tokens before the patches and the patches `keep` B V of z B T D, and of rotary.

    Rotary positions 2 T d become 2 B T d.
    """
    prefix = jnp.broadcast_to(jnp.arange(num_prefix_tokens), (len(keep), num_prefix_tokens))
    tokens = jnp.concatenate([prefix, keep + num_prefix_tokens], axis=1)
    z = jnp.take_along_axis(z, tokens[..., None], axis=1)
    return z, None if rotary is None else jnp.asarray(rotary)[:, tokens]


@functools.lru_cache(maxsize=16)
def make_apply_layer(config: Model, uses_remat: bool) -> Callable:
    """Returns `apply(params, z, drop_rate, key, rotary) -> z`, traced once for all layers."""
    block = Block(config, parent=None)

    def apply(params: dict, z: jax.Array, drop_rate: float, key, rotary) -> jax.Array:
        return block.apply({"params": params}, z, drop_rate, key, rotary)

    if uses_remat:
        apply = jax.checkpoint(apply, policy=REMAT_POLICIES[config.remat], static_argnums=2)
    return jax.jit(apply, static_argnums=2)


class Encoder(nn.Module):
    """Position embeddings, the layers, and the LayerNorm of equation 4.

    Registers are placed between class tokens and patches; they get no position embedding.

    Attributes:
      grid: number of patches along height and width.
      position_grid: grid that the position embeddings belong to, which are resized; None for
        `grid`.
    """

    config: Model
    grid: tuple[int, int]
    position_grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        key: jax.Array | None,
        layers: Sequence[int] = (),
        keep: jax.Array | None = None,
    ) -> jax.Array | list[jax.Array]:
        """Returns the normalised z_L, B T D; or with `layers` their z_l, B T D each.

        With `config.fc_norm`, z_L is not normalised.

        Args:
          keep: B V, the patches that are encoded; the others are left out after their positions
            are known. None for all.
        """
        config, L = self.config, self.size.num_layers
        keys = [None] * (L + 1) if key is None else jax.random.split(key, L + 1)
        add_positions = self.positions("posembed_input")
        z, rotary = add_positions(z), rotary_of(config, self.grid)
        if keep is not None:
            num_prefix_tokens = num_class_tokens(config) + config.registers
            z, rotary = keep_patches(z, rotary, keep, num_prefix_tokens)
        z = shard_over_batch(dropout(config, z, keys[0]))
        z = layer_norm(config, "pre_norm")(z) if config.pre_norm else z
        rates = np.linspace(0, config.drop_path, L)  # Linear in depth: arXiv:2106.10270.
        if self.is_initializing():
            self.init_layers(z)
        # Initialisation needs only shapes from the layers, and a scan is traced faster.
        are_equal = config.pos_embed_at != "layers"
        if config.scan or (self.is_initializing() and are_equal):
            keys = None if key is None else keys[1:]
            z, outputs = self.scan(z, rates, keys, rotary, add_positions, layers)
        else:
            z, outputs = self.loop(z, rates, keys[1:], rotary, add_positions, layers)
        if layers:
            return outputs
        return z if config.fc_norm else layer_norm(config, "encoder_norm")(z)

    def init_layers(self, z: jax.Array) -> None:
        """Initialises all layers by one vmapped program, L times smaller than a loop."""
        block = Block(self.config, parent=None)
        keys = jax.random.split(self.make_rng("params"), self.size.num_layers)
        stacked = jax.vmap(lambda key: block.init(key, z)["params"])(keys)
        for i in range(self.size.num_layers):
            params = jax.tree.map(lambda arrays, i=i: arrays[i], stacked)
            self.put_variable("params", f"encoderblock_{i}", params)

    def loop(self, z: jax.Array, rates, keys, rotary, add_positions: Callable, layers):
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
                    z = apply_layer(self.variables["params"][name], z, float(rate), key, rotary)
            else:
                z = Block(self.config, name=name)(z, float(rate), key, rotary)
            z = shard_over_batch(z)
            outputs[i + 1] = z
        return z, [outputs[i] for i in layers]

    def scan(self, z: jax.Array, rates, keys, rotary, add_positions: Callable, layers):
        """Computes the same as `loop` by a scan over stacked parameters of the layers.

        One layer is compiled instead of L. The parameters of the run stay those of single
        layers; they are stacked inside the program.
        """
        block = Block(self.config, parent=None)

        def layer(z: jax.Array, inputs: tuple):
            i, params, rate, key = inputs
            if self.config.pos_embed_at == "shared":
                z = jnp.where(i > 0, add_positions(z), z)
            z = shard_over_batch(block.apply({"params": params}, z, rate, key, rotary))
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
        if config.pos_embed in ("none", "relative", "rope"):
            return lambda z: z
        E_pos = PositionEmbedding(
            kind=config.pos_embed,
            grid=self.position_grid or self.grid,
            num_class_tokens=num_class_tokens(config),
            hidden_size=self.size.hidden_size,
            std=config.pos_embed_std,
            resized=self.grid,
            name=name,
        )()
        E_pos = insert_registers(E_pos, num_class_tokens(config), config.registers)
        return lambda z: z + E_pos.astype(z.dtype)


def insert_registers(E_pos: jax.Array, num_class_tokens: int, num_registers: int) -> jax.Array:
    """Inserts zeros for the registers into position embeddings of class tokens and patches."""
    if not num_registers:
        return E_pos
    first, patches = jnp.split(E_pos, [num_class_tokens], axis=1)
    registers = jnp.zeros((1, num_registers, E_pos.shape[-1]))
    return jnp.concatenate([first, registers, patches], axis=1)
