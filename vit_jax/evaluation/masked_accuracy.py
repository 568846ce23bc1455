"""Loss and accuracy on the corrupted patches of a split, every example counted exactly once."""

import dataclasses
from collections.abc import Callable

import numpy as np

from vit_jax.evaluation.scoring import score_all


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """Means over the corrupted patches of each example, in the order of the split."""

    loss: np.ndarray
    top1: np.ndarray | None = None  # None if targets are pixels.
    num_bad: int = 0  # Images of the split that could not be read.

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.loss)

    def means(self) -> dict:
        """Returns `n`, and the means of loss and, if targets are colours, top1.

        And `bad_images`, if images could not be read.
        """
        columns = {"loss": self.loss, "top1": self.top1}
        means = {
            name: float(values.mean(dtype=np.float64))
            for name, values in columns.items()
            if values is not None
        }
        return {"n": self.n, **means, **({"bad_images": self.num_bad} if self.num_bad else {})}


def score_examples(
    score: Callable, params, source, recipe: Callable, **options
) -> ImageScores | None:
    """Scores every example of a source once; returns None if it was stopped.

    Args:
      score: the jitted function of `scoring.make_score`, replicated on every host.
      **options: options of `scoring.score_all`.
    """
    columns = score_all(score, params, source, recipe, **options)
    if columns is None:
        return None
    num_bad = len(source) - len(columns["loss"])
    return ImageScores(columns["loss"], columns.get("top1"), num_bad)
