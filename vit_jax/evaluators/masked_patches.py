"""Loss and accuracy on the corrupted patches of a split, every example counted exactly once."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from vit_jax.data import loader
from vit_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Scores:
    """Per-example means over corrupted patches, in the order of the split."""

    loss: np.ndarray
    top1: np.ndarray | None = None  # Of colours only.

    @property
    def n(self) -> int:
        """Examples counted."""
        return len(self.loss)

    def means(self) -> dict:
        """n, and loss and, where targets are colours, top1 as means."""
        means = {
            name: float(values.mean(dtype=np.float64))
            for name, values in vars(self).items()
            if values is not None
        }
        return {"n": self.n, **means}


def evaluate(
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
) -> Scores | None:
    """Scores every example of a source once, for any batch size and number of devices.

    Args:
      score: the jitted function of `tasks.masked_patches.make_scorer`, whole on every host.
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
        scores = jax.device_get(score(params, loader.to_devices(batch, sharding)))
        is_real = scores.pop("mask") > 0
        for name, values in scores.items():
            columns.setdefault(name, []).append(values[is_real])
        done += int(is_real.sum())
        show(done)
    counted = Scores(**{name: np.concatenate(parts) for name, parts in columns.items()})
    assert counted.n == len(source), f"counted {counted.n} of {len(source)} examples"
    return counted
