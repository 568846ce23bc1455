"""Training step and forward pass of a JAX model; see protocol.py."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import protocol

ALWAYS_COMPILES = True
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")


def main(build_model: Callable, *packages: str) -> None:
    """Times a model.

    build_model(shape, dtype) returns float32 parameters and a function
    `apply(parameters, images)`, which computes logits of images (N, H, W, C) in the dtype.
    """
    protocol.main(__import__(__name__), build_model, "jax", *packages)


def has_platform(platform: str) -> bool:
    """Returns whether JAX runs on a platform; for "cpu", it will not use a GPU."""
    if platform == "cpu":
        jax.config.update("jax_platforms", platform)
    return jax.default_backend() == platform


def device_name() -> str:
    return jax.devices()[0].device_kind


def peak_bytes() -> int:
    """Returns the peak bytes of the GPU."""
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def cast(tree, dtype: str):
    """Returns the tree with floating-point arrays of another dtype.

    For packages without mixed precision: the gradients of the cast are float32.
    """

    def cast_leaf(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast_leaf, tree)


def make_step(case: dict, build_model: Callable) -> tuple[Callable[[], None], int]:
    """Returns a function that runs one step and waits for it, and the parameter count."""
    params, apply = build_model(case["shape"], case["dtype"])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    images = jax.random.normal(jax.random.key(0), (case["batch"], *case["shape"]["image_size"], 3))
    return _STEPS[case["mode"]](case, params, apply, images), parameters


def _inference(case: dict, params, apply: Callable, images: jax.Array) -> Callable[[], None]:
    forward = jax.jit(apply)
    return lambda: forward(params, images).block_until_ready()


def _training(case: dict, params, apply: Callable, images: jax.Array) -> Callable[[], None]:
    labels = jnp.arange(case["batch"]) % case["shape"]["num_classes"]
    optimizer = optax.adamw(case["lr"], weight_decay=case["weight_decay"])

    def loss_of(params) -> jax.Array:
        logits = apply(params, images).astype("float32")
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def update(params, state):
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    update = jax.jit(update, donate_argnums=(0, 1))
    state = optimizer.init(params)

    def train() -> None:
        nonlocal params, state
        params, state, loss = update(params, state)
        loss.block_until_ready()

    return train


_STEPS = {"inference": _inference, "training": _training}
