"""Layers of the encoder (equations 2 and 3, appendix A); letters of shapes as in models/vit.py."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.config import registry
from vit_jax.config.schema import Model
from vit_jax.errors import ConfigError, form, raised
from vit_jax.models import cpu_ops, rope
from vit_jax.models.position import RelativeKeys
from vit_jax.models.sizes import size_of

WEIGHTS = "attention"  # Collection that attention weights are sown into when it is mutable.

# The official code's initialisers.
kernel_init = nn.initializers.xavier_uniform()
mlp_bias_init = nn.initializers.normal(1e-6)


def layer_norm(config: Model, name: str, use_bias: bool = True) -> "LayerNorm":
    """Returns a LayerNorm of that name."""
    return LayerNorm(config, use_bias=use_bias, name=name)


def dropout(config: Model, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """Applies dropout inside a module; a key of None switches it off."""
    return nn.Dropout(config.dropout, deterministic=key is None)(x, rng=key)


class Dense(nn.Module):
    """Linear map of the last `num_inputs` dimensions to `features`."""

    features: tuple[int, ...]
    config: Model
    num_inputs: int = 1
    kernel_init: Callable = kernel_init
    bias_init: Callable = nn.initializers.zeros
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-self.num_inputs :]
        kernel = self.param("kernel", self.flat_init, (*inputs, *self.features))
        zeros = jnp.zeros(self.features)
        bias = self.param("bias", self.bias_init, self.features) if self.use_bias else zeros
        x = x.astype(self.config.dtype)
        return cpu_ops.choose(self.config.kernels).dense(x, kernel, bias)

    def flat_init(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Initialises the kernel as a matrix, so that its fans are those of the whole map."""
        rows = math.prod(shape[: self.num_inputs])
        return self.kernel_init(key, (rows, math.prod(shape) // rows)).reshape(shape)


class LayerNorm(nn.Module):
    """LayerNorm of equations 2 to 4, with statistics in float32."""

    config: Model
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, D)
        bias = self.param("bias", nn.initializers.zeros, D) if self.use_bias else jnp.zeros(D)
        norm = cpu_ops.choose(self.config.kernels).layer_norm
        return norm(x.astype(self.config.dtype), scale, bias, self.config.norm_eps)


def attention_weights(q: jax.Array, k: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Returns A of equation 6 in float32: q B T h d, k B S h d, bias B h T S -> B h T S."""
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    return jax.nn.softmax(logits if bias is None else logits + bias.astype(jnp.float32))


class Attention(nn.Module):
    """Multi-head attention of queries over keys (appendix A, equations 5 to 8).

    Attributes:
      qkv_bias: a value of `model.qkv_bias`.
    """

    config: Model
    qkv_bias: str = Model.qkv_bias
    is_relative: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, y: jax.Array, rotary: jax.Array | None = None
    ) -> jax.Array:  # B T D, B S D, 2 T d -> B T D
        config, D = self.config, x.shape[-1]
        h = size_of(config).num_heads

        def project(name: str, x: jax.Array) -> jax.Array:
            use_bias = name[0] in self.qkv_bias.replace("none", "")
            return Dense((h, D // h), config, use_bias=use_bias, name=name)(x)

        q, k, v = project("query", x), project("key", y), project("value", y)
        if config.qk_norm:  # Scales only, as in arXiv:2302.05442.
            q = layer_norm(config, "query_ln", use_bias=False)(q)
            k = layer_norm(config, "key_ln", use_bias=False)(k)
        if rotary is not None:
            q, k = (rope.rotate(each, rotary, config.rope) for each in (q, k))
        bias = RelativeKeys(name="relative")(q) if self.is_relative else None
        if self.is_mutable_collection(WEIGHTS):  # A fused kernel does not return them.
            self.sow(WEIGHTS, "A", attention_weights(q, k, bias))
        # The softmax inside is float32: bfloat16 loses small probabilities.
        heads = cpu_ops.choose(config.kernels).attention(q, k, v, bias)  # B T h d
        return Dense((D,), config, num_inputs=2, name="out")(heads)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, each followed by dropout.

    A row of `MLPS`. As every MLP of an encoder, it is created as `Mlp(config, name=...)`, and
    called with the tokens z B T D and a key; a key of None switches its noise off. It returns the
    shape and the dtype of z. Its width is `size_of(config).mlp_size`.
    """

    config: Model

    @nn.compact
    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> jax.Array:  # B T D -> B T D
        config, D = self.config, z.shape[-1]
        keys = (None, None) if key is None else jax.random.split(key)
        gelu = cpu_ops.choose(config.kernels).gelu
        z = Dense((size_of(config).mlp_size,), config, bias_init=mlp_bias_init, name="Dense_0")(z)
        z = dropout(config, gelu(z, config.gelu), keys[0])
        z = layer_norm(config, "LayerNorm_0")(z) if config.mlp_norm else z
        z = Dense((D,), config, bias_init=mlp_bias_init, name="Dense_1")(z)
        return dropout(config, z, keys[1])


class Glu(nn.Module):
    """Gated MLP: (GELU(x W) * (x V)) W_2, with biases (arXiv:2002.05202, equation 6).

    W is `Dense_gate`, V `Dense_0` and W_2 `Dense_1`.
    """

    config: Model

    def activation(self, gate: jax.Array) -> jax.Array:
        """Returns the activated gate B T M."""
        return cpu_ops.choose(self.config.kernels).gelu(gate, self.config.gelu)

    @nn.compact
    def __call__(self, z: jax.Array, key: jax.Array | None = None) -> jax.Array:  # B T D -> B T D
        config, D, M = self.config, z.shape[-1], (size_of(self.config).mlp_size,)
        keys = (None, None) if key is None else jax.random.split(key)
        gate = Dense(M, config, bias_init=mlp_bias_init, name="Dense_gate")(z)
        value = Dense(M, config, bias_init=mlp_bias_init, name="Dense_0")(z)
        z = dropout(config, self.activation(gate) * value, keys[0])
        z = layer_norm(config, "LayerNorm_0")(z) if config.mlp_norm else z
        z = Dense((D,), config, bias_init=mlp_bias_init, name="Dense_1")(z)
        return dropout(config, z, keys[1])


class SwiGlu(Glu):
    """Gated MLP with swish in place of GELU."""

    def activation(self, gate: jax.Array) -> jax.Array:
        return nn.swish(gate)


MLPS = {
    "mlp": Mlp,
    "swiglu": SwiGlu,
    "glu": Glu,
}  # Values of `model.mlp`: Flax modules (config, name=) called with (z B T D, key or None).

GATED_MLPS = {"gelu": "glu", "silu": "swiglu"}  # Activation of a gate -> value of `model.mlp`.


def make_mlp(config: Model, name: str) -> nn.Module:
    """Returns the MLP of a config under that name."""
    return registry.find(MLPS, config.mlp, "model.mlp")(config, name=name)


def check_mlp(config: Model) -> None:
    """Raises ConfigError for a user-defined MLP that cannot take the place of `Mlp`.

    Traces it with a key and without, if this process may import it.
    """
    if not registry.is_user_defined(config.mlp) or registry.chosen(config, "mlp") is None:
        return
    z = jax.ShapeDtypeStruct((2, 3, size_of(config).hidden_size), config.dtype)

    def outputs(z: jax.Array, key: jax.Array) -> list:
        mlp = make_mlp(config, "mlp")
        params = mlp.init(key, z, None).get("params", {})
        return [mlp.apply({"params": params}, z, each) for each in (None, key)]

    where = f"model.mlp={config.mlp!r}"
    try:
        results = jax.eval_shape(outputs, z, jax.random.key(0))
    except Exception as error:  # A module of the user can raise anything.
        raise ConfigError(
            f"{where}, called with (z B T D, key or None), raised "
            f"{raised(error)}; expected an output like z, {form(z)}."
        ) from error
    for y in results:
        if getattr(y, "shape", None) != z.shape or jnp.promote_types(y.dtype, z.dtype) != z.dtype:
            raise ConfigError(
                f"{where} returned {form(y)} for {form(z)}; it must return the shape and the dtype "
                "of z, for example by .astype(z.dtype)."
            )


class LayerScale(nn.Module):
    """Learned factor for each channel of a residual branch (arXiv:2103.17239)."""

    initial: float

    @nn.compact
    def __call__(self, branch: jax.Array) -> jax.Array:  # B T D -> B T D
        initial = nn.initializers.constant(self.initial)
        scale = self.param("scale", initial, branch.shape[-1:]).astype(branch.dtype)
        return branch * scale[None, None]


def drop_path(branch: jax.Array, rate: float | jax.Array, key: jax.Array) -> jax.Array:
    """Drops a residual branch B ... of single examples (stochastic depth, arXiv:1603.09382)."""
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(kept, branch / jnp.asarray(1 - rate, branch.dtype), 0)


class Block(nn.Module):
    """One encoder layer (equations 2 and 3).

    All random numbers come from `key`, so that a loop over layers and a scan draw the same ones;
    a key of None switches dropout and stochastic depth off. `drop_rate` is the rate of stochastic
    depth. `rotary` is that of `rope.make_rotary`.
    """

    config: Model

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        drop_rate=0.0,
        key: jax.Array | None = None,
        rotary: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)

        def branch(name: str, y: jax.Array, key: jax.Array | None) -> jax.Array:
            if config.layer_scale is not None:
                y = LayerScale(config.layer_scale, name=name)(y)
            return y if key is None or not config.drop_path else drop_path(y, drop_rate, key)

        attention = Attention(
            config,
            config.qkv_bias,
            is_relative=config.pos_embed == "relative",
            name="MultiHeadDotProductAttention_0",
        )
        y = layer_norm(config, "LayerNorm_0")(z)
        y = dropout(config, attention(y, y, rotary), keys[0])
        z = z + branch("LayerScale_0", y, keys[1])
        y = layer_norm(config, "LayerNorm_1")(z)
        y = make_mlp(config, "MlpBlock_0")(y, keys[2])
        return z + branch("LayerScale_1", y, keys[3])
