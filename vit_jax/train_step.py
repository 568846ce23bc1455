"""`TrainState`, its sharded birth, and the jitted step."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax import sharding


@flax.struct.dataclass
class TrainState:
    """Everything a checkpoint must hold to go on as if nothing had happened."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def abstract_state(init: Callable, tx: optax.GradientTransformation, mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, with no memory taken for it.

    Args:
      init: key -> params.
    """
    shapes = jax.eval_shape(_birth(init, tx), jax.random.key(0))
    shardings = sharding.tree_shardings(shapes, mesh)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )


def create_state(init: Callable, tx, like: TrainState, key: jax.Array, params=None) -> TrainState:
    """The state at step 0, each array born where `like` wants it.

    With `params`, those take the place of what `init` draws, and their memory.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    if params is None:
        return jax.jit(_birth(init, tx), out_shardings=shardings)(key)
    params = jax.tree.map(jax.device_put, params, shardings.params)
    start = jax.jit(lambda given: _state(given, tx), out_shardings=shardings, donate_argnums=0)
    return start(params)


def _birth(init, tx):
    return lambda key: _state(init(key), tx)


def _state(params, tx) -> TrainState:
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


def make_train_step(loss_fn: Callable, tx, schedule, like: TrainState, batch_sharding) -> Callable:
    """Returns `step(state, batch, key) -> (state, metrics)`, jitted, with the state donated.

    Args:
      loss_fn: (params, batch, key) -> (loss, metrics), all scalars.
      key: the same at every step; dropout gets `fold_in(key, step)`, so that a resumed
        run replays the same noise.

    A step whose loss, gradients or updates are not finite leaves parameters and optimiser as
    they were, so that no checkpoint ever holds such a number.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)

    def train_step(state: TrainState, batch: dict, key: jax.Array):
        key = jax.random.fold_in(key, state.step)
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = value_and_grad(state.params, batch, key)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm + optax.tree.norm(updates))
        params, opt_state = jax.tree.map(
            # Counts go on all the same: the schedule stays at the step it is logged with.
            lambda new, old: new if new.dtype == jnp.int32 else jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        scalars = {
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": schedule(state.step),
            "skipped": 1.0 - finite,
        }
        return TrainState(state.step + 1, params, opt_state), metrics | scalars

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding, None),
        out_shardings=(shardings, None),
    )
