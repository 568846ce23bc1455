"""Top-1 and friends over a padded split, every example counted exactly once."""

import dataclasses
from collections.abc import Callable

import numpy as np

from vit_jax.evaluators import score_all


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


def evaluate(score: Callable, params, source, recipe: Callable, **options) -> Scores | None:
    """Scores every example of a source once; None when it was stopped.

    Args:
      score: the jitted function of `tasks.classification.make_scorer`, whole on every host.
      **options: those of `score_all`.
    """
    columns = score_all(score, params, source, recipe, **options)
    return columns and Scores(**columns)
