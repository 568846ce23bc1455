"""Statistics of a model's attention over many images, in limited memory."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from vit_jax.distributed.progress import Progress
from vit_jax.errors import CheckpointError
from vit_jax.figures import attention_distance, attention_heads, attention_rollout
from vit_jax.figures.attention import make_attention_fn
from vit_jax.models.registry import ViT

MAX_ATTENTION_BYTES = 2**27  # Of the attention weights of one layer for a batch of images.

ReadLayers = Callable[[], Iterable[dict]]  # Yields the parameters of each layer.


@dataclasses.dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of a model's attention over some images.

    Attributes:
      distances: mean attention distances L h, in pixels.
      rollout_maps: `attention_rollout.output_maps` B r c of the first images.
      head_maps: `attention_heads.head_maps` h r c of the first image in one layer.
    """

    distances: np.ndarray
    rollout_maps: np.ndarray
    head_maps: np.ndarray


def compute_statistics(
    model: ViT,
    params: dict,
    images: np.ndarray,
    *,
    layer: int,
    num_rollouts: int,
    read_layers: ReadLayers | None = None,
    where: str = "",
) -> AttentionStatistics:
    """Returns statistics of a model's attention.

    All batches pass through a layer before any passes through the next, so that the parameters of
    each layer are read once.

    Args:
      params: parameters; without those of the layers if `read_layers` is given.
      images: B H W 3 in [-1, 1].
      layer: layer of `head_maps`, from 0.
      num_rollouts: number of images to compute `rollout_maps` of.
      read_layers: function that reads the parameters of each layer.
      where: name of the weights, for errors.

    Raises:
      CheckpointError: attention weights are not finite.
    """
    progress = Progress(seconds_between=10)
    batches = _attention_batches(model, params, images, num_rollouts, read_layers)
    distances, rollouts, head_maps = [], {}, None
    for i in range(model.size.num_layers):
        total = 0.0
        for start, size, reduced_layers in batches:
            distance, mean, first = jax.device_get(next(reduced_layers))
            if not np.isfinite(distance).all():
                raise CheckpointError(
                    f"{where}: the attention weights of layer {i} are not finite; the weights are "
                    "damaged, or the training run diverged."
                )
            total = total + distance[:size].sum(axis=0)
            if mean is not None:
                rollouts[start] = attention_rollout.add_layer(rollouts.get(start), mean[:size])
            if start == 0 and i == layer:
                head_maps = attention_heads.head_maps(first, model.grid, model.num_output_tokens)
            progress.show(f"layer {i + 1}: {start + size}/{len(images)} images")
        distances.append(total / len(images))
    rollout_maps = [
        attention_rollout.output_maps(rollout, model.grid, model.num_output_tokens)
        for rollout in rollouts.values()
    ]
    return AttentionStatistics(
        np.stack(distances), np.concatenate(rollout_maps)[:num_rollouts], head_maps
    )


def _attention_batches(
    model: ViT,
    params: dict,
    images: np.ndarray,
    num_rollouts: int,
    read_layers: ReadLayers | None,
) -> list[tuple[int, int, Iterator[tuple]]]:
    """Returns batches: index of the first image, number of images, iterator over layers.

    The iterator yields distances B h, weights averaged over heads B 1 T T, and weights h T T of
    the first image; the last two only for batches with rollouts.
    """
    T = int(np.prod(model.grid)) + model.num_prefix_tokens
    bytes_per_image = 4 * model.size.num_heads * T * T
    batch_size = min(max(1, MAX_ATTENTION_BYTES // bytes_per_image), num_rollouts, len(images))
    distances = jax.vmap(
        lambda A: attention_distance.mean_distance(A[None], model.grid, model.patch_pixels)
    )
    with_rollout = make_attention_fn(
        model, lambda A: (distances(A), A.mean(axis=1, keepdims=True), A[0])
    )
    without_rollout = make_attention_fn(model, lambda A: (distances(A), None, None))
    starts = range(0, len(images), batch_size)
    layers = _tee(read_layers(), len(starts)) if read_layers else [None] * len(starts)
    batches = []
    for start, own_layers in zip(starts, layers, strict=True):
        batch = images[start : start + batch_size]
        padding = np.zeros((batch_size - len(batch), *batch.shape[1:]), batch.dtype)
        attention_fn = with_rollout if start < num_rollouts else without_rollout
        reduced_layers = attention_fn(params, np.concatenate([batch, padding]), own_layers)
        batches.append((start, len(batch), reduced_layers))
    return batches


def _tee(layers: Iterable[dict], count: int) -> list[Iterator[dict]]:
    """Returns `count` iterators over the same layers.

    Unlike `itertools.tee`, it drops its reference to a layer that all iterators have yielded.
    """
    layers, queues = iter(layers), [collections.deque() for _ in range(count)]

    def iterate(own: collections.deque) -> Iterator[dict]:
        while own or _append_next(layers, queues):
            yield own.popleft()

    return [iterate(own) for own in queues]


def _append_next(layers: Iterator[dict], queues: Sequence[collections.deque]) -> bool:
    """Appends the next layer to all queues; returns False if there is none."""
    layer = next(layers, None)
    if layer is None:
        return False
    for queue in queues:
        queue.append(layer)
    return True
