"""Runs a model over every example of a split."""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.config.schema import Task
from vit_jax.data import loader
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.distributed import multihost
from vit_jax.errors import DataError
from vit_jax.evaluation.features import make_extractor
from vit_jax.models.vit import ViT
from vit_jax.tasks import registry as task_registry
from vit_jax.weights.finite import require_finite

AHEAD = 1  # Batches on the devices while the host collects the scores of the one before.


def score_all(score: Callable, params, source, recipe: Callable, **options) -> dict | None:
    """Returns the scores of all batches, concatenated; None if it was stopped."""
    columns: dict[str, list] = collections.defaultdict(list)
    for scores in scored_batches(score, params, source, recipe, **options):
        for name, values in scores.items():
            columns[name].append(values)
    if sum(map(len, columns["label"])) < len(source):
        return None
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def scored_batches(
    score: Callable,
    params,
    source,
    recipe: Callable,
    *,
    batch_size: int,
    sharding: jax.sharding.Sharding,
    workers: int = 0,
    where: str | None = None,
    show: Callable[[int], None] = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields `label` and the scores of every example once, for any batch size and devices.

    Batches come in the order of the source; the padding of the last batch is removed.

    Args:
      score: (params, batch) -> per-example arrays, replicated on every host; batch: image
        B H W 3, label B, mask B, and number B, the index of the example in the source.
      where: location of the weights; None for those of a run in training.
      show: called with the number of examples done.
      is_stopped: called between batches; when it returns True, iteration ends.

    Raises CheckpointError, or NonFiniteError if `where` is None, for scores that are not finite.
    """
    if not len(source):
        raise DataError("the split is empty; expected at least one example.")
    shard = loader.HostShard.from_sharding(sharding, batch_size)
    rows = loader.EvalRows(source, recipe, shard)
    pending: collections.deque = collections.deque()
    num_done, has_stopped = 0, False

    def collect() -> dict[str, np.ndarray]:
        """Returns the scores of the oldest batch; notes if a host has asked to stop."""
        nonlocal num_done, has_stopped
        scores, stops = jax.device_get(pending.popleft())
        is_example = scores.pop("mask") > 0
        num_done, has_stopped = num_done + int(is_example.sum()), bool(stops.any())
        show(num_done)
        scores = {name: values[is_example] for name, values in scores.items()}
        require_finite(scores, params, where)
        return scores

    for batch in loader.host_batches(rows, shard, workers):
        batch = batch | {"number": batch["id"].astype(np.int32)}
        placed = loader.to_devices(batch, sharding)
        labels = _replicate(sharding)({name: placed[name] for name in ("label", "mask")})
        pending.append((labels | score(params, placed), multihost.allgather(is_stopped())))
        if len(pending) > AHEAD:
            yield collect()
            if has_stopped:
                return
    while pending:
        yield collect()
        if has_stopped and pending:
            return
    assert num_done == len(source), f"counted {num_done} of {len(source)} examples"


@functools.cache
def _replicate(sharding: jax.sharding.Sharding) -> Callable:
    """Returns a function that replicates arrays of that sharding on every host."""
    if sharding.is_fully_addressable:
        return lambda arrays: arrays
    return jax.jit(
        lambda arrays: arrays, out_shardings=NamedSharding(sharding.mesh, PartitionSpec())
    )


def make_score(model: ViT, mesh: Mesh, task: Task, only: Sequence[int] | None = None) -> Callable:
    """Returns the jitted scores of a task, replicated on every host.

    Args:
      only: classes that can be predicted; None for all.
    """
    score = task_registry.make_task(task, model).score
    if only is not None:
        score = functools.partial(score, only=only)
    return jax.jit(score, out_shardings=mesh_lib.replicated(mesh))


def make_extract(model: ViT, mesh: Mesh, layer: str = "pre_logits") -> Callable:
    """Returns the jitted features of a layer, replicated on every host."""
    return jax.jit(make_extractor(model, layer), out_shardings=mesh_lib.replicated(mesh))
