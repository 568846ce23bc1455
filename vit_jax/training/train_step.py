"""`TrainState`, its sharded initial value, and the jitted training step."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax.config.schema import Optimizer
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models import trees
from vit_jax.training.optimizer import gradient_params, make_optimizer

TEACHER = 2**32 - 1  # Folded into the key of the teacher; the numbers of micro-batches are below.


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint contains, so that a resumed run is the same run."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict | None  # Averaged parameters (Table 2), or None.
    task: dict | None = None  # State of the task, such as centres, or None.

    @property
    def eval_params(self) -> dict:
        """Parameters to evaluate and export: the averaged ones if there are any."""
        return self.params if self.ema is None else self.ema


def no_task_state() -> None:
    """The state of a task that has none."""


def make_abstract_state(
    init: Callable, config: Optimizer, mesh, init_task_state: Callable = no_task_state
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state; allocates no memory.

    Args:
      init: key -> params.
      init_task_state: () -> state of the task at step 0.
    """
    shapes = jax.eval_shape(
        lambda: _initial_state(init(jax.random.key(0)), config, init_task_state)
    )
    shardings = mesh_lib.tree_shardings(shapes, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def make_init_state(
    init: Callable,
    config: Optimizer,
    abstract_state: TrainState,
    init_task_state: Callable = no_task_state,
) -> Callable:
    """Returns `init_state(key, params=None) -> TrainState`: the state at step 0, sharded.

    Given `params` replace those of `init`, and their memory is reused. Those that are not given
    have their initial values.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    # This program runs once: on a CPU, its second level of optimisation saves more than it costs.
    is_on_cpu = jax.default_backend() == "cpu"
    from_key = jax.jit(
        lambda key: _initial_state(init(key), config, init_task_state),
        out_shardings=shardings,
        compiler_options={"xla_backend_optimization_level": 2} if is_on_cpu else None,
    )
    from_params = jax.jit(
        lambda params: _initial_state(params, config, init_task_state),
        out_shardings=shardings,
        donate_argnums=0,
    )

    def init_state(key: jax.Array, params=None) -> TrainState:
        if params is None:
            return from_key(key)
        wanted = trees.flatten(shardings.params)
        given = trees.flatten(params)
        if given.keys() != wanted.keys():
            drawn = trees.flatten(from_key(key).params)
            given = {name: given.get(name, drawn[name]) for name in wanted}
        params = trees.unflatten(given)
        return from_params(jax.tree.map(jax.device_put, params, shardings.params))

    return init_state


def _initial_state(params, config: Optimizer, init_task_state: Callable) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(config, 0.0).init(params),
        ema=None if config.ema is None else jax.tree.map(jnp.copy, params),
        task=init_task_state(),
    )


def make_gradient(loss_fn: Callable, accumulate: int = 1, batch_sharding=None) -> Callable:
    """Returns `gradient(params, batch, key) -> ((loss, metrics), grads)`.

    The batch is split into `accumulate` micro-batches that run one after the other; all results
    are means over them: with equal masks those of the whole batch, except for dropout noise. Row r
    belongs to micro-batch r % accumulate, so that every row stays on its device.
    """
    gradient_of_batch = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        return gradient_of_batch

    def split(rows: jax.Array) -> jax.Array:  # B ... -> A B/A ...
        rows = rows.reshape(-1, accumulate, *rows.shape[1:])
        if batch_sharding is not None:
            rows = jax.lax.with_sharding_constraint(rows, batch_sharding)
        return rows.swapaxes(0, 1)

    def gradient(params, batch: dict, key: jax.Array):
        def add(total, index_and_batch):
            i, micro_batch = index_and_batch
            result = gradient_of_batch(params, micro_batch, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, result), None

        micro_batches = jax.tree.map(split, batch)
        first = jax.tree.map(lambda rows: rows[0], micro_batches)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(gradient_of_batch, params, first, key),
        )
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro_batches))
        return jax.tree.map(lambda leaf: leaf / accumulate, total)

    return gradient


def make_sharp_gradient(gradient: Callable, radius: jax.Array, alpha: float) -> Callable:
    """Returns the gradient of SAM (arXiv:2010.01412), or of GSAM for alpha > 0.

    SAM takes the gradient at the worst point within `radius` of the parameters. GSAM subtracts
    alpha times the component of the gradient at the parameters that is orthogonal to it
    (arXiv:2203.08065, algorithm 1). Loss and metrics are those at the parameters.
    """

    def sharp_gradient(params, batch: dict, key: jax.Array):
        loss_and_metrics, grads = gradient(params, batch, key)
        scale = radius / (optax.tree.norm(grads) + 1e-12)
        worst = jax.tree.map(lambda p, g: p + scale * g, params, grads)
        _, sharp = gradient(worst, batch, key)
        if alpha:
            parallel = optax.tree.vdot(grads, sharp) / (optax.tree.vdot(sharp, sharp) + 1e-12)
            sharp = jax.tree.map(lambda g, s: s - alpha * (g - parallel * s), grads, sharp)
        return loss_and_metrics, sharp

    return sharp_gradient


def make_train_step(
    loss_fn: Callable,
    config: Optimizer,
    abstract_state: TrainState,
    batch_sharding,
    *,
    accumulate: int = 1,
    teacher_targets: Callable | None = None,
) -> Callable:
    """Returns `step(state, batch, key, hyperparams) -> (state, metrics)`, jitted; state is donated.

    Args:
      loss_fn: (params, batch, key) -> (loss, metrics), all scalars.
      config: fields with `is_traced` are not used; the step takes their values as `hyperparams`.
      accumulate: micro-batches per step.
      teacher_targets: as in `tasks.registry.Objective`; None for a task without a teacher.

    Arguments of `step`:
      key: the same at every step; dropout gets `fold_in(key, step)`, so that a resumed run draws
        the same noise.
      hyperparams: scalars of `schedules.make_hyperparams`. They are arguments, so runs that differ
        in learning rate or length share a program.

    A step with a non-finite loss or gradient leaves parameters, optimizer state and task state
    unchanged, so that no checkpoint contains such values.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    gradient = make_gradient(loss_fn, accumulate, batch_sharding)
    targets = _make_targets(teacher_targets, batch_sharding)

    def train_step(state: TrainState, batch: dict, key: jax.Array, hyperparams: dict):
        key = jax.random.fold_in(key, state.step)
        columns, task, teacher_metrics = targets(state, batch, key)
        step_gradient = gradient
        if "rho" in hyperparams:
            step_gradient = make_sharp_gradient(gradient, hyperparams["rho"], config.gsam_alpha)
        points = gradient_params(state.opt_state, state.params)
        (loss, metrics), grads = step_gradient(points, batch | columns, key)
        grad_norm = optax.tree.norm(grads)
        tx = make_optimizer(config, hyperparams["lr"], hyperparams.get("weight_decay"))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema and _average(state.ema, params, config, hyperparams)
        # The norm squares the gradients, so a finite norm cannot overflow a second moment.
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = TrainState(state.step, params, opt_state, ema, task)
        new = _skip_unless(is_finite, new, state)
        scalars = {
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": hyperparams["lr"],
            "skipped": 1.0 - is_finite,
        }
        return new.replace(step=state.step + 1), teacher_metrics | metrics | scalars

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding, None, None),
        out_shardings=(shardings, None),
    )


