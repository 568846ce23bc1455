"""Checks of a stage against its model, length and data, before a workdir exists."""

import contextlib
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from vit_jax.config import registry
from vit_jax.config.schema import Config
from vit_jax.data.image_folder import FolderSource
from vit_jax.data.overview import inner_sources
from vit_jax.data.sources import Source
from vit_jax.data.unlabeled import UnlabeledSource
from vit_jax.errors import ConfigError, VitJaxError, form, raised
from vit_jax.models import trees
from vit_jax.models.registry import make_init, param_shapes
from vit_jax.tasks import losses
from vit_jax.tasks import registry as task_registry
from vit_jax.training import memory, schedules
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.param_groups import check_groups
from vit_jax.weights.metadata import WeightsMetadata

EXAMPLES_TRACED = 4  # Batch of the trace of user-defined objects.
LARGE_SIDE = 4  # Images with a side more than this many times that of the starting weights.


def check_stage(config: Config, model, total_steps: int) -> None:
    """Raises ConfigError for a stage that cannot be trained, whatever its data."""
    for field in ("warmup_steps", "cooldown_steps"):
        if getattr(config.optimizer, field) > total_steps:
            raise ConfigError(
                f"config.optimizer.{field} is {getattr(config.optimizer, field)}; "
                f"it must be at most the {total_steps} steps of the run. Change both, or give the "
                "length as an argument of the config file, if it has one (FILE:steps=N)."
            )
    optimizer = config.optimizer
    for pattern, steps in optimizer.freeze_steps:
        if steps > total_steps:
            raise ConfigError(
                f"config.optimizer.freeze_steps has {steps} steps for {pattern!r}; it must be at "
                f"most the {total_steps} steps of the run. To freeze parameters in all steps, use "
                "optimizer.lr_factors with factor 0."
            )
    by_name = (optimizer.lr_factors, optimizer.decay_factors, optimizer.freeze_steps)
    if optimizer.freeze or any(by_name):
        check_groups(optimizer, param_shapes(model))
    if any(registry.user_names(config, "config")):
        with errors_of_user_objects(config):
            _trace(config, model, total_steps)


@contextlib.contextmanager
def errors_of_user_objects(config: Config) -> Iterator[None]:
    """Raises ConfigError, which names the user-defined objects of a config, for an error of one."""
    names = [f"{place}={name!r}" for place, name in registry.user_names(config, "config")]
    try:
        yield
    except VitJaxError:
        raise
    except Exception as error:  # User-defined objects can raise anything.
        if not names:
            raise
        places = ", ".join(names)
        raise ConfigError(f"{places} cannot be used for training: {raised(error)}") from error


def _trace(config: Config, model, total_steps: int) -> None:
    """Traces the schedule, the loss and the optimizer of a config without computing anything."""
    schedule = schedules.make_schedule(config.optimizer, total_steps)
    rate = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
    if getattr(rate, "shape", None) != ():
        raise ConfigError(
            f"config.optimizer.schedule={config.optimizer.schedule!r} returns {rate}; expected one "
            "number for a step."
        )
    params = jax.eval_shape(make_init(model), jax.random.key(0))
    batch = memory.abstract_batch(config, model, EXAMPLES_TRACED)
    objective = task_registry.make_task(config.task, model)
    if task_registry.teacher_targets_of(objective):
        batch |= _trace_targets(config, objective, params, batch)
    if config.task.teacher:
        logits = (EXAMPLES_TRACED, model.num_classes)
        batch["teacher"] = jax.ShapeDtypeStruct(logits, jnp.float32)
    if task_registry.find_task(config.task).has_classes:
        _check_losses(config, model)
    loss, _ = jax.eval_shape(objective.loss, params, batch, jax.random.key(0))
    if loss.shape:
        raise ConfigError(
            f"config.task.name={config.task.name!r} has a loss of shape {loss.shape}; expected "
            "one number."
        )
    if registry.is_user_defined(config.task.name):
        _check_scores(config, objective, params, model)
    tx = make_optimizer(config.optimizer, config.optimizer.lr)
    jax.eval_shape(tx.init, params)


def _trace_targets(config: Config, objective, params, batch: dict) -> dict:
    """Returns the traced columns that the teacher of a task adds to a batch."""
    place = f"config.task.name={config.task.name!r}"
    state = jax.eval_shape(task_registry.task_state_of(objective))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    columns, new_state, _ = jax.eval_shape(
        objective.teacher_targets, params, state, batch, step, jax.random.key(0)
    )
    forms = [
        {name: form(leaf) for name, leaf in trees.flatten(tree).items()}
        for tree in (new_state, state)
    ]
    if forms[0] != forms[1]:
        raise ConfigError(
            f"{place}: teacher_targets returns the task state {forms[0]}; expected that of "
            f"init_task_state, {forms[1]}."
        )
    for name, column in columns.items():
        if column.shape[:1] != (EXAMPLES_TRACED,):
            raise ConfigError(
                f"{place}: target {name!r} is {form(column)} for {EXAMPLES_TRACED} examples; "
                "expected one row per example."
            )
    return columns


