"""Loss and accuracy on the corrupted patches of a split, every example counted exactly once."""

import dataclasses
from collections.abc import Callable

import numpy as np

from vit_jax.evaluation.scoring import score_all


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


def evaluate(score: Callable, params, source, recipe: Callable, **options) -> Scores | None:
    """Scores every example of a source once; None when it was stopped.

    Args:
      score: the jitted function of `tasks.masked_patches.make_scorer`, whole on every host.
      **options: those of `score_all`.
    """
    columns = score_all(score, params, source, recipe, **options)
    if columns is None:
        return None
    return Scores(columns["loss"], columns.get("top1"))