def _make_targets(teacher_targets: Callable | None, batch_sharding) -> Callable:
    """Returns `targets(state, batch, key) -> (columns, new state of the task, metrics)`."""
    if teacher_targets is None:
        return lambda state, batch, key: ({}, state.task, {})

    def targets(state: TrainState, batch: dict, key: jax.Array) -> tuple[dict, dict, dict]:
        teacher_key = jax.random.fold_in(key, TEACHER)
        columns, task, metrics = teacher_targets(
            state.eval_params, state.task, batch, state.step, teacher_key
        )
        return jax.lax.with_sharding_constraint(columns, batch_sharding), task, metrics

    return targets


def _average(ema, params, config: Optimizer, hyperparams: dict):
    """Returns the averaged parameters after a step; their decay may change with the step."""
    step_size = hyperparams["ema_step"] if "ema_step" in hyperparams else 1 - config.ema
    return optax.incremental_update(params, ema, step_size)


def _skip_unless(is_finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """Returns the new state, or after a step that is skipped the old one with the new counts."""

    def select(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(is_finite, new, old)

    # Counts always increase, so that the schedule stays at the logged step.
    state = jax.tree.map(lambda a, b: a if a.dtype == jnp.int32 else select(a, b), new, old)
    return state.replace(task=jax.tree.map(select, new.task, old.task))
