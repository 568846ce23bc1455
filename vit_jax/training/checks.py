"""Checks of a stage against its model, length and data, before a workdir exists."""

import pathlib

import jax
import jax.numpy as jnp

from vit_jax.config import registry
from vit_jax.config.schema import Config
from vit_jax.data.image_folder import FolderSource
from vit_jax.data.overview import inner_sources
from vit_jax.data.sources import Source
from vit_jax.errors import ConfigError, VitJaxError, one_line
from vit_jax.models.registry import make_init, param_shapes
from vit_jax.tasks import registry as task_registry
from vit_jax.training import memory, schedules
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.param_groups import check_groups

EXAMPLES_TRACED = 4  # Batch of the trace of user-defined objects.


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
    if optimizer.freeze or optimizer.lr_factors or optimizer.decay_factors:
        check_groups(optimizer, param_shapes(model))
    names = [f"{place}={name!r}" for place, name in registry.user_names(config, "config")]
    if not names:
        return
    try:
        _trace(config, model, total_steps)
    except VitJaxError:
        raise
    except Exception as error:  # User-defined objects can raise anything.
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"{', '.join(names)} cannot be used for training: {reason}") from error


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
    if config.task.teacher:
        logits = (EXAMPLES_TRACED, model.num_classes)
        batch["teacher"] = jax.ShapeDtypeStruct(logits, jnp.float32)
    objective = task_registry.make_task(config.task, model)
    loss, _ = jax.eval_shape(objective.loss, params, batch, jax.random.key(0))
    if loss.shape:
        raise ConfigError(
            f"config.task.name={config.task.name!r} has a loss of shape {loss.shape}; expected "
            "one number."
        )
    tx = make_optimizer(config.optimizer, config.optimizer.lr)
    jax.eval_shape(tx.init, params)


def check_outside_data(folder: pathlib.Path, config: Config, train_source: Source) -> None:
    """Raises ConfigError for a workdir inside a folder of classes: it would become a class."""
    if config.data.source != "folder":
        return
    own = (folder.resolve(), *folder.resolve().parents)
    for source in inner_sources(train_source):
        if isinstance(source, FolderSource) and pathlib.Path(source.root).resolve() in own:
            raise ConfigError(
                f"workdir {folder} is inside {source.root}, whose folders are classes; choose a "
                "folder outside the data."
            )
