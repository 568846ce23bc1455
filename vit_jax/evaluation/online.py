"""Frozen features of a run in training, scored on a labelled set (`config.probe`)."""

import dataclasses

import numpy as np

from vit_jax.config.schema import Config, Data, Probe
from vit_jax.data.labels import relabelled
from vit_jax.data.sources import Source, check_classes, open_split
from vit_jax.data.subsets import Subset
from vit_jax.errors import DataError
from vit_jax.evaluation import fewshot, probes, spectrum

CHUNK = 2048  # Examples on the devices at a time, beside the state of the training.
L2_GRID = (1.0, 0.1, 0.01, 0.001)  # Penalties of the linear classifier, for each example.


def open_probe_sets(config: Config) -> tuple[Source, Source] | None:
    """Returns the training and the test examples of `config.probe`; None if there is no probe.

    Raises DataError for a missing or empty split, and for data without classes.
    """
    section = config.probe
    if section.every is None:
        return None
    fields = {"mix": (), "val_split": section.test_split}
    if section.source:
        fields |= {"source": section.source, "dir": section.dir, "dataset": section.dataset}
        fields["val_fraction"] = Data().val_fraction
    data = dataclasses.replace(config.data, **fields)
    train = open_split(data, section.split)
    check_classes(train, data, f"config.probe with probe.source={section.source!r}")
    test = relabelled(open_split(data, section.test_split), train.classes, "probe.split")
    for source, split in ((train, section.split), (test, section.test_split)):
        if not len(source):
            raise DataError(f"config.probe: split {split!r} of {data.source} is empty.")
    return _draw(train, section.count), _draw(test, section.count)


def _draw(source: Source, count: int | None) -> Source:
    """Returns `count` random examples in the order of the source; the same in every run."""
    if count is None or count >= len(source):
        return source
    order = np.random.default_rng(0).permutation(len(source))
    return Subset(source, np.sort(order[:count]))


def score_features(features_of, train: Source, test: Source, section: Probe) -> dict[str, float]:
    """Returns the metrics of `config.probe` by their names in metrics.jsonl.

    Nearest neighbours and the linear classifier are fitted on the features of `train` and scored
    on those of `test`; rank and deviation are those of `train`.

    Args:
      features_of: function of `frozen.make_feature_function`.
    """
    fitted, scored = features_of(train), features_of(test)
    sides = [side[name] for side in (fitted, scored) for name in ("features", "label")]
    sets = (*sides, len(train.classes))
    neighbours = probes.knn(*sets, neighbours=(section.k,), chunk_size=CHUNK)
    metrics = {"knn": neighbours.correct[section.k] / neighbours.n}
    if section.linear:
        metrics["linear"] = linear_accuracy(*sets)
    metrics["rankme"] = spectrum.rankme(fitted["features"])
    metrics["feature_std"] = spectrum.deviation(fitted["features"])
    metrics["n"] = neighbours.n
    return {f"probe/{name}": value for name, value in metrics.items()}


def linear_accuracy(train_features, train_labels, test_features, test_labels, num_classes: int):
    """Returns the accuracy of least squares on standardised features: N D, N, M D, M -> scalar.

    The L2 penalty, 1 to 0.001 for each example, is chosen on a third of the training examples. It
    is solved in float64 on the host, so that the devices need no memory for it.
    """
    N = len(train_labels)
    found = fewshot.fewshot(
        train_features,
        train_labels,
        test_features,
        test_labels,
        num_classes,
        shots=(N,),  # All examples of every class.
        seeds=1,
        l2=[N * value for value in L2_GRID],
        float64=True,
        chunk_size=CHUNK,
    )
    return found[N].mean
