"""Tasks by name: the model, the loss and the scores of a `config.task`."""

from collections.abc import Iterator
from typing import ClassVar, Protocol

import jax

from vit_jax.config import registry
from vit_jax.config.schema import Config, Task
from vit_jax.models.registry import ViT
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.mae import MaskedAutoencoder
from vit_jax.tasks.masked_patches import MaskedPatches


class Objective(Protocol):
    """Entry of `TASKS`: a class that is called with a `config.task` section and a model.

    Attributes:
      evaluator: name in `evaluation.evaluators.EVALUATORS`, or `package.module:name`.
      has_classes: the model predicts the classes of the data. If False, checkpoints of a run are
        loaded without a head, and config.fewshot has no features to use.
    """

    evaluator: ClassVar[str]
    has_classes: ClassVar[bool]

    def __init__(self, section: Task, model: ViT) -> None: ...

    @staticmethod
    def rules(config: Config) -> Iterator[tuple[bool, str]]:
        """Yields what a config must satisfy: whether it does, and the error message if not."""

    @staticmethod
    def build_model(config: Config, num_classes: int) -> ViT:
        """Returns the model; raises ConfigError in one line if the config cannot have one."""

    def loss(self, params, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        """Returns the mean loss of a training batch, and metrics: all scalars.

        batch: image B H W 3, label B, mask B, which is 0 for rows that do not count, and what
        config.data and config.task add: targets B K and teacher B K. `key` is of dropout and of
        all other noise. JAX traces the method.
        """

    def score(self, params, batch: dict) -> dict[str, jax.Array]:
        """Returns arrays of the examples of a batch, B ... each, as the evaluator expects them.

        batch: image B H W 3, or B c H W 3 with c crops; label B, mask B; number B, the place of
        each example in the split. JAX traces the method. A task with classes also takes `only`,
        the classes that can be predicted.
        """


TASKS = registry.Table(
    None,
    {
        "classification": Classification,
        "masked_patches": MaskedPatches,
        "mae": MaskedAutoencoder,
    },
    attributes=("evaluator", "has_classes", "rules", "build_model", "loss", "score"),
)


def find_task(section: Task) -> type[Objective]:
    """Returns the class that `task.name` names."""
    return registry.find(TASKS, section.name, "config.task.name")


def build_model(config: Config, num_classes: int) -> ViT:
    """Returns the model of a config's task; raises ConfigError if it cannot be built."""
    return find_task(config.task).build_model(config, num_classes)


def make_task(section: Task, model: ViT) -> Objective:
    """Returns the loss and the scores of a `config.task` section for a model."""
    return find_task(section)(section, model)
