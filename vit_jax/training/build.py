"""The compiled programs of a run: initial state, train step, scores and features."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding

from vit_jax.config.fields import without_traced
from vit_jax.config.schema import MAX_STEPS, Config, Optimizer, Task
from vit_jax.data.mixup import make_mixer
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import ConfigError
from vit_jax.evaluation.scoring import make_extract, make_score
from vit_jax.models.registry import ViT, make_init
from vit_jax.tasks import registry as task_registry
from vit_jax.training.train_step import (
    TrainState,
    make_abstract_state,
    make_init_state,
    make_train_step,
)


def build_mesh(config: Config) -> Mesh:
    """Returns the mesh of a config; raises ConfigError if devices or batch size do not fit."""
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh))
    accumulate = 1 if config.accumulate == "auto" else config.accumulate
    mesh_lib.check_batch_size(config.batch_size, mesh, accumulate)
    return mesh


def num_steps(config: Config, num_examples: int) -> int:
    """Returns the total number of steps from steps, epochs or examples.

    Raises ConfigError for more than `schema.MAX_STEPS`.
    """
    if config.steps is not None:
        return config.steps
    examples = config.examples or config.epochs * num_examples
    steps = max(int(examples / config.batch_size), 1)
    if steps > MAX_STEPS:
        name = "examples" if config.examples else "epochs"
        raise ConfigError(
            f"config.{name} is {getattr(config, name)}, which is {steps:.3g} steps of batch_size="
            f"{config.batch_size}; expected at most {MAX_STEPS:,}."
        )
    return steps


@dataclasses.dataclass(frozen=True)
class Programs:
    """Compiled programs; runs that differ in learning rate, length or seed share them."""

    batch_sharding: NamedSharding
    abstract_state: TrainState  # Shapes, dtypes and shardings.
    init_state: Callable  # (key, params or None) -> TrainState
    train_step: Callable  # (state, batch, key, hyperparams, teacher_params) -> (state, metrics)
    lower_step: Callable  # (prepared batch, key, hyperparams), shapes or arrays -> Lowered
    score: Callable  # (params, batch) -> per-example arrays, replicated on every host
    extract: Callable  # Frozen features in the same form.


def build_programs(config: Config, model: ViT, mesh: Mesh, teacher: ViT | None = None) -> Programs:
    """Returns the programs of a training run; they are compiled when they are first called."""
    optimizer = without_traced(config.optimizer)
    mix = make_mixer(config.data, model.num_classes)
    return _programs(optimizer, config.task, config.accumulate, model, mesh, teacher, mix)


@functools.lru_cache(maxsize=1)
def _programs(
    optimizer: Optimizer, task: Task, accumulate: int, model: ViT, mesh: Mesh, teacher, mix
) -> Programs:
    batches = mesh_lib.batch_sharding(mesh)
    init = make_init(model)
    objective = task_registry.make_task(task, model)
    task_state = task_registry.task_state_of(objective)
    abstract_state = make_abstract_state(init, optimizer, mesh, task_state)
    step = make_train_step(
        objective.loss,
        optimizer,
        abstract_state,
        batches,
        accumulate=accumulate,
        teacher_targets=task_registry.teacher_targets_of(objective),
    )
    prepare = _make_prepare(mix, teacher, batches)

    return Programs(
        batch_sharding=batches,
        abstract_state=abstract_state,
        init_state=make_init_state(init, optimizer, abstract_state, task_state),
        train_step=_on(
            mesh,
            lambda state, batch, key, hyperparams, teacher_params=None: step(
                state, prepare(batch, key, state.step, teacher_params), key, hyperparams
            ),
        ),
        lower_step=_on(mesh, functools.partial(step.lower, abstract_state)),
        score=_on(mesh, make_score(model, mesh, task)),
        extract=_on(mesh, make_extract(model, mesh)),
    )


def _on(mesh: Mesh, function: Callable) -> Callable:
    """Returns the function, traced with the mesh set."""

    def call(*args):
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def _make_prepare(mix: Callable | None, teacher: ViT | None, batches: NamedSharding) -> Callable:
    """Returns `prepare(batch, key, step, teacher_params) -> batch`, on the devices.

    It mixes images and adds the logits of the teacher for the mixed images.
    """
    if mix is None and teacher is None:
        return lambda batch, *_: batch

    def prepare(batch: dict, key: jax.Array, step: jax.Array, teacher_params) -> dict:
        if mix is not None:  # The key of the step itself is used for dropout.
            batch = mix(batch, jax.random.fold_in(jax.random.fold_in(key, step), 1))
        if teacher is not None:
            batch = batch | {"teacher": teacher.apply({"params": teacher_params}, batch["image"])}
        return batch

    return jax.jit(prepare, in_shardings=(batches, None, None, None), out_shardings=batches)
