"""Matrix products and other operations of the model, in a plain form and a fast form for CPUs.

Both forms compute the same function, which tests compare. On a CPU, XLA's fast matrix products
need row-major operands and return float32. The gradient of a kernel that autodiff produces,
x^T dy, does not have this form: XLA folds the transpose into the layout of an operand and uses
a product that is several times slower. The backward rules below materialise every transpose, and
cast after a product instead of inside it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


@dataclasses.dataclass(frozen=True)
class Kernels:
    """One implementation of the operations; all return the dtype of their input."""

    dense: Callable  # (x ... I, kernel I F, bias F) -> ... F; I and F may be several dimensions.
    attention: Callable  # (q B T h d, k B S h d, v B S h d, bias B h T S or None) -> B T h d
    gelu: Callable  # (x, kind of GELUS) -> x
    layer_norm: Callable  # (x ... D, scale D, bias D, eps) -> ... D


GELUS = {  # Values of `model.gelu`.
    "tanh": functools.partial(jax.nn.gelu, approximate=True),  # Flax and the official code.
    "erf": functools.partial(jax.nn.gelu, approximate=False),  # PyTorch's default.
    "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # arXiv:1606.08415, section 2; CLIP.
}


def choose(name: str) -> Kernels:
    """Returns the operations of `model.kernels`; `auto` depends on the platform."""
    if name == "auto":
        name = "cpu" if jax.default_backend() == "cpu" else "plain"
    return KERNELS[name]


def _dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    num_in = kernel.ndim - bias.ndim
    contracted = tuple(range(x.ndim - num_in, x.ndim)), tuple(range(num_in))
    y = jax.lax.dot_general(x, kernel.astype(x.dtype), (contracted, ((), ())))
    return y + bias.astype(x.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    centred, deviation = _standardise(x, eps)
    return (centred * deviation * _row(scale, x) + _row(bias, x)).astype(x.dtype)


def _standardise(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """Returns x minus its mean, and 1 / standard deviation, over the last axis in float32."""
    centred = x.astype(jnp.float32)
    centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred, jax.lax.rsqrt(variance + eps)


def _row(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


# The fast form for XLA on a CPU.

_fence = jax.lax.optimization_barrier


def _transpose(x: jax.Array) -> jax.Array:
    """Transposes the last two dimensions in memory: ... m n -> ... n m."""
    x = x.swapaxes(-1, -2)
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _product(a: jax.Array, b: jax.Array, contract: str = "mk,kn") -> jax.Array:
    """Multiplies matrices in the last two dimensions, in float32."""
    batch = tuple(range(a.ndim - 2))
    of_b = b.ndim - (2 if contract == "mk,kn" else 1)
    dims = ((a.ndim - 1,), (of_b,)), (batch, batch)
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x n I, kernel I F and bias F, float32 -> n F in x's dtype."""
    return (_product(x, kernel.astype(x.dtype)) + bias[None]).astype(x.dtype)


def _affine_forward(x, kernel, bias):
    return _affine(x, kernel, bias), (x, kernel)


def _affine_backward(saved, dy):
    x, kernel = saved
    dy = _fence(dy)
    dx = _product(dy, kernel.astype(dy.dtype), "mk,nk").astype(x.dtype)
    if x.shape[1] <= dy.shape[1]:  # Transpose the narrower of the two.
        dkernel = _product(_transpose(x), dy)
    else:
        turned = _product(_transpose(dy), x)
        dkernel = with_layout_constraint(turned, Layout((0, 1))).T
    dx, dkernel = _fence((dx, dkernel))
    return dx, dkernel, jnp.sum(dy, axis=0, dtype=jnp.float32)


_affine.defvjp(_affine_forward, _affine_backward)


def _dense_cpu(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    num_in = kernel.ndim - bias.ndim
    rows, inputs = x.shape[: x.ndim - num_in], math.prod(kernel.shape[:num_in])
    y = _affine(x.reshape(-1, inputs), kernel.reshape(inputs, -1), bias.reshape(-1))
    return y.reshape(*rows, *bias.shape)


def _probabilities(q: jax.Array, k: jax.Array) -> jax.Array:  # n T d, n S d -> n T S
    scale = 1 / math.sqrt(q.shape[-1])
    logits = _fence(_product(_fence(q * jnp.asarray(scale, q.dtype)), k, "mk,nk"))
    return _fence(jax.nn.softmax(logits).astype(q.dtype))


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of n heads: n T d, n S d, n S d -> n T d."""
    return _product(_probabilities(q, k), v).astype(q.dtype)


def _attend_forward(q, k, v):
    A = _probabilities(q, k)
    return _product(A, v).astype(q.dtype), (q, k, v, A)


def _attend_backward(saved, dout):
    q, k, v, A = saved
    scale = jnp.asarray(1 / math.sqrt(q.shape[-1]), jnp.float32)
    dout, A32 = _fence(dout), A.astype(jnp.float32)
    dA = _fence(_product(dout, v, "mk,nk"))
    dlogits = A32 * (dA - jnp.sum(dA * A32, axis=-1, keepdims=True))
    dlogits = _fence(dlogits.astype(q.dtype))
    dq = (_product(dlogits, k) * scale).astype(q.dtype)
    dk = (_product(_transpose(dlogits), q) * scale).astype(q.dtype)
    return dq, dk, _product(_transpose(A), dout).astype(q.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def _attention_cpu(q, k, v, bias=None):
    if bias is not None:
        return jax.nn.dot_product_attention(q, k, v, bias)
    B, T, h, d = q.shape
    q, k, v = (x.swapaxes(1, 2).reshape(B * h, x.shape[1], d) for x in (q, k, v))
    return _attend(q, k, v).reshape(B, h, T, d).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm_cpu(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    return _fence(_layer_norm(x, scale, bias, eps))


def _layer_norm_forward(x, scale, bias, eps):
    return _layer_norm_cpu(x, scale, bias, eps), (x, scale)


def _layer_norm_backward(eps, saved, dy):
    x, scale = saved
    centred, deviation = _standardise(x, eps)
    z = _fence(centred * deviation)
    dy = _fence(dy).astype(jnp.float32)
    dz = dy * _row(scale, x)
    mean = functools.partial(jnp.mean, axis=-1, keepdims=True)
    dx = _fence(deviation * (dz - mean(dz) - z * mean(dz * z))).astype(x.dtype)
    rows = tuple(range(x.ndim - 1))
    return dx, jnp.sum(dy * z, axis=rows), jnp.sum(dy, axis=rows)


_layer_norm_cpu.defvjp(_layer_norm_forward, _layer_norm_backward)


def _gelu(x: jax.Array, kind: str) -> jax.Array:
    return GELUS[kind](x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu_cpu(x: jax.Array, kind: str) -> jax.Array:
    return GELUS[kind](x.astype(jnp.float32)).astype(x.dtype)


def _gelu_forward(x, kind):
    return _fence(_gelu_cpu(x, kind)), x


def _gelu_backward(kind, x, dy):
    x, dy = _fence((x, dy))
    _, back = jax.vjp(GELUS[kind], x.astype(jnp.float32))
    return (_fence(back(dy.astype(jnp.float32))[0].astype(x.dtype)),)


_gelu_cpu.defvjp(_gelu_forward, _gelu_backward)

PLAIN = Kernels(_dense, jax.nn.dot_product_attention, _gelu, _layer_norm)
KERNELS = {
    "plain": PLAIN,
    "cpu": Kernels(_dense_cpu, _attention_cpu, _gelu_cpu, _layer_norm_cpu),
    "cudnn": dataclasses.replace(
        PLAIN, attention=functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    ),
}
