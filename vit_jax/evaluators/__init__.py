"""Scores of a model on a whole split."""

from collections.abc import Callable

import jax
import numpy as np

from vit_jax.data import loader
from vit_jax.errors import DataError


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
    share = loader.share_of_batch(batch_size, jax.process_count(), jax.process_index())
    rows = loader.EvalRows(source, recipe, share, recipe.size)
    columns: dict[str, list] = {}
    done = 0
    for batch in loader.host_batches(rows, share, workers):
        if is_stopped():
            return None
        batch = batch | {"number": batch["id"].astype(np.int32)}
        labels = _of_all_hosts(batch["label"])
        is_real = _of_all_hosts(batch["mask"]) > 0
        scores = jax.device_get(score(params, loader.to_devices(batch, sharding)))
        for name, values in {"label": labels, **scores}.items():
            columns.setdefault(name, []).append(np.asarray(values)[is_real])
        done += int(is_real.sum())
        show(done)
    assert done == len(source), f"counted {done} of {len(source)} examples"
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _of_all_hosts(rows: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return rows
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(rows, tiled=True)
