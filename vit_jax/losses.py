"""Losses of single examples, in float32 whatever the logits come in."""

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of integer labels: logits B K, labels B -> B, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the examples whose mask is 1: values B, mask B -> scalar."""
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)
