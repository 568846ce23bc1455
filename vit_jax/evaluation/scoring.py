"""Runs a model over every example of a split."""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.config.schema import Data, Task
from vit_jax.data import loader
from vit_jax.data.workers import Patience
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.distributed import multihost
from vit_jax.errors import DataError
from vit_jax.evaluation.features import make_extractor
from vit_jax.models.vit import ViT
from vit_jax.tasks import registry as task_registry
from vit_jax.weights.finite import require_finite

AHEAD = 1  # Batches on the devices while the host collects the scores of the one before.


class Stopped(Exception):
    """Raised when a signal arrives while examples are scored."""


def score_all(score: Callable, params, source, recipe: Callable, **options) -> dict | None:
    """Returns the scores of all batches, concatenated; None if it was stopped."""
    columns: dict[str, list] = collections.defaultdict(list)
    try:
        for scores in scored_batches(score, params, source, recipe, **options):
            for name, values in scores.items():
                columns[name].append(values)
    except Stopped:
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
    data: Data = Data(),  # noqa: B008
    where: str | None = None,
    show: Callable[[int], None] = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields `index`, `label` and the scores of every example, for any batch size and devices.

    Batches come in the order of the source; the padding of the last batch is removed, and with
    data.on_bad_image='skip' so are images that cannot be read.

    Args:
      score: (params, batch) -> per-example arrays, replicated on every host; batch: image
        B H W 3, label B, mask B, and number B, the index of the example in the source.
      data: fields `workers`, `timeout`, `on_bad_image` and `max_bad` are used.
      where: location of the weights; None for those of a run in training.
      show: called with the number of examples done.
      is_stopped: called between batches; after it returned True, Stopped is raised.

    Raises CheckpointError, or NonFiniteError if `where` is None, for scores that are not finite.
    """
    if not len(source):
        raise DataError("the split is empty; expected at least one example.")
    shard = loader.HostShard.from_sharding(sharding, batch_size)
    rows = loader.EvalRows(source, recipe, shard, data.on_bad_image)
    pending: collections.deque = collections.deque()
    num_done, num_bad, has_stopped = 0, 0, False
    # Several processes stop after the same batch, so that none waits for the others.
    is_alone = jax.process_count() == 1
    patience = Patience(data.timeout, is_stopped if is_alone else lambda: False)

    def collect() -> dict[str, np.ndarray]:
        """Returns the scores of the oldest batch; notes if a host has asked to stop."""
        nonlocal num_done, num_bad, has_stopped
        scores, stops = jax.device_get(pending.popleft())
        is_example = scores.pop("mask") > 0
        num_done, has_stopped = num_done + int(is_example.sum()), bool(stops.any())
        num_bad += int((~is_example & (scores["index"] != loader.PADDING_ID)).sum())
        show(num_done)
        scores = {name: values[is_example] for name, values in scores.items()}
        require_finite(scores, params, where)
        return scores

    for batch in loader.host_batches(rows, shard, data.workers, patience):
        batch = batch | {"number": batch["id"].astype(np.int32)}
        placed = loader.to_devices(batch, sharding)
        known = {"index": placed["number"], "label": placed["label"], "mask": placed["mask"]}
        known = _replicate(sharding)(known)
        pending.append((known | score(params, placed), multihost.allgather(is_stopped())))
        if len(pending) > AHEAD:
            yield collect()
            if has_stopped:
                raise Stopped
    while pending:
        yield collect()
    if num_done + num_bad < len(source):
        raise Stopped  # While a worker was waited for.
    loader.check_bad_images(num_bad, len(source), data.max_bad)
    if not num_done:
        raise DataError(f"none of the {num_bad} images of the split can be read.")


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
