"""Config -> mesh, model, shardings, jitted steps."""

import dataclasses
import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from vit_jax.config.schema import Config, Data, Optimizer, Task
from vit_jax.data import augment
from vit_jax.data import mixup as mixup_lib
from vit_jax.data.preprocess import TrainRecipe
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.evaluation.scoring import make_extract, make_score
from vit_jax.models.registry import ViT, make_init
from vit_jax.tasks import registry as task_registry
from vit_jax.training import optimizer
from vit_jax.training.train_step import (
    TrainState,
    make_abstract_state,
    make_init_state,
    make_train_step,
)

# Fields of config.optimizer that are arguments of a step, not part of its program.
RATES = (
    "lr",
    "schedule",
    "warmup_steps",
    "end_lr",
    "timescale",
    "cooldown_steps",
    "stair_at",
    "sam_rho",
    "sam_rho_min",
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


def train_recipe(data: Data, size: tuple[int, int]) -> TrainRecipe:
    """How a config's images become training examples."""
    return TrainRecipe(
        size,
        data.crop,
        data.crop_area,
        data.flip,
        data.resample,
        decoder=data.decoder,
        fast_crop=data.fast_crop,
        augment=augment.make_augment(
            randaug=data.randaug,
            layers=data.randaug_layers,
            magnitude=data.randaug_magnitude,
            std=data.randaug_std,
            prob=data.randaug_prob,
            three_augment=data.three_augment,
            color_jitter=data.color_jitter,
        ),
        random_erasing=data.random_erasing,
    )


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
    rule = dataclasses.replace(config.optimizer, **dict.fromkeys(RATES))
    data = {"mixup": config.data.mixup, "cutmix": config.data.cutmix}
    return _programs(rule, config.task, config.accumulate, model, mesh, teacher, **data)


@functools.lru_cache(maxsize=1)
def _programs(
    rule: Optimizer, task: Task, accumulate: int, model: ViT, mesh: Mesh, teacher, mixup, cutmix
) -> Programs:
    batches = mesh_lib.batch_sharding(mesh)
    make_tx = functools.partial(optimizer.make_optimizer, **_fields(rule, optimizer.make_optimizer))
    init, tx = make_init(model), make_tx(optax.constant_schedule(0.0))
    abstract_state = make_abstract_state(init, tx, mesh, has_ema=rule.ema is not None)
    step = make_train_step(
        task_registry.make_loss(task, model),
        make_tx,
        abstract_state,
        batches,
        accumulate=accumulate,
        ema=rule.ema,
        gsam_alpha=rule.gsam_alpha,
    )
    mix = mixup_lib.make_mixer(mixup, cutmix, model.num_classes)
    prepare = _make_prepare(mix, teacher, batches)
    return Programs(
        batch_sharding=batches,
        abstract_state=abstract_state,
        init_state=make_init_state(init, tx, abstract_state),
        train_step=_on(
            mesh,
            lambda state, batch, key, hyperparams, taught=None: step(
                state, prepare(batch, key, state.step, taught), key, hyperparams
            ),
        ),
        score=_on(mesh, make_score(model, mesh, task)),
        extract=_on(mesh, make_extract(model, mesh)) if task.name == "classification" else None,
    )


def make_hyperparams(rule: Optimizer, total_steps: int) -> Callable[[int], dict[str, np.float32]]:
    """Returns `hyperparams(step)`: `lr`, and SAM's radius `rho` where there is one.

    The radius falls with the learning rate from `sam_rho` to `sam_rho_min`
    (arXiv:2203.08065, section 4.2).
    """
    schedule = optimizer.make_schedule(
        rule.lr, total_steps=total_steps, **_fields(rule, optimizer.make_schedule)
    )
    steps = jnp.arange(total_steps)
    tables = {"lr": np.asarray(jax.jit(jax.vmap(schedule))(steps), np.float32)}
    if rule.sam_rho is not None:
        smallest = rule.sam_rho if rule.sam_rho_min is None else rule.sam_rho_min
        span, share = rule.lr - rule.end_lr, np.ones_like(tables["lr"])
        if span:
            share = np.maximum((tables["lr"] - rule.end_lr) / span, 0.0)
        tables["rho"] = np.float32(smallest + (rule.sam_rho - smallest) * share)
    return lambda step: {name: table[step] for name, table in tables.items()}


def _on(mesh: Mesh, function: Callable) -> Callable:
    """The function, traced where models see the mesh."""

    def call(*args):
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def _fields(section, function: Callable) -> dict:
    """Those fields of a section that a function takes as keywords."""
    names = inspect.signature(function).parameters
    return {
        each.name: getattr(section, each.name)
        for each in dataclasses.fields(section)
        if each.name in names and names[each.name].kind is inspect.Parameter.KEYWORD_ONLY
    }


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
