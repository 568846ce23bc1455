"""Protocols on frozen features of images: what is fitted, what is scored, and the report.

Each function takes `features_of(source) -> {"features": N D, "label": N, "index": N}`, which reads
every image once, the sources to fit on and to score, and their number of classes; it returns a
report of plain numbers.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.data.subsets import Subset
from vit_jax.evaluation import fewshot, probes
from vit_jax.evaluation.scoring import scored_batches

HALF_FROM = 2**30  # Bytes of float32 features from which they are kept in float16.


def make_feature_function(extract: Callable, params, recipe, **options) -> Callable:
    """Returns `features_of(source)`; features of more than a gigabyte are kept in float16.

    Features of ImageNet's 1.28 million images with D = 768 take 2 GB. Images that are skipped,
    because they cannot be read, have no row; `index` N is the index of each row in the source.

    Args:
      extract: jitted function of `features.make_extractor`.
      **options: options of `scoring.scored_batches`; `features_of` raises `scoring.Stopped`.
    """

    def features_of(source) -> dict[str, np.ndarray]:
        features, labels, indices = [], [], []
        for batch in scored_batches(extract, params, source, recipe, **options):
            found = batch["features"]
            is_large = 4 * len(source) * found.shape[1] > HALF_FROM
            can_halve = np.abs(found).max() <= np.finfo(np.float16).max
            features.append(found.astype(np.float16) if is_large and can_halve else found)
            labels.append(batch["label"])
            indices.append(batch["index"])
        columns = {"features": features, "label": labels, "index": indices}
        return {name: np.concatenate(parts) for name, parts in columns.items()}

    return features_of


@dataclasses.dataclass(frozen=True)
class Rows:
    """Features N D of a training set of which some rows are known; other rows are 0 in slices."""

    num: int  # N
    places: np.ndarray  # Indices of the known rows, ascending.
    values: np.ndarray  # The known rows, D each.
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        return self.num, self.values.shape[1]

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, at: np.ndarray | slice) -> np.ndarray:
        if not isinstance(at, slice):
            return self.values[np.searchsorted(self.places, at)]
        first, last, _ = at.indices(self.num)
        some = slice(*np.searchsorted(self.places, (first, last)))
        rows = np.zeros((last - first, self.shape[1]), self.values.dtype)
        rows[self.places[some] - first] = self.values[some]
        return rows


def few_shot(
    features_of: Callable,
    train,
    test,
    num_classes: int,
    *,
    shots: Sequence[int] = fewshot.SHOTS,
    seeds: int = fewshot.SEEDS,
    l2: float | Sequence[float] = fewshot.L2,
) -> dict:
    """Fits closed-form least squares; only the training images that are drawn are read.

    If some of them cannot be read and are skipped, shots are drawn again without them.
    """
    readable = np.arange(len(train))
    while True:
        labels = train.labels[readable]
        draws = [fewshot.draw_shots(labels, max(shots), seed) for seed in range(seeds)]
        places = np.unique(np.concatenate(draws))
        drawn = features_of(Subset(train, readable[places]))
        if len(drawn["index"]) == len(places):
            break
        readable = np.delete(readable, np.delete(places, drawn["index"]))
    rows = Rows(len(labels), places, drawn["features"])
    scored = features_of(test)
    found = fewshot.fewshot(
        rows,
        labels,
        scored["features"],
        scored["label"],
        num_classes,
        shots=shots,
        seeds=seeds,
        l2=l2,
    )
    sizes = np.bincount(labels, minlength=num_classes)
    report = {"n": len(scored["label"]), "seeds": seeds, "num_seen": len(places)}
    report["smallest_class"] = int(sizes.min())  # May be less than the number of shots.
    for count, each in found.items():
        scores = {"mean": each.mean, "std": each.std, "correct": each.correct, "l2": each.l2}
        report[f"{count}shot"] = scores
    return report


def linear_probe(features_of: Callable, train, test, num_classes: int, **options) -> dict:
    """Fits logistic regression on the training set; options as in `probes.probe`."""
    found = probes.probe(*_sides(features_of, train, test), num_classes, **options)
    return {
        "n": found.n,
        "correct": found.correct,
        "top1": found.correct / found.n,
        "l2": found.l2,
        "dev_n": found.dev_n,
        "dev_correct": found.dev_correct,
    }


def nearest_neighbours(features_of: Callable, train, test, num_classes: int, **options) -> dict:
    """Classifies by votes of the nearest training examples; options as in `probes.knn`."""
    found = probes.knn(*_sides(features_of, train, test), num_classes, **options)
    top1 = {f"{k}nn": correct / found.n for k, correct in found.correct.items()}
    return {"n": found.n, "correct": found.correct, **top1}


def _sides(features_of: Callable, train, test) -> list[np.ndarray]:
    sides = [features_of(train), features_of(test)]
    return [side[name] for side in sides for name in ("features", "label")]
