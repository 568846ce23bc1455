"""What is learnt from a batch: the model, the loss and the scores of a `config.task`."""

from collections.abc import Callable, Sequence

from vit_jax.config.schema import Config, Task
from vit_jax.models import registry as model_registry
from vit_jax.models.registry import ViT
from vit_jax.tasks import classification, masked_patches


def build_model(config: Config, num_classes: int) -> ViT:
    """The model that learns a config's task; raises ConfigError for one that cannot."""
    size = config.data.image_size
    if config.task.name == "masked_patches":
        return masked_patches.build_model(config.model, image_size=size, task=config.task)
    return model_registry.build(config.model, num_classes=num_classes, image_size=size)


def make_loss(task: Task, model: ViT) -> Callable:
    """Returns `loss(params, batch, key) -> (mean loss, metrics)`, for training."""
    if task.name == "masked_patches":
        return masked_patches.make_loss(
            model,
            targets=task.targets,
            corrupted=task.corrupted,
            mask_share=task.mask_share,
            random_share=task.random_share,
        )
    return classification.make_loss(
        model,
        loss=task.loss,
        label_smoothing=task.label_smoothing,
        distill=task.distill,
        distill_weight=task.distill_weight,
        temperature=task.temperature,
    )


def make_scorer(task: Task, model: ViT, only: Sequence[int] | None = None) -> Callable:
    """Returns `score(params, batch) -> per-example arrays`, for evaluation.

    Args:
      only: the classes that can be predicted; None for all.
    """
    if task.name == "masked_patches":
        return masked_patches.make_scorer(
            model,
            targets=task.targets,
            corrupted=task.corrupted,
            mask_share=task.mask_share,
            random_share=task.random_share,
        )
    return classification.make_scorer(model, loss=task.loss, only=only)
