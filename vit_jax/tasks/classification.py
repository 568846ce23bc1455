"""Classification: the loss of a training batch, and the scores of an evaluated one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax import losses


def make_loss(model) -> Callable:
    """Returns `loss(params, batch, key) -> (mean loss, metrics)` with dropout on.

    batch: image B H W 3, label B, mask B.
    """

    def loss_fn(params, batch: dict, key: jax.Array):
        variables, rngs = {"params": params}, {"dropout": key}
        logits = model.apply(variables, batch["image"], train=True, rngs=rngs)
        values = losses.softmax_cross_entropy(logits, batch["label"])
        correct = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        metrics = {"top1": losses.masked_mean(correct, batch["mask"])}
        return losses.masked_mean(values, batch["mask"]), metrics

    return loss_fn


def make_scorer(model) -> Callable:
    """Returns `score(params, batch) -> per-example arrays`, each B or B k.

    loss; prediction and probability of the best class; top1 and top5, whether the label is
    among the best one and five.
    """

    def score(params, batch: dict) -> dict:
        logits = model.apply({"params": params}, batch["image"])
        labels = batch["label"]
        _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        hits = best == labels[:, None]
        return {
            "loss": losses.softmax_cross_entropy(logits, labels),
            "prediction": best[:, 0],
            "probability": jnp.max(jax.nn.softmax(logits), axis=-1),
            "top1": hits[:, 0],
            "top5": jnp.any(hits, axis=-1),
        }

    return score
