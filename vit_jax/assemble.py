"""Config -> mesh, model, shardings, jitted steps."""

import dataclasses
import os
from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from vit_jax import optimizer, sharding
from vit_jax.models import ViT, make_init
from vit_jax.schema import Config
from vit_jax.tasks import classification
from vit_jax.train_step import TrainState, abstract_state, create_state, make_train_step


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache folder: equal ones compile once.

    JAX's own settings go first: JAX_COMPILATION_CACHE_DIR for another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false for none.
    """
    if jax.config.jax_compilation_cache_dir is None:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(caches, "vit_jax", "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def build_mesh(config: Config) -> Mesh:
    """The mesh of a config; raises ConfigError where devices or batch do not fit."""
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    sharding.check_batch(config.batch_size, mesh)
    return mesh


def num_steps(config: Config, num_examples: int) -> int:
    """Steps in all, from whichever of steps, epochs and examples is set."""
    if config.steps is not None:
        return config.steps
    examples = config.examples or config.epochs * num_examples
    return max(int(examples / config.batch_size), 1)


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The moving parts of one run."""

    model: ViT
    mesh: Mesh
    batch_sharding: NamedSharding
    like: TrainState  # Shapes, dtypes and places.
    birth: Callable  # (key, params or None) -> TrainState
    train_step: Callable
    score: Callable


def assemble(config: Config, model: ViT, mesh: Mesh, total_steps: int) -> Assembly:
    """Everything that a training run calls, built but not yet compiled."""
    rates = dataclasses.asdict(config.optimizer)
    schedule = optimizer.make_schedule(
        **{name: rates.pop(name) for name in ("lr", "schedule", "warmup_steps")},
        total_steps=total_steps,
    )
    tx: optax.GradientTransformation = optimizer.make_optimizer(schedule, **rates)
    init, batches = make_init(model), sharding.batch_sharding(mesh)
    like = abstract_state(init, tx, mesh)
    loss = classification.make_loss(model)
    return Assembly(
        model=model,
        mesh=mesh,
        batch_sharding=batches,
        like=like,
        birth=lambda key, params=None: create_state(init, tx, like, key, params),
        train_step=make_train_step(loss, tx, schedule, like, batches),
        score=make_score(model, mesh),
    )


def make_score(model: ViT, mesh: Mesh) -> Callable:
    """The jitted per-example scores, whole on every host."""
    return jax.jit(classification.make_scorer(model), out_shardings=sharding.replicated(mesh))
