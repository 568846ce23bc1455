"""Rules and models of the tasks that use no labels."""

from collections.abc import Callable, Iterator

from vit_jax.config.schema import Config
from vit_jax.errors import ConfigError
from vit_jax.models import registry as model_registry
from vit_jax.models.vit import ViT

Rules = Iterator[tuple[bool, str]]  # Whether a rule holds, and the error message if not.
NO_HEAD = {  # Options of a classification head, which these tasks do not have.
    "pre_logits": (False,),
    "projection": (None,),
    "head_bias": (0.0,),
    "head_std": (0.0,),
    "head_norm": (False,),
}


def rules_without_labels(config: Config) -> Rules:
    """Yields the rules of tasks that use no labels, in the form of `Objective.rules`."""
    for field, value, allowed in (
        ("data.mixup", config.data.mixup, 0.0),
        ("data.cutmix", config.data.cutmix, 0.0),
        ("data.eval_crops", config.data.eval_crops, 1),
        ("task.teacher", config.task.teacher, ""),
    ):
        yield value == allowed, _message(config, field, value, (allowed,))


def build_encoder(config: Config, rules: Callable[[Config, ViT], Rules]) -> ViT:
    """Returns the model of `config.model` without a head.

    Raises ConfigError in one line for a model or an image size that cannot be used.
    """
    size = config.data.image_size
    vit = model_registry.build(config.model, num_classes=0, image_size=size)
    for holds, message in rules(config, vit):
        if not holds:
            raise ConfigError(f"{message}.")
    return vit


def encoder_rules(config: Config, vit, **allowed: tuple) -> Rules:
    """Yields what every encoder of these tasks must satisfy.

    Args:
      vit: any model of the registry.
      **allowed: fields of `config.model` and their values, in addition to `NO_HEAD`.
    """
    # A convolutional stem looks beyond the patch, so the pixels of a masked one would be visible.
    yield (
        isinstance(vit, ViT) and vit.stem is None,
        f"model.name is {config.model.name!r}; task.name={config.task.name!r} needs a model that "
        "embeds patches of the image itself, such as vit_b16",
    )
    for name, choices in (allowed | NO_HEAD).items():
        value = getattr(config.model, name)
        yield value in choices, _message(config, f"model.{name}", value, choices)


def _message(config: Config, field: str, value, choices: tuple) -> str:
    choices = " or ".join(map(repr, choices))
    return f"{field} is {value!r}; it must be {choices} with task.name={config.task.name!r}"
