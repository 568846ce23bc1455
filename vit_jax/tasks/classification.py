"""Classification: the loss of a training batch and the scores of an evaluated batch."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from vit_jax.config import registry
from vit_jax.config.schema import Config, Task
from vit_jax.models import registry as model_registry
from vit_jax.models.registry import ViT
from vit_jax.tasks import losses


@dataclasses.dataclass(frozen=True)
class Classification:
    """Classification of images (an `Objective`)."""

    section: Task
    model: ViT
    evaluator: ClassVar[str] = "classification"
    has_classes: ClassVar[bool] = True

    @staticmethod
    def rules(config: Config) -> Iterator[tuple[bool, str]]:
        task = config.task
        loss = registry.chosen(task, "loss")
        yield (
            not task.label_smoothing or loss is None or loss.supports_smoothing,
            f"task.label_smoothing is {task.label_smoothing}; "
            f"it must be 0 with task.loss={task.loss!r}",
        )

    @staticmethod
    def build_model(config: Config, num_classes: int) -> ViT:
        size = config.data.image_size
        return model_registry.build(config.model, num_classes=num_classes, image_size=size)

    def loss(self, params, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        """Returns the mean loss and the metric top1 of a batch, with dropout.

        A model with a distillation token learns from the teacher by the head of that token, and
        from labels by that of the class token, whose predictions `top1` counts.

        batch: image B H W 3, label B, mask B; targets B K if images are mixed; teacher B K, the
        logits of a teacher, if there is one.
        """
        task = self.section
        variables, rngs = {"params": params}, {"dropout": key}
        apply = functools.partial(
            self.model.apply, variables, batch["image"], train=True, rngs=rngs
        )
        if "teacher" in batch and self.model.config.distill_token:
            logits, student = apply(method="both_heads")
        else:
            logits = student = apply()
        targets = batch.get("targets", batch["label"])
        if task.label_smoothing:
            targets = losses.smooth_labels(targets, logits.shape[-1], task.label_smoothing)
        values = losses.find_loss(task.loss).function(logits, targets)
        if "teacher" in batch:
            distillation = registry.find(losses.DISTILLATIONS, task.distill, "config.task.distill")
            distilled = distillation(student, batch["teacher"], task.temperature)
            values = (1 - task.distill_weight) * values + task.distill_weight * distilled
        correct = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        metrics = {"top1": losses.masked_mean(correct, batch["mask"])}
        return losses.masked_mean(values, batch["mask"]), metrics

    def score(self, params, batch: dict, only: Sequence[int] | None = None) -> dict:
        """Returns loss B, best B k and probability B of a batch, without dropout.

        The loss has no label smoothing and no teacher. `best` are the five most probable classes,
        and `probability` is that of the first. Of several crops, image B c H W 3, probabilities
        are averaged. The probability is NaN if any logit is not finite.

        Args:
          only: the classes that can be predicted; None for all.
        """
        images, labels = batch["image"], batch["label"]
        loss = losses.find_loss(self.section.loss)
        if images.ndim == 5:  # All images of one crop at a time, to save memory.
            crops = jax.lax.map(
                lambda x: self.model.apply({"params": params}, x), images.swapaxes(0, 1)
            )
            is_finite = jnp.isfinite(crops).all((0, 2))
            logits = loss.activation.mean_of_crops(crops)
        else:
            logits = self.model.apply({"params": params}, images)
            is_finite = jnp.isfinite(logits).all(1)
        if only is not None:
            is_possible = jnp.zeros(logits.shape[-1], bool).at[jnp.array(only)].set(True)
            logits = jnp.where(is_possible[None], logits, jnp.finfo(logits.dtype).min)
        _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        probability = loss.activation.probability(logits, best[:, 0])
        return {
            "loss": loss.function(logits, labels),
            "best": best,
            "probability": jnp.where(is_finite, probability, jnp.nan),
        }
