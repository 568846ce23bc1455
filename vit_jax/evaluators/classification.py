"""Top-1 and friends over a padded split, every example counted exactly once."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from vit_jax.data import loader
from vit_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Scores:
    """Per-example results in the order of the split; each array has one entry an example."""

    label: np.ndarray
    prediction: np.ndarray
    probability: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    loss: np.ndarray

    @property
    def n(self) -> int:
        """Examples counted."""
        return len(self.label)

    def means(self) -> dict:
        """n, and top1, top5 and loss as means; the counts behind them are integers."""
        return {
            "n": self.n,
            "top1": int(self.top1.sum()) / self.n,
            "top5": int(self.top5.sum()) / self.n,
            "loss": float(self.loss.sum(dtype=np.float64)) / self.n,
        }

    def confusion(self, num_classes: int) -> np.ndarray:
        """Counts K K of label (row) against prediction (column)."""
        pairs = self.label.astype(np.int64) * num_classes + self.prediction
        counts = np.bincount(pairs, minlength=num_classes * num_classes)
        return counts.reshape(num_classes, num_classes)


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
      score: the jitted function of `tasks.classification.make_scorer`.
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
        labels = _of_all_hosts(batch["label"])
        is_real = _of_all_hosts(batch["mask"]) > 0
        scores = jax.device_get(score(params, loader.to_devices(batch, sharding)))
        for name, values in {"label": labels, **scores}.items():
            columns.setdefault(name, []).append(np.asarray(values)[is_real])
        done += int(is_real.sum())
        show(done)
    counted = Scores(**{name: np.concatenate(parts) for name, parts in columns.items()})
    assert counted.n == len(source), f"counted {counted.n} of {len(source)} examples"
    return counted


def _of_all_hosts(rows: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return rows
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(rows, tiled=True)
