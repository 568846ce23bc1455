"""Probes of frozen features: their sets and their metrics, beside numpy and scikit-learn."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from vit_jax.config.schema import Config, Data, Probe
from vit_jax.data.sources import ArraySource
from vit_jax.errors import DataError
from vit_jax.evaluation import online, spectrum

D, CLASSES = 6, ("a", "b", "c")
SECTION = Probe(every=1, k=9)


def source(num, seed=0) -> ArraySource:
    labels = np.arange(num) % len(CLASSES)
    return ArraySource(np.full((num, 2, 2, 3), seed, np.uint8), labels, CLASSES)


def features_of(source) -> dict:
    """Noise around one point for each class."""
    centres = np.random.default_rng(9).normal(size=(len(CLASSES), D))
    noise = np.random.default_rng(len(source)).normal(size=(len(source), D))
    features = (centres[source.labels] + 1.6 * noise).astype(np.float32)
    return {"features": features, "label": source.labels, "index": np.arange(len(source))}


def nearest_by_hand(train, test, k: int) -> float:
    """Accuracy of k nearest neighbours by cosine similarity, weighted by exp(s / 0.07)."""
    unit = [
        each["features"] / np.linalg.norm(each["features"], axis=1)[:, None]
        for each in (train, test)
    ]
    similarity = unit[1].astype(np.float64) @ unit[0].T
    correct = 0
    for row, label in zip(similarity, test["label"]):
        nearest = np.argsort(-row)[:k]
        votes = np.zeros(len(CLASSES))
        np.add.at(votes, train["label"][nearest], np.exp(row[nearest] / 0.07))
        correct += votes.argmax() == label
    return correct / len(test["label"])


def linear_by_hand(train, test, l2: float) -> float:
    """Accuracy of ridge regression to targets of +1 and -1 on standardised features."""
    mean, std = train["features"].mean(axis=0), train["features"].std(axis=0)
    targets = 2.0 * (train["label"][:, None] == np.arange(len(CLASSES))) - 1
    model = Ridge(alpha=l2).fit((train["features"] - mean) / std, targets)
    found = model.predict((test["features"] - mean) / std).argmax(axis=1)
    return float((found == test["label"]).mean())


def test_metrics_are_those_of_numpy_and_scikit_learn():
    train, test = source(90), source(48)
    fitted, scored = features_of(train), features_of(test)
    metrics = online.score_features(features_of, train, test, SECTION)
    assert 0.5 < metrics["probe/knn"] < 1
    assert metrics["probe/knn"] == nearest_by_hand(fitted, scored, k=9)
    assert metrics["probe/knn"] != nearest_by_hand(fitted, scored, k=1)
    linear = [linear_by_hand(fitted, scored, 90 * l2) for l2 in online.L2_GRID]
    assert metrics["probe/linear"] in linear
    assert metrics["probe/rankme"] == spectrum.rankme(fitted["features"])
    assert metrics["probe/feature_std"] == spectrum.deviation(fitted["features"])
    assert metrics["probe/n"] == 48


def test_linear_classifier_is_left_out_on_request():
    section = dataclasses.replace(SECTION, linear=False)
    metrics = online.score_features(features_of, source(30), source(12), section)
    assert list(metrics) == [f"probe/{name}" for name in ("knn", "rankme", "feature_std", "n")]


def test_collapsed_features_are_scored_as_chance():
    def collapsed(source):
        return features_of(source) | {"features": np.ones((len(source), D), np.float32)}

    metrics = online.score_features(collapsed, source(30), source(12), SECTION)
    assert metrics["probe/knn"] == metrics["probe/linear"] == pytest.approx(1 / 3)
    assert metrics["probe/feature_std"] == 0
    assert metrics["probe/rankme"] == pytest.approx(1, abs=1e-3)


def test_sets_are_the_data_of_the_run_or_of_their_own():
    assert online.open_probe_sets(Config(steps=1)) is None
    data = Data(source="fake", num_examples=12, num_classes=3, val_split="")
    train, test = online.open_probe_sets(Config(steps=1, data=data, probe=Probe(every=1)))
    assert (len(train), len(test)) == (12, 12)
    assert train.fingerprint() != test.fingerprint()
    own = Probe(every=1, source="digits", count=50)
    config = Config(steps=1, data=data, probe=own)
    train, test = online.open_probe_sets(config)
    assert (len(train), len(test), len(train.classes)) == (50, 50, 10)
    again, _ = online.open_probe_sets(dataclasses.replace(config, seed=7))
    assert train.fingerprint() == again.fingerprint()
    assert (np.diff(train.indices) > 0).all()


def test_a_folder_without_a_val_split_holds_out_its_own(photo_folder):
    data = Data(source="digits", val_split="")
    probe = Probe(every=1, source="folder", dir=str(photo_folder / "train"))
    train, test = online.open_probe_sets(Config(steps=1, data=data, probe=probe))
    assert 0 < len(test) < len(train)
    assert len(train) + len(test) == 48
    names = [{each.name(i) for i in range(len(each))} for each in (train, test)]
    assert not names[0] & names[1]


def test_a_set_without_classes_or_without_a_split_is_refused(photo_folder):
    images = Data(source="images", dir=str(photo_folder))
    message = r"source=images has no classes, which config\.probe with probe\.source='' needs"
    with pytest.raises(DataError, match=message):
        online.open_probe_sets(Config(steps=1, data=images, probe=Probe(every=1)))
    missing = Probe(every=1, source="digits", split="dev")
    with pytest.raises(DataError, match=r"has splits train and val, not 'dev'"):
        online.open_probe_sets(Config(steps=1, data=images, probe=missing))
