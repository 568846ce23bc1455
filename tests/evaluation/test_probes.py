"""Linear probe and nearest neighbours on frozen features, beside scikit-learn."""

import re

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from vit_jax.errors import ConfigError, DataError
from vit_jax.evaluation import fewshot, probes

K, TEMPERATURE = 10, 0.07


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, ...]:
    """Train and test features, 64 raw pixels of which some are constant, and labels."""
    data = load_digits()
    features = data.data.astype(np.float16)
    return features[:1000], data.target[:1000], features[1000:], data.target[1000:]


def standardised(features: np.ndarray, by: np.ndarray) -> np.ndarray:
    by = by.astype(np.float64)
    return (features - by.mean(axis=0)) / (by.std(axis=0) + 1e-5)


def scikit(features: np.ndarray, labels: np.ndarray, l2: float) -> LogisticRegression:
    model = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-8, max_iter=10_000)
    return model.fit(standardised(features, features), labels)


def start(features: np.ndarray, seed: int | None = None) -> fewshot.Linear:
    D = features.shape[1]
    random = np.random.default_rng(seed)
    weights = np.zeros((D, K)) if seed is None else random.normal(size=(D, K))
    return fewshot.Linear(*fewshot.moments(features), weights, weights[0])


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_the_probe_is_scikit_learns_logistic_regression(digits, l2):
    features, labels, test_features, test_labels = digits
    wanted = scikit(features, labels, l2)
    found = probes.probe(*digits, K, l2=l2, devices=jax.devices()[:1])
    weights, bias = found.linear.weights, found.linear.bias
    np.testing.assert_allclose(weights, wanted.coef_.T, atol=5e-3 * np.abs(wanted.coef_).max())
    # One number more or less for all classes changes nothing.
    np.testing.assert_allclose(bias - bias.mean(), wanted.intercept_, atol=2e-2)
    correct = wanted.score(standardised(test_features, features), test_labels) * 797
    assert abs(found.correct - correct) <= 0.002 * 797
    assert found.n == 797
    assert (found.l2, found.dev_correct) == (l2, {})


def test_the_gradient_is_that_of_the_stated_objective_whatever_the_chunks_and_devices(digits):
    features, labels, *_ = digits
    features, labels = features[:93], np.where(np.arange(93) % 9, labels[:93], -1)
    linear, l2 = start(features, seed=0), 0.3
    flat = np.concatenate([linear.weights, linear.bias[None]]).ravel()
    z, real = standardised(features, features), labels >= 0
    logits = z @ linear.weights + linear.bias
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    value = -logs[real, labels[real]].mean() + l2 / 2 * (linear.weights**2).sum()
    residual = (np.exp(logs) - np.eye(K)[labels])[real] / real.sum()
    slope = np.vstack([z[real].T @ residual + l2 * linear.weights, residual.sum(axis=0)])
    for chunk_size, devices in [(8192, 8), (16, 8), (10, 3), (40, 1)]:
        where = {"chunk_size": chunk_size, "devices": jax.devices()[:devices]}
        found = probes.make_objective(features, labels, linear, l2, **where)(flat)
        np.testing.assert_allclose(found[0], value, rtol=1e-6)
        np.testing.assert_allclose(found[1], slope.ravel(), atol=2e-6)


