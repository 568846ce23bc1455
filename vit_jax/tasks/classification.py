"""Classification: the loss of a training batch, and the scores of an evaluated one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax import losses
from vit_jax.schema import Task

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


def make_scorer(model, *, loss: str = Task.loss) -> Callable:
    """Returns `score(params, batch) -> per-example arrays`, each B or B k.

    loss, without smoothing; prediction and probability of the best class; top1 and top5,
    whether the label is among the best one and five.
    """

    def score(params, batch: dict) -> dict:
        logits = model.apply({"params": params}, batch["image"])
        labels = batch["label"]
        _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        hits = best == labels[:, None]
        return {
            "loss": LOSSES[loss](logits, labels),
            "prediction": best[:, 0],
            "probability": jnp.max(jax.nn.softmax(logits), axis=-1),
            "top1": hits[:, 0],
            "top5": jnp.any(hits, axis=-1),
        }

    return score
