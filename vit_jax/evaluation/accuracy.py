"""Accuracy of a classifier on a split; every example is counted exactly once."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.evaluation.scoring import score_all

BINS = 15  # Of confidence, for the calibration error (arXiv:1706.04599, section 4).


@dataclasses.dataclass(frozen=True)
class ExampleScores:
    """Results of N examples, in the order of the split."""

    label: np.ndarray  # N
    best: np.ndarray  # N 5, the most probable class first; N K if K < 5.
    probability: np.ndarray  # N, of the most probable class.
    loss: np.ndarray  # N
    index: np.ndarray | None = None  # N, of each example in the split.
    num_bad: int = 0  # Images of the split that could not be read.

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.label)

    @property
    def prediction(self) -> np.ndarray:
        """The most probable class, N."""
        return self.best[:, 0]

    @property
    def top1(self) -> np.ndarray:
        """True if the most probable class is the label, N."""
        return self.prediction == self.label

    @property
    def top5(self) -> np.ndarray:
        """True if the label is among the five most probable classes, N."""
        return (self.best == self.label[:, None]).any(1)

    def counts(self) -> dict:
        """Returns n and the numbers of correct top-1 and top-5 predictions."""
        return {"n": self.n, "correct": int(self.top1.sum()), "correct5": int(self.top5.sum())}

    def means(self) -> dict:
        """Returns n, top1, top5, loss, mean accuracy per class and calibration error.

        And `bad_images`, if images could not be read.
        """
        counts = self.counts()
        return {
            "n": self.n,
            "top1": counts["correct"] / self.n,
            "top5": counts["correct5"] / self.n,
            "loss": float(self.loss.sum(dtype=np.float64)) / self.n,
            "mean_per_class": self.mean_per_class(),
            "ece": self.calibration_error(),
            **({"bad_images": self.num_bad} if self.num_bad else {}),
        }

    def mean_per_class(self) -> float:
        """Returns the mean accuracy of the classes that have examples."""
        sizes = np.bincount(self.label)
        hits = np.bincount(self.label, weights=self.top1, minlength=len(sizes))
        return float(np.mean(hits[sizes > 0] / sizes[sizes > 0]))

    def calibration_error(self) -> float:
        """Returns the expected calibration error over 15 bins (equation 3 of arXiv:1706.04599)."""
        edges = np.linspace(0, 1, BINS + 1)[1:-1]
        bins = np.digitize(self.probability, edges, right=True)
        gaps = np.bincount(bins, weights=self.top1 - self.probability.astype(np.float64))
        return float(np.abs(gaps).sum() / self.n)

    def with_label_sets(self, label_sets: Sequence[Sequence[int]]) -> dict:
        """Returns n, top1 and top5 where any label of an example's set is correct, as in ReaL.

        Examples without labels are excluded, also from n (arXiv:2006.07159).

        Args:
          label_sets: one set for each example of the split.
        """
        if self.index is not None:
            label_sets = [label_sets[i] for i in self.index]
        rows = [
            (best, labels) for best, labels in zip(self.best, label_sets, strict=True) if labels
        ]
        correct = sum(int(best[0]) in labels for best, labels in rows)
        correct5 = sum(not set(best.tolist()).isdisjoint(labels) for best, labels in rows)
        n = len(rows)
        means = {"top1": correct / n, "top5": correct5 / n} if n else {}
        return {"n": n, "correct": correct, "correct5": correct5, **means}

    def confusion(self, num_classes: int) -> np.ndarray:
        """Returns counts K K by label (row) and prediction (column)."""
        pairs = self.label.astype(np.int64) * num_classes + self.prediction
        counts = np.bincount(pairs, minlength=num_classes * num_classes)
        return counts.reshape(num_classes, num_classes)


def score_examples(
    score: Callable, params, source, recipe: Callable, **options
) -> ExampleScores | None:
    """Scores every example of a source once; returns None if it was stopped.

    Args:
      score: the jitted function of `scoring.make_score`, replicated on every host.
      **options: options of `scoring.score_all`.
    """
    columns = score_all(score, params, source, recipe, **options)
    return columns and ExampleScores(**columns, num_bad=len(source) - len(columns["label"]))
