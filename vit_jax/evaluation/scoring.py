"""Scores of a model on a whole split."""

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

AHEAD = 1  # Batches that the devices have while the host takes down the one before.


def score_all(score: Callable, params, source, recipe: Callable, **options) -> dict | None:
    """What `scored_batches` gives, whole; None where it was stopped."""
    columns: dict[str, list] = collections.defaultdict(list)
    for found in scored_batches(score, params, source, recipe, **options):
        for name, values in found.items():
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
    show: Callable[[int], None] = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, np.ndarray]]:
    """`label` and what `score` says of every example, once, for any batch size and devices.

    Batches come in the order of the source, without what fills up the last of them.

    Args:
      score: (params, batch) -> per-example arrays, whole on every host; batch: image B H W 3,
        label B, mask B, and number B, the example's place in the source.
      show: called with the number of examples done.
      is_stopped: asked between batches; when it says so, no more come.
    """
    if not len(source):
        raise DataError("the split is empty; there is nothing to count.")
    share = loader.share_of(sharding, batch_size)
    rows = loader.EvalRows(source, recipe, share)
    pending: collections.deque = collections.deque()
    done, is_told = 0, False

    def settle() -> dict[str, np.ndarray]:
        """Takes down the oldest batch's scores, and whether a host has asked to stop."""
        nonlocal done, is_told
        found, told = jax.device_get(pending.popleft())
        is_real = found.pop("mask") > 0
        done, is_told = done + int(is_real.sum()), bool(told.any())
        show(done)
        return {name: values[is_real] for name, values in found.items()}

    for batch in loader.host_batches(rows, share, workers):
        batch = batch | {"number": batch["id"].astype(np.int32)}
        placed = loader.to_devices(batch, sharding)
        known = _whole(sharding)({name: placed[name] for name in ("label", "mask")})
        pending.append((known | score(params, placed), multihost.allgather(is_stopped())))
        if len(pending) > AHEAD:
            yield settle()
            if is_told:
                return
    while pending:
        yield settle()
        if is_told and pending:
            return
    assert done == len(source), f"counted {done} of {len(source)} examples"


@functools.cache
def _whole(sharding: jax.sharding.Sharding) -> Callable:
    """Returns a function that makes arrays of that sharding whole on every host."""
    if sharding.is_fully_addressable:
        return lambda arrays: arrays
    return jax.jit(
        lambda arrays: arrays, out_shardings=NamedSharding(sharding.mesh, PartitionSpec())
    )


def make_score(model: ViT, mesh: Mesh, task: Task, only: Sequence[int] | None = None) -> Callable:
    """The jitted per-example scores, whole on every host; `only` some classes are predicted."""
    scorer = task_registry.make_scorer(task, model, only=only)
    return jax.jit(scorer, out_shardings=mesh_lib.replicated(mesh))


def make_extract(model: ViT, mesh: Mesh, layer: str = "pre_logits") -> Callable:
    """The jitted features of a layer, whole on every host."""
    return jax.jit(make_extractor(model, layer), out_shardings=mesh_lib.replicated(mesh))
