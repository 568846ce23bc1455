"""Config -> mesh, model, shardings, jitted steps."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding

from vit_jax.config.fields import without_traced
from vit_jax.config.schema import Config, Optimizer, Task
from vit_jax.data.mixup import make_mixer
from vit_jax.distributed import mesh as mesh_lib
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
    """The mesh of a config; raises ConfigError where devices or batch do not fit."""
    mesh = mesh_lib.make_mesh(**dataclasses.asdict(config.mesh))
    mesh_lib.check_batch_size(config.batch_size, mesh, config.accumulate)
    return mesh


def num_steps(config: Config, num_examples: int) -> int:
    """Steps in all, from whichever of steps, epochs and examples is set."""
    if config.steps is not None:
        return config.steps
    examples = config.examples or config.epochs * num_examples
    return max(int(examples / config.batch_size), 1)


@dataclasses.dataclass(frozen=True)
class Programs:
    """What is traced and compiled; runs that differ in learning rate, length or seed share it."""

    batch_sharding: NamedSharding
    abstract_state: TrainState  # Shapes, dtypes and places.
    init_state: Callable  # (key, params or None) -> TrainState
    train_step: Callable  # (state, batch, key, hyperparams, teacher_params) -> (state, metrics)
    score: Callable  # (params, batch) -> per-example arrays, whole on every host
    extract: Callable | None  # The same of frozen features; None where there are none.


def assemble(config: Config, model: ViT, mesh: Mesh, teacher: ViT | None = None) -> Programs:
    """Everything that a training run calls, built but not yet compiled."""
    optimizer = without_traced(config.optimizer)
    mix = make_mixer(config.data, model.num_classes)
    return _programs(optimizer, config.task, config.accumulate, model, mesh, teacher, mix)


@functools.lru_cache(maxsize=1)
def _programs(
    optimizer: Optimizer, task: Task, accumulate: int, model: ViT, mesh: Mesh, teacher, mix
) -> Programs:
    batches = mesh_lib.batch_sharding(mesh)
    init = make_init(model)
    abstract_state = make_abstract_state(init, optimizer, mesh)
    objective = task_registry.make_task(task, model)
    step = make_train_step(
        objective.loss, optimizer, abstract_state, batches, accumulate=accumulate
    )
    prepare = _make_prepare(mix, teacher, batches)
    return Programs(
        batch_sharding=batches,
        abstract_state=abstract_state,
        init_state=make_init_state(init, optimizer, abstract_state),
        train_step=_on(
            mesh,
            lambda state, batch, key, hyperparams, taught=None: step(
                state, prepare(batch, key, state.step, taught), key, hyperparams
            ),
        ),
        score=_on(mesh, make_score(model, mesh, task)),
        extract=_on(mesh, make_extract(model, mesh)) if objective.has_classes else None,
    )


def _on(mesh: Mesh, function: Callable) -> Callable:
    """The function, traced where models see the mesh."""

    def call(*args):
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def _make_prepare(mix: Callable | None, teacher: ViT | None, batches: NamedSharding) -> Callable:
    """Returns `prepare(batch, key, step, taught) -> batch`, on the devices.

    It mixes images, and asks a teacher, whose parameters are `taught`, about the mixed ones.
    """
    if mix is None and teacher is None:
        return lambda batch, *_: batch

    def prepare(batch: dict, key: jax.Array, step: jax.Array, taught) -> dict:
        if mix is not None:  # Folded once more: the step's own key makes the dropout's noise.
            batch = mix(batch, jax.random.fold_in(jax.random.fold_in(key, step), 1))
        if teacher is not None:
            batch = batch | {"teacher": teacher.apply({"params": taught}, batch["image"])}
        return batch

    return jax.jit(prepare, in_shardings=(batches, None, None, None), out_shardings=batches)
