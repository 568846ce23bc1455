"""Classification: the loss of a training batch, and the scores of an evaluated one."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vit_jax.config.schema import Task
from vit_jax.tasks import losses

LOSSES = {
    "softmax": losses.softmax_cross_entropy,
    "sigmoid": losses.sigmoid_cross_entropy,
    "binary": losses.binary_cross_entropy,
}


def make_loss(
    model,
    *,
    loss: str = Task.loss,
    label_smoothing: float = Task.label_smoothing,
    distill: str = Task.distill,
    distill_weight: float = Task.distill_weight,
    temperature: float = Task.temperature,
) -> Callable:
    """Returns `loss(params, batch, key) -> (mean loss, metrics)` with dropout on.

    batch: image B H W 3, label B, mask B; targets B K where images were mixed, and teacher B K,
    the logits that a teacher gave, of which `distill_weight` of the loss is made.
    """

    def distillation(logits: jax.Array, teacher: jax.Array) -> jax.Array:
        if distill == "hard":
            return losses.hard_distillation(logits, teacher)
        return losses.soft_distillation(logits, teacher, temperature)

    def loss_fn(params, batch: dict, key: jax.Array):
        variables, rngs = {"params": params}, {"dropout": key}
        logits = model.apply(variables, batch["image"], train=True, rngs=rngs)
        targets = batch.get("targets", batch["label"])
        if label_smoothing:
            targets = losses.targets_of(targets, logits.shape[-1], label_smoothing)
        values = LOSSES[loss](logits, targets)
        if "teacher" in batch:
            taught = distillation(logits, batch["teacher"])
            values = (1 - distill_weight) * values + distill_weight * taught
        correct = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        metrics = {"top1": losses.masked_mean(correct, batch["mask"])}
        return losses.masked_mean(values, batch["mask"]), metrics

    return loss_fn


def make_scorer(model, *, loss: str = Task.loss, only: Sequence[int] | None = None) -> Callable:
    """Returns `score(params, batch) -> per-example arrays`, each B or B k.

    loss, without smoothing; the five `best` classes; probability of the first of them, by
    softmax, or by sigmoid where that is the loss. Of several crops of an image, B c H W 3,
    probabilities are averaged.

    Args:
      only: the classes that can be predicted, where those of the data are known to be few.
    """

    def score(params, batch: dict) -> dict:
        images, labels = batch["image"], batch["label"]
        if images.ndim == 5:  # One crop of all images after the other: memory is that of one.
            crops = jax.lax.map(lambda x: model.apply({"params": params}, x), images.swapaxes(0, 1))
            logits = _mean_of_crops(crops, loss)
        else:
            logits = model.apply({"params": params}, images)
        if only is not None:
            is_possible = jnp.zeros(logits.shape[-1], bool).at[jnp.array(only)].set(True)
            logits = jnp.where(is_possible[None], logits, jnp.finfo(logits.dtype).min)
        _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        return {
            "loss": LOSSES[loss](logits, labels),
            "best": best,
            "probability": PROBABILITIES[loss](logits, best[:, 0]),
        }

    return score


def _mean_of_crops(logits: jax.Array, loss: str) -> jax.Array:  # c B K -> B K
    """Logits of the mean probabilities."""
    if loss == "softmax":
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - math.log(len(logits))
    yes, no = (jax.nn.log_sigmoid(sign * logits) for sign in (1, -1))
    return jax.nn.logsumexp(yes, axis=0) - jax.nn.logsumexp(no, axis=0)


def _of_softmax(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.exp(-losses.softmax_cross_entropy(logits, labels))


def _of_sigmoid(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0])


PROBABILITIES = {"softmax": _of_softmax, "sigmoid": _of_sigmoid, "binary": _of_sigmoid}
