"""Losses of single examples, in float32 whatever the logits come in.

Labels are class numbers B, or targets B K: the share of every class, as mixing makes them.
"""

import jax
import jax.numpy as jnp
import optax


def targets_of(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Labels B, or targets B K, as targets B K of which `smoothing` is spread over all classes."""
    is_numbers = jnp.issubdtype(labels.dtype, jnp.integer)
    targets = jax.nn.one_hot(labels, num_classes) if is_numbers else labels
    return targets * (1 - smoothing) + smoothing / num_classes if smoothing else targets


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of labels or targets: logits B K -> B, in nats."""
    logits = logits.astype(jnp.float32)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, labels)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """A yes or no for every class (arXiv:2106.10270), their losses added: logits B K -> B."""
    targets = targets_of(labels, logits.shape[-1])
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).sum(axis=-1)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """As `sigmoid_cross_entropy`, every class of a mixed image counted whole (arXiv:2204.07118).

    The mean over the classes, as published.
    """
    targets = (targets_of(labels, logits.shape[-1]) > 0).astype(jnp.float32)
    return sigmoid_cross_entropy(logits, targets) / logits.shape[-1]


def soft_distillation(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """T^2 KL(teacher, student) of softmax(logits / T): logits B K -> B (arXiv:1503.02531)."""
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    wanted = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    return temperature**2 * jnp.sum(jnp.exp(wanted) * (wanted - student), axis=-1)


def hard_distillation(logits: jax.Array, teacher: jax.Array) -> jax.Array:
    """Cross-entropy of the teacher's best class (arXiv:2012.12877): logits B K -> B."""
    return softmax_cross_entropy(logits, jnp.argmax(teacher, axis=-1))


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the examples whose mask is 1: values B, mask B -> scalar."""
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)