def test_the_best_l2_is_found_on_a_fifth_and_fitted_to_all(digits):
    features, labels, *test = digits
    noise = np.random.default_rng(0).normal(scale=8, size=(300, 64))  # Makes it hard.
    features, labels = (features[:300] + noise).astype(np.float32), labels[:300]
    grid = (1e-2, 10.0, 0.3)
    found = probes.probe(features, labels, *test, K, l2=grid, seed=3, devices=jax.devices()[:1])
    is_dev = fewshot.hold_out(labels, 5, seed=3)
    assert found.dev_n == is_dev.sum()
    assert (np.bincount(labels[is_dev]) == np.bincount(labels) // 5).all()
    z = standardised(features, features)  # Of all, in both fits.
    for l2, correct in found.dev_correct.items():
        model = LogisticRegression(C=1 / (l2 * (~is_dev).sum()), tol=1e-8, max_iter=10_000)
        model.fit(z[~is_dev], labels[~is_dev])
        assert correct == (model.predict(z[is_dev]) == labels[is_dev]).sum()
    assert list(found.dev_correct) == [10.0, 0.3, 1e-2]
    assert found.l2 == max(grid, key=lambda l2: (found.dev_correct[l2], l2))
    assert max(found.dev_correct.values()) < is_dev.sum()
    wanted = scikit(features, labels, found.l2)
    assert abs(found.correct / 797 - wanted.score(standardised(test[0], features), test[1])) < 2e-3


@pytest.mark.slow
def test_a_probe_of_chunks_is_the_probe_of_all(digits):
    features, labels, *test = (each[:200] for each in digits)
    options = {"l2": [1e-1, 1e-2], "devices": jax.devices()[:2]}
    base, cut = (
        probes.probe(features, labels.astype(kind), *test, K, chunk_size=size, **options)
        for size, kind in [(8192, np.int64), (56, np.uint8)]
    )
    assert (cut.correct, cut.dev_correct, cut.l2) == (base.correct, base.dev_correct, base.l2)
    np.testing.assert_allclose(cut.linear.weights, base.linear.weights, atol=1e-3)


def test_constant_features_have_no_weight(digits):
    found = probes.probe(*digits, K, l2=1.0, devices=jax.devices()[:1])
    is_constant = digits[0].std(axis=0) == 0
    assert is_constant.any()
    assert (np.all(found.linear.weights == 0, axis=1) == is_constant).all()


def vote(digits, **options) -> np.ndarray:
    features, labels, test_features, _ = digits
    options = {"neighbours": probes.NEIGHBOURS, "temperature": TEMPERATURE} | options
    return probes.vote(features, labels, test_features, **options)


def test_votes_are_those_of_scikit_learns_neighbours(digits):
    features, labels, test_features, test_labels = (each.astype(np.float64) for each in digits)
    found, counts = vote(digits), probes.knn(*digits, K)
    assert counts.n == 797
    for column, k in enumerate((1, 5, 10, 20, 100, 200)):
        model = KNeighborsClassifier(
            k,
            metric="cosine",
            algorithm="brute",
            weights=lambda distance: np.exp((1 - distance) / TEMPERATURE),
        )
        wanted = model.fit(features, labels.astype(int)).predict(test_features)
        np.testing.assert_array_equal(found[:, column], wanted)
        assert counts.correct[k] == (wanted == test_labels).sum()


@pytest.mark.parametrize(("chunk_size", "devices"), [(300, 8), (64, 3), (8192, 1)])
def test_chunks_and_devices_change_no_vote(digits, chunk_size, devices):
    few = [each[:260] for each in digits]
    where = {"chunk_size": chunk_size, "devices": jax.devices()[:devices]}
    np.testing.assert_array_equal(vote(few, **where), vote(few))


@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_the_first_of_equally_near_and_the_lowest_of_equal_votes_count(chunk_size):
    """Lengths do not matter: all but the third of the training set are equally near."""
    features = np.float32([[1, 0], [2, 0], [0, 1], [3, 0], [4, 0]])
    labels = np.array([2, 1, 0, 1, 2])
    found = probes.vote(
        features,
        labels,
        np.float32([[5, 0], [0, 2]]),
        neighbours=(1, 2, 3, 4, 5, 9),
        temperature=TEMPERATURE,
        chunk_size=chunk_size,
        devices=jax.devices()[:1],
    )
    assert found.tolist() == [[2, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]


def test_more_neighbours_than_examples_are_all_and_a_cold_vote_is_the_nearests():
    features, labels = np.float32([[1, 0], [0, 1], [-1, 0.1]]), np.array([1, 0, 0])
    query = np.float32([[1, 0.1], [0, 0]])
    for temperature, wanted in [(1e-3, 1), (100.0, 0)]:
        found = probes.vote(features, labels, query, neighbours=(2, 3, 50), temperature=temperature)
        assert found[0].tolist() == [1, wanted, wanted]
        assert found[1].tolist() == [0, 0, 0]  # Near to nothing: all votes are equal.


@pytest.fixture(scope="module")
def merge_programs():
    """How a chunk of 24 examples is merged into the nearest of 16, on eight devices."""
    mesh = fewshot.make_mesh()
    own, whole = fewshot.over_examples(mesh), fewshot.replicated(mesh)
    best = (np.zeros((16, 3), np.float32), np.zeros((16, 3), np.int32))
    queries, keys = np.ones((16, 4), np.float16), np.ones((24, 4), np.float16)
    own, whole = (
        jax.device_put((best, queries), own),
        jax.device_put((keys, np.ones(24, np.int32)), whole),
    )
    return probes._merge.lower(*own, *whole, mesh)


def test_no_device_needs_what_another_has_to_find_its_nearest(merge_programs):
    text = merge_programs.compile().as_text()
    assert "f32[2,24]" in text
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all"))


def test_products_are_of_whole_float32(merge_programs):
    mesh, ones = fewshot.make_mesh(), np.ones((8, K), np.float32)
    step = probes._add_chunk.lower(
        ones, ones, ones[0, :7], ones[0, :7], ones[:, :7], np.ones(8, np.int32), mesh
    )
    for program, count in [(merge_programs, 1), (step, 2)]:
        products = re.findall(r"dot_general.*", program.as_text())
        assert len(products) == count
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_wrong_options_and_features_are_refused(digits):
    features, labels, *test = (each[:20] for each in digits)
    for options in ({"neighbours": []}, {"neighbours": [0]}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match=r"neighbours=.* temperature=.* above 0"):
            probes.knn(features, labels, *test, K, **options)
    with pytest.raises(ConfigError, match=r"l2=\[-1.0\]: expected finite numbers above 0"):
        probes.probe(features, labels, *test, K, l2=-1.0)
    with pytest.raises(ConfigError, match="no class has two examples"):
        probes.probe(features[:2], np.array([0, 1]), *test, K)
    damaged = features.copy()
    damaged[4, 2] = np.inf
    for protocol in (probes.probe, probes.knn):
        with pytest.raises(DataError, match=r"training set: the features of example 4 are not"):
            protocol(damaged, labels, *test, K)
        with pytest.raises(DataError, match=r"the label of example .*; expected 0 to 8"):
            protocol(features, labels, *test, 9)
