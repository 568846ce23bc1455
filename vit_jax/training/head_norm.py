"""Statistics of features for `model.head_norm`, measured before the first step of a stage.

The paper of MAE (arXiv:2111.06377, appendix A.1) probes frozen features through a BatchNorm without
scale and bias. The encoder does not change, so the statistics that BatchNorm estimates from batch
to batch are constants of the training images; here they are measured once, over the first batches
of the run, and are parameters from then on. A resumed run restores them with the head.
"""

import contextlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.distributed import mesh as mesh_lib
from vit_jax.training.batches import TrainBatches
from vit_jax.training.build import Programs
from vit_jax.training.stage import Stage
from vit_jax.training.train_step import TrainState

NUM_EXAMPLES = 16_384  # The batch of the paper; the error of a mean is 1/128 of the deviation.


def measure(
    stage: Stage, programs: Programs, batches: TrainBatches, state: TrainState
) -> TrainState:
    """Returns the state with the mean and the variance of the features of training images.

    The features are those of the first NUM_EXAMPLES training images, as augmented, or of fewer if
    an epoch has fewer; their batches are those of the first steps.
    """
    moments = jax.jit(_moments, out_shardings=mesh_lib.replicated(stage.mesh))
    count = min(NUM_EXAMPLES, len(stage.train_source))

    def parts() -> Iterator[tuple]:
        num_examples = 0
        with contextlib.closing(batches.after(0)) as rows:
            for batch in rows:
                placed = batches.to_devices(batch)
                features = programs.extract(state.params, placed)["features"]
                yield jax.device_get(moments(features, placed["mask"]))
                num_examples += stage.config.batch_size
                if num_examples >= count:
                    return

    measured = list(parts())
    if not measured:  # A signal, after which no step follows.
        return state
    mean, var = combine(measured)
    params = {"head_norm": {"mean": np.float32(mean), "var": np.float32(var)}}
    shardings = jax.tree.map(lambda leaf: leaf.sharding, programs.abstract_state)
    return jax.jit(_with_params, out_shardings=shardings, donate_argnums=0)(state, params)


def _moments(features: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns count, mean and mean squared deviation of the rows of B D whose mask B is 1."""
    weights = mask[:, None].astype(jnp.float32)
    count = jnp.sum(weights)
    mean = jnp.sum(weights * features, axis=0) / jnp.maximum(count, 1)
    return (
        count,
        mean,
        jnp.sum(weights * jnp.square(features - mean[None]), 0) / jnp.maximum(count, 1),
    )


def combine(parts: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance of all rows, given count, mean and variance of each part."""
    counts, means, variances = (np.array(column, np.float64) for column in zip(*parts, strict=True))
    shares = counts / counts.sum()
    mean = shares @ means
    return mean, shares @ (variances + np.square(means - mean))


def _with_params(state: TrainState, params: dict) -> TrainState:
    ema = state.ema and state.ema | jax.tree.map(jnp.copy, params)
    return state.replace(params=state.params | params, ema=ema)
