"""Losses of classification: one float32 value per example, whatever dtype the logits have.

Labels are class numbers B, or targets B K: the weight of each class in a mixed image.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from vit_jax.config import registry


class LossFunction(Protocol):
    """Loss of each example: logits B K of any float dtype -> B float32.

    Labels are int class numbers B; where images are mixed or labels smoothed, they are float32
    targets B K instead, whose rows sum to 1. JAX traces the function, so it cannot raise an error
    that depends on values. `smooth_labels` turns either form of labels into targets.
    """

    def __call__(self, logits: jax.Array, labels: jax.Array, /) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Activation:
    """Function from logits to probabilities, used by evaluation."""

    # Probability of one class per example: logits B K, labels B -> B.
    probability: Callable[[jax.Array, jax.Array], jax.Array]
    # Logits of the mean probabilities over c crops: c B K -> B K.
    mean_of_crops: Callable[[jax.Array], jax.Array]


def smooth_labels(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Returns targets B K of labels B or targets B K, with `smoothing` spread over all classes."""
    is_numbers = jnp.issubdtype(labels.dtype, jnp.integer)
    targets = jax.nn.one_hot(labels, num_classes) if is_numbers else labels
    return targets * (1 - smoothing) + smoothing / num_classes if smoothing else targets


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of labels or targets in nats: logits B K -> B."""
    logits = logits.astype(jnp.float32)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, labels)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sum over the classes of binary cross-entropies (arXiv:2106.10270): logits B K -> B."""
    targets = smooth_labels(labels, logits.shape[-1])
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).sum(axis=-1)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the classes of binary cross-entropies (arXiv:2204.07118): logits B K -> B.

    Every class with a share in a mixed image has target 1, as published.
    """
    targets = (smooth_labels(labels, logits.shape[-1]) > 0).astype(jnp.float32)
    return sigmoid_cross_entropy(logits, targets) / logits.shape[-1]


def focal_loss(logits: jax.Array, labels: jax.Array, gamma: float = 2.0) -> jax.Array:
    """Softmax focal loss, sum of -t (1 - p)^gamma log p over the classes (arXiv:1708.02002).

    logits B K -> B, in nats, with probabilities p = softmax(logits) and targets t. With gamma 0
    it is the cross-entropy; with gamma from 1 on, well-classified examples have less weight.
    """
    targets = smooth_labels(labels, logits.shape[-1])
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(targets * (-jnp.expm1(log_p)) ** gamma * log_p, axis=-1)


def _softmax_probability(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.exp(-softmax_cross_entropy(logits, labels))


def _softmax_mean_of_crops(logits: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - math.log(len(logits))


def _sigmoid_probability(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0])


def _sigmoid_mean_of_crops(logits: jax.Array) -> jax.Array:
    yes, no = (jax.nn.log_sigmoid(sign * logits) for sign in (1, -1))
    return jax.nn.logsumexp(yes, axis=0) - jax.nn.logsumexp(no, axis=0)


SOFTMAX = Activation(_softmax_probability, _softmax_mean_of_crops)
SIGMOID = Activation(_sigmoid_probability, _sigmoid_mean_of_crops)


@dataclasses.dataclass(frozen=True)
class Loss:
    """Row of `LOSSES`.

    Attributes:
      function: loss of each example.
      activation: `SOFTMAX`, or `SIGMOID` where the loss treats each class on its own.
      supports_smoothing: False if `task.label_smoothing` must be 0.
    """

    function: LossFunction
    activation: Activation = SOFTMAX
    supports_smoothing: bool = True


LOSSES = registry.Table(
    Loss,
    {
        "softmax": Loss(softmax_cross_entropy),
        "sigmoid": Loss(sigmoid_cross_entropy, SIGMOID),
        "binary": Loss(binary_cross_entropy, SIGMOID, supports_smoothing=False),
        "focal": Loss(focal_loss),
    },
)


def find_loss(name: str) -> Loss:
    """Returns the loss that `task.loss` names.

    A `package.module:name` is a Loss, or a LossFunction, whose probabilities are then a softmax.
    """
    return registry.find(LOSSES, name, "config.task.loss")


class Distillation(Protocol):
    """Loss of each example beside a teacher: logits B K of the student and the teacher -> B.

    `temperature` is `task.temperature`. JAX traces the function.
    """

    def __call__(
        self, logits: jax.Array, teacher_logits: jax.Array, temperature: float, /
    ) -> jax.Array: ...


def soft_distillation(
    logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
    """T^2 KL(teacher, student) of softmax(logits / T): logits B K -> B (arXiv:1503.02531)."""
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    teacher = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def hard_distillation(
    logits: jax.Array, teacher_logits: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """Cross-entropy of the teacher's best class (arXiv:2012.12877): logits B K -> B.

    The temperature has no effect on the best class.
    """
    return softmax_cross_entropy(logits, jnp.argmax(teacher_logits, axis=-1))


DISTILLATIONS: dict[str, Distillation] = {"soft": soft_distillation, "hard": hard_distillation}


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the examples whose mask is 1: values B, mask B -> scalar."""
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)
