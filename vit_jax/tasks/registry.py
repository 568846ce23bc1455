"""Tasks by name: the model, the loss and the scores of a `config.task`."""

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

import jax
import numpy as np

from vit_jax.config import registry
from vit_jax.config.schema import Config, Task
from vit_jax.data.preprocess import TrainRecipe
from vit_jax.models.registry import ViT
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.dino import SelfDistillation
from vit_jax.tasks.mae import MaskedAutoencoder
from vit_jax.tasks.masked_patches import MaskedPatches


class Objective(Protocol):
    """Entry of `TASKS`: a class that is called with a `config.task` section and a model.

    Attributes:
      evaluator: name in `evaluation.evaluators.EVALUATORS`, or `package.module:name`.
      has_classes: the model predicts the classes of the data. If False, checkpoints of a run are
        loaded without a head.

    A task may also have these members, which the functions below look up:

      train_recipe(config, model): static method that returns the recipe of training examples, a
        function (image, generator) -> dict of columns, whose property `columns` has the shape and
        the dtype of each. With V global views, the column `image` is V H W 3. The default is
        `data.preprocess.TrainRecipe`, with the column `image` H W 3.
      init_task_state(): returns a dict of arrays of the task at step 0, such as centres. They are
        a part of the training state, which checkpoints contain, and replicated on the devices.
      teacher_targets(teacher_params, task_state, batch, step, key): returns columns B ..., which
        are added to the batch of the loss, the new task state, and metrics, which are scalars.
        Called once in a step with the whole global batch, also with config.accumulate, and before
        the gradient, which does not pass through it. Teacher parameters are the averaged ones of
        `optimizer.ema`, or else those of the model. JAX traces the method.
      reconstruct(params, batch): returns a `tasks.masked_patches.Reconstruction` of a batch with
        image and number, which figures show.
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
        "dino": SelfDistillation,
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


def make_train_recipe(config: Config, model: ViT) -> Callable:
    """Returns the recipe that turns an image into a training example of the config's task."""
    make = getattr(find_task(config.task), "train_recipe", None)
    return make(config, model) if make else TrainRecipe(config.data, model.image_size)


def train_columns(config: Config, model: ViT) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns the shape and the dtype of the columns that the training recipe makes of an image."""
    make = getattr(find_task(config.task), "train_recipe", None)
    if make:
        return make(config, model).columns
    return {"image": ((*model.image_size, 3), np.dtype(np.float32))}


def num_views(config: Config, model: ViT) -> int:
    """Returns the number of global views of an image in a training batch."""
    shape, _ = train_columns(config, model)["image"]
    return math.prod(shape[:-3])


def task_state_of(objective: Objective) -> Callable[[], dict | None]:
    """Returns the function that creates the state of a task at step 0: None for no state."""
    return getattr(objective, "init_task_state", lambda: None)


def teacher_targets_of(objective: Objective) -> Callable | None:
    """Returns the `teacher_targets` of a task, or None if it has none."""
    return getattr(objective, "teacher_targets", None)


def can_reconstruct(task: type[Objective] | Objective) -> bool:
    """Returns True for a task with `reconstruct`, which predicts the patches of images."""
    return hasattr(task, "reconstruct")
