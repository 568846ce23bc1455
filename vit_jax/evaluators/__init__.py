"""Scores of a model on a whole split."""

import collections
import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import hosts
from vit_jax.data import loader
from vit_jax.errors import DataError

AHEAD = 1  # Batches that the devices have while the host takes down the one before.


def score_all(
    score: Callable,
    params,
    source,
    recipe: Callable,
    *,
    batch_size: int,
    sharding: jax.sharding.Sharding,
    workers: int = 0,
    show: Callable[[int], None] = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, np.ndarray] | None:
    """`label` and what `score` says of every example, once, for any batch size and devices.

    Args:
      score: (params, batch) -> per-example arrays, whole on every host; batch: image B H W 3,
        label B, mask B, and number B, the example's place in the source.
      show: called with the number of examples done.
      is_stopped: asked between batches; when it says so, None is returned.
    """
    if not len(source):
        raise DataError("the split is empty; there is nothing to count.")
    share = loader.share_of(sharding, batch_size)
    rows = loader.EvalRows(source, recipe, share, recipe.size)
    columns: dict[str, list] = collections.defaultdict(list)
    pending: collections.deque = collections.deque()
    done = 0

    def settle() -> bool:
        """Takes down the oldest batch's scores; False where a host has asked to stop."""
        nonlocal done
        found, told = jax.device_get(pending.popleft())
        is_real = found.pop("mask") > 0
        for name, values in found.items():
            columns[name].append(values[is_real])
        done += int(is_real.sum())
        show(done)
        return not told.any()

    for batch in loader.host_batches(rows, share, workers):
        batch = batch | {"number": batch["id"].astype(np.int32)}
        placed = loader.to_devices(batch, sharding)
        known = _whole(sharding)({name: placed[name] for name in ("label", "mask")})
        pending.append((known | score(params, placed), hosts.tell(is_stopped())))
        if len(pending) > AHEAD and not settle():
            return None
    while pending:
        if not settle():
            return None
    assert done == len(source), f"counted {done} of {len(source)} examples"
    return {name: np.concatenate(parts) for name, parts in columns.items()}


@functools.cache
def _whole(sharding: jax.sharding.Sharding) -> Callable:
    """Returns a function that makes arrays of that sharding whole on every host."""
    if sharding.is_fully_addressable:
        return lambda arrays: arrays
    return jax.jit(
        lambda arrays: arrays, out_shardings=NamedSharding(sharding.mesh, PartitionSpec())
    )