def check_outside_data(folder: pathlib.Path, config: Config, train_source: Source) -> None:
    """Raises ConfigError for a workdir inside a folder whose images are the data."""
    if config.data.source not in ("folder", "images"):
        return
    own = (folder.resolve(), *folder.resolve().parents)
    for source in inner_sources(train_source):
        is_unlabeled = isinstance(source, UnlabeledSource) and source.is_folder
        if not (isinstance(source, FolderSource) or is_unlabeled):
            continue
        if pathlib.Path(source.root).resolve() in own:
            contents = "images are the data" if is_unlabeled else "folders are classes"
            raise ConfigError(
                f"workdir {folder} is inside {source.root}, whose {contents}; choose a "
                "folder outside the data."
            )


def unusual_sizes(config: Config, num_examples: int, start: WeightsMetadata) -> list[str]:
    """Returns notes on a batch or images much larger than the training data or starting weights.

    Args:
      num_examples: size of the training set.
      start: metadata of the starting weights.
    """
    notes, batch_size, (height, width) = [], config.batch_size, config.data.size
    if batch_size > num_examples:
        smaller = 1 << (num_examples.bit_length() - 1)
        notes.append(
            f"batch_size={batch_size} is larger than the training set, {num_examples} images: each "
            f"step has more than an epoch; --config.batch_size={smaller} is faster"
        )
    if start.image_size and max(height, width) > LARGE_SIDE * max(start.image_size):
        side = max(start.image_size)
        notes.append(
            f"images of {height}x{width} are more than {LARGE_SIDE} times those of the starting "
            f"weights, {start.image_size[0]}x{start.image_size[1]}: size={side} as an argument of "
            f"the config file, or --config.data.image_size={side}, is faster"
        )
    return notes


def _check_scores(config: Config, objective, params, model) -> None:
    """Traces the scores of a user-defined task, which evaluation computes."""
    B, numbers = EXAMPLES_TRACED, jax.ShapeDtypeStruct((EXAMPLES_TRACED,), jnp.int32)
    batch = {
        "image": jax.ShapeDtypeStruct((B, *model.image_size, 3), jnp.float32),
        "label": numbers,
        "mask": jax.ShapeDtypeStruct((B,), jnp.float32),
        "number": numbers,
    }
    for name, score in jax.eval_shape(objective.score, params, batch).items():
        if score.shape[:1] != (EXAMPLES_TRACED,):
            raise ConfigError(
                f"config.task.name={config.task.name!r}: score {name!r} is {form(score)} for "
                f"{EXAMPLES_TRACED} examples; expected one row per example."
            )


def _check_losses(config: Config, model) -> None:
    """Traces user-defined losses alone: training and evaluation need a value for each example."""
    task, data, K = config.task, config.data, model.num_classes
    B = EXAMPLES_TRACED + (K == EXAMPLES_TRACED)  # A loss per class has another shape.
    logits = jax.ShapeDtypeStruct((B, K), jnp.float32)
    numbers = jax.ShapeDtypeStruct((B,), jnp.int32)
    mixing = {"data.mixup": data.mixup, "data.cutmix": data.cutmix}
    mixing |= {"task.label_smoothing": task.label_smoothing}
    causes = [name for name, value in mixing.items() if value]
    reason = f"; labels are (B, K) because of {' and '.join(causes)}"
    if registry.is_user_defined(task.loss):
        function = losses.find_loss(task.loss).function
        place = f"config.task.loss={task.loss!r}"
        _check_loss(place, function, logits, numbers)
        if causes:
            _check_loss(place, function, logits, logits, reason)
    if task.teacher and registry.is_user_defined(task.distill):
        function = registry.find(losses.DISTILLATIONS, task.distill, "config.task.distill")

        def distill(logits, teacher):
            return function(logits, teacher, task.temperature)

        _check_loss(f"config.task.distill={task.distill!r}", distill, logits, logits)


def _check_loss(place: str, function, logits, labels, reason: str = "") -> None:
    """Raises ConfigError unless a loss maps logits B K and its second argument to floats B."""
    try:
        found = jax.eval_shape(function, logits, labels)
    except Exception as error:  # A loss of the user can raise anything.
        problem = raised(error).rstrip(".") + reason
        raise ConfigError(f"{place} cannot be used for training: {problem}.") from error
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if shape != labels.shape[:1] or not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(
            f"{place} returned {form(found)} for logits {logits.shape} and labels {labels.shape}; "
            f"it must return one float per example, float32 {labels.shape[:1]}{reason}."
        )
