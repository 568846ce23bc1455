"""`TrainState`, its sharded initial value, and the jitted training step."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax.distributed import mesh as mesh_lib


@flax.struct.dataclass
class TrainState:
    """Everything a checkpoint must hold to go on as if nothing had happened."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict | None  # Averaged parameters (Table 2), where a run keeps them.

    @property
    def eval_params(self) -> dict:
        """The parameters that are evaluated and used: averaged ones, where there are."""
        return self.params if self.ema is None else self.ema


def make_abstract_state(
    init: Callable, tx: optax.GradientTransformation, mesh, *, has_ema: bool = False
) -> TrainState:
    """Shapes, dtypes and shardings of the state, with no memory taken for it.

    Args:
      init: key -> params.
    """
    shapes = jax.eval_shape(lambda key: _state(init(key), tx, has_ema), jax.random.key(0))
    shardings = mesh_lib.tree_shardings(shapes, mesh)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )


def make_init_state(init: Callable, tx, abstract_state: TrainState) -> Callable:
    """Returns `init_state(key, params=None) -> TrainState`: the state at step 0, sharded.

    With `params`, those take the place of what `init` draws, and their memory.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    has_ema = abstract_state.ema is not None
    born = jax.jit(lambda key: _state(init(key), tx, has_ema), out_shardings=shardings)
    start = jax.jit(
        lambda given: _state(given, tx, has_ema), out_shardings=shardings, donate_argnums=0
    )

    def init_state(key: jax.Array, params=None) -> TrainState:
        if params is None:
            return born(key)
        return start(jax.tree.map(jax.device_put, params, shardings.params))

    return init_state


def _state(params, tx, has_ema: bool) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if has_ema else None,
    )


def make_gradient(loss_fn: Callable, accumulate: int = 1, batch_sharding=None) -> Callable:
    """Returns `gradient(params, batch, key) -> ((loss, metrics), grads)`.

    The batch is cut into `accumulate` micro-batches, one after the other, and everything is the
    mean over them: with equal masks the same as of the whole batch, but for dropout's noise.
    Row r goes to micro-batch r % accumulate, so that every row stays on its device.
    """
    whole = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        return whole

    def cut(rows: jax.Array) -> jax.Array:  # B ... -> A B/A ...
        rows = rows.reshape(-1, accumulate, *rows.shape[1:])
        if batch_sharding is not None:
            rows = jax.lax.with_sharding_constraint(rows, batch_sharding)
        return rows.swapaxes(0, 1)

    def gradient(params, batch: dict, key: jax.Array):
        def add(total, numbered):
            i, part = numbered
            found = whole(params, part, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, found), None

        parts = jax.tree.map(cut, batch)
        first = jax.tree.map(lambda rows: rows[0], parts)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(whole, params, first, key),
        )
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))
        return jax.tree.map(lambda leaf: leaf / accumulate, total)

    return gradient


def make_sharp_gradient(gradient: Callable, radius: jax.Array, alpha: float) -> Callable:
    """Returns a gradient taken at the worst point within `radius`: SAM, and GSAM for alpha > 0.

    GSAM adds the part of the gradient here, times -alpha, that is at right angles to the one
    there (arXiv:2203.08065, algorithm 1). Loss and metrics are those of the parameters given.
    """

    def sharp(params, batch: dict, key: jax.Array):
        found, here = gradient(params, batch, key)
        scale = radius / (optax.tree.norm(here) + 1e-12)
        worst = jax.tree.map(lambda p, g: p + scale * g, params, here)
        _, there = gradient(worst, batch, key)
        if alpha:
            along = optax.tree.vdot(here, there) / (optax.tree.vdot(there, there) + 1e-12)
            there = jax.tree.map(lambda h, t: t - alpha * (h - along * t), here, there)
        return found, there

    return sharp


def make_train_step(
    loss_fn: Callable,
    make_tx: Callable[[optax.Schedule], optax.GradientTransformation],
    abstract_state: TrainState,
    batch_sharding,
    *,
    accumulate: int = 1,
    ema: float | None = None,
    gsam_alpha: float = 0.0,
) -> Callable:
    """Returns `step(state, batch, key, hyperparams) -> (state, metrics)`, jitted; state is donated.

    Args:
      loss_fn: (params, batch, key) -> (loss, metrics), all scalars.
      key: the same at every step; dropout gets `fold_in(key, step)`, so that a resumed
        run replays the same noise.
      hyperparams: scalars `lr`, the learning rate, and for SAM (arXiv:2010.01412) its radius
        `rho`. They are arguments, so runs that differ in learning rate or length share a program.
      accumulate: micro-batches a step.
      ema: decay of the averaged parameters in `state.ema`.
      gsam_alpha: of GSAM (arXiv:2203.08065); 0 is SAM.

    A step whose loss or gradients are not finite leaves parameters and optimiser as they were,
    so that no checkpoint ever holds such a number.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    gradient = make_gradient(loss_fn, accumulate, batch_sharding)

    def train_step(state: TrainState, batch: dict, key: jax.Array, hyperparams: dict):
        key = jax.random.fold_in(key, state.step)
        followed = gradient
        if "rho" in hyperparams:
            followed = make_sharp_gradient(gradient, hyperparams["rho"], gsam_alpha)
        (loss, metrics), grads = followed(state.params, batch, key)
        grad_norm = optax.tree.norm(grads)
        tx = make_tx(lambda _: hyperparams["lr"])
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema and optax.incremental_update(params, state.ema, 1 - ema)
        # The norm squares, so that what is finite here cannot overflow a second moment.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        params, opt_state, average = jax.tree.map(
            # Counts go on all the same: the schedule stays at the step it is logged with.
            lambda new, old: new if new.dtype == jnp.int32 else jnp.where(finite, new, old),
            (params, opt_state, average),
            (state.params, state.opt_state, state.ema),
        )
        scalars = {
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": hyperparams["lr"],
            "skipped": 1.0 - finite,
        }
        return TrainState(state.step + 1, params, opt_state, average), metrics | scalars

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding, None, None),
        out_shardings=(shardings, None),
    )
