"""Few-shot least squares on frozen features, beside float64 and scikit-learn."""

import re

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from vit_jax.errors import ConfigError, DataError
from vit_jax.evaluation import fewshot
from vit_jax.evaluation.fewshot import draw_shots, hold_out, solve_ridge

K, L2 = 5, 2.0**10
REGIMES = {"more examples": (203, 37), "fewer examples": (45, 131)}
LABELS = np.array([2, 0, 1, 0, 2, 0, 0, 3, 2, 0])


def problem(N: int, D: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features that hang together, and targets of -1 and 1, of which none is 4."""
    random = np.random.default_rng(N)
    features = random.normal(size=(N, 7)) @ random.normal(size=(7, D)) + random.normal(size=(N, D))
    labels = random.integers(0, K - 1, N)
    targets = np.where(labels[:, None] == np.arange(K), 1.0, -1.0)
    return (features - features.mean(axis=0)) / features.std(axis=0), targets


def with_constant(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.full((len(features), 1), 100.0)], axis=1)


def normal_equations(features: np.ndarray, targets: np.ndarray, l2: float):
    """Weights and bias, the 100 an explicit feature, by the least squares of stacked rows."""
    X = with_constant(features)
    rows = np.concatenate([X, np.sqrt(l2) * np.eye(X.shape[1])])
    right = np.concatenate([targets, np.zeros((X.shape[1], K))])
    W = np.linalg.lstsq(rows, right)[0]
    return W[:-1], 100 * W[-1]


def assert_near(found, wanted, relative: float) -> None:
    for a, b in zip(found, wanted):
        assert np.abs(a - b).max() <= relative * np.abs(b).max()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("l2", [L2, 1.0])
def test_the_weights_are_those_of_float64_with_a_feature_of_100(regime, devices, l2):
    features, targets = problem(*REGIMES[regime])
    found = solve_ridge(features, targets, l2, devices=jax.devices()[:devices])
    wanted = normal_equations(features, targets, l2)
    assert_near(found, wanted, 1e-5)
    by_found, by_wanted = (features @ weights + bias for weights, bias in (found, wanted))
    np.testing.assert_array_equal(by_found.argmax(axis=1), by_wanted.argmax(axis=1))


@pytest.mark.parametrize("regime", REGIMES)
def test_the_weights_are_scikit_learns(regime):
    features, targets = problem(*REGIMES[regime])
    ridge = Ridge(alpha=L2, fit_intercept=False, solver="svd")
    coefficients = ridge.fit(with_constant(features), targets).coef_.T
    wanted = coefficients[:-1], 100 * coefficients[-1]
    assert_near(solve_ridge(features, targets, L2), wanted, 1e-5)
    assert_near(solve_ridge(features, targets, L2, float64=True), wanted, 1e-8)


def test_the_gram_matrix_is_cut_along_its_rows():
    mesh = fewshot.make_mesh()
    for shape in [(64, 16), (16, 64)]:
        M = jax.device_put(np.ones(shape, np.float32), fewshot.over_examples(mesh))
        M = M if shape[0] > shape[1] else M.T
        found = jax.jit(fewshot.gram, static_argnames="mesh")(M, mesh=mesh)
        assert found.shape == (16, 16)
        assert found.sharding.shard_shape(found.shape) == (2, 16)


def test_products_are_of_whole_float32():
    mesh = fewshot.make_mesh()
    X, Y = np.ones((16, 8), np.float32), np.ones((16, K), np.float32)
    text = fewshot._solve.lower(X, Y, np.float32(1), mesh).as_text()
    products = re.findall(r"dot_general.*", text)
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_too_small_a_penalty_for_float32_is_refused_and_float64_takes_it():
    features, targets = problem(45, 131)
    with pytest.raises(ConfigError, match="l2=1e-06 is too small for these features"):
        solve_ridge(features * 1e3, targets, 1e-6)
    weights, _ = solve_ridge(features * 1e3, targets, 1e-6, float64=True)
    assert np.isfinite(weights).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shots", [1, 2, 25])
def test_shots_are_the_first_of_a_permutation_of_each_class_in_turn(shots, seed):
    random, wanted = np.random.default_rng(seed), []
    for label in range(4):
        members = [i for i, each in enumerate(LABELS) if each == label]
        wanted += list(random.permutation(members))[:shots]
    np.testing.assert_array_equal(draw_shots(LABELS, shots, seed), wanted)


def test_a_draw_is_known_by_its_seed():
    assert draw_shots(LABELS, 2, seed=0).tolist() == [5, 9, 2, 8, 0, 7]
    labels = np.repeat(np.arange(10), 40)
    for shots in (1, 5, 10, 25):
        drawn = draw_shots(labels, shots, seed=0)
        assert np.bincount(labels[drawn]).tolist() == [shots] * 10
        assert len(set(drawn)) == 10 * shots
        assert set(drawn) <= set(draw_shots(labels, 40, seed=0))
    assert draw_shots(labels, 5, seed=0).tolist() != draw_shots(labels, 5, seed=1).tolist()


def test_few_shots_are_a_part_of_more():
    labels = np.repeat(np.arange(3), 9)
    assert set(draw_shots(labels, 2, seed=4)) < set(draw_shots(labels, 5, seed=4))


def test_the_dev_part_is_a_share_of_each_class_but_never_all():
    labels = np.repeat([0, 1, 2, 3], [1, 2, 5, 9])
    for seed in range(3):
        is_dev = hold_out(labels, 3, seed)
        assert np.bincount(labels[is_dev], minlength=4).tolist() == [0, 1, 1, 3]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, ...]:
    """Train and test features, 64 raw pixels of which some are constant, and labels."""
    data = load_digits()
    features = data.data.astype(np.float16)
    return features[:1000], data.target[:1000], features[1000:], data.target[1000:]


def by_hand(digits, shots: int, seed: int, l2: float) -> int:
    """The protocol in float64 by the normal equations with a feature of 100."""
    features, labels, test_features, test_labels = (each.astype(np.float64) for each in digits)
    drawn = draw_shots(labels.astype(int), shots, seed)
    mean, deviation = features[drawn].mean(axis=0), features[drawn].std(axis=0) + 1e-5
    X = with_constant((features[drawn] - mean) / deviation)
    Y = 2 * np.eye(10)[labels[drawn].astype(int)] - 1
    W = np.linalg.solve(X.T @ X + l2 * np.eye(65), X.T @ Y)
    scores = with_constant((test_features - mean) / deviation) @ W
    return int((scores.argmax(axis=1) == test_labels).sum())


@pytest.fixture(scope="module")
def found(digits) -> dict[int, fewshot.FewShot]:
    return fewshot.fewshot(*digits, 10)


def test_the_protocol_on_digits_is_that_by_hand(digits, found):
    assert list(found) == [1, 5, 10, 25]
    for shots, result in found.items():
        assert result.n == 797
        assert result.correct == tuple(by_hand(digits, shots, seed, L2) for seed in range(3))
        assert result.l2 == (L2,) * 3
    assert found[25].mean > 0.8 > found[1].mean
    accuracy = [correct / 797 for correct in found[5].correct]
    assert found[5].mean == pytest.approx(sum(accuracy) / 3)
    assert found[5].std == pytest.approx(np.std(accuracy) * np.sqrt(3 / 2))


def test_neither_chunks_nor_devices_nor_float64_change_a_count(digits, found):
    for options in ({"chunk_size": 50, "devices": jax.devices()[:3]}, {"float64": True}):
        assert fewshot.fewshot(*digits, 10, shots=[5], **options) == {5: found[5]}


def test_the_best_l2_of_a_grid_is_found_on_a_third_and_fitted_to_all(digits):
    grid, shots = [1e2, 1e7, 1e4], 10
    found = fewshot.fewshot(*digits, 10, shots=[shots], seeds=1, l2=grid)[shots]
    drawn = draw_shots(digits[1], shots, 0)
    is_dev = hold_out(digits[1][drawn], 3, 0)
    assert is_dev.sum() == 30
    rest, dev = drawn[~is_dev], drawn[is_dev]
    small = (digits[0][rest], digits[1][rest], digits[0][dev], digits[1][dev])
    judged = {l2: by_hand(small, shots, 0, l2) for l2 in grid}
    best = max(grid, key=lambda l2: (judged[l2], l2))
    assert found.l2 == (best,)
    assert found.correct == (by_hand(digits, shots, 0, best),)


def test_one_shot_cannot_judge_a_grid(digits):
    with pytest.raises(
        ConfigError, match=r"with 1 shots, no class has a second example.*single value of l2"
    ):
        fewshot.fewshot(*digits, 10, shots=[1], l2=[1.0, 2.0])


def test_a_class_without_an_example_is_no_hindrance(digits):
    features, labels, *test = digits
    few = (features[labels != 3], labels[labels != 3], *test)
    found = fewshot.fewshot(*few, 10, shots=[25], seeds=1)[25]
    assert found.correct == (by_hand(few, 25, 0, L2),)
    assert 0.6 < found.mean < 0.9


def test_a_single_class_is_predicted_always():
    features, labels = np.random.default_rng(0).normal(size=(6, 3)), np.full(4, 1)
    linear = fewshot.fit(features[:4], labels, 3, L2)
    assert linear.predict(features).tolist() == [1] * 6
    np.testing.assert_allclose(linear.bias, np.array([-4, 4, -4]) / (4 + L2 / 1e4), rtol=1e-6)


def test_a_constant_feature_has_no_say():
    features = np.float16([[0.1, 1], [0.1, 2], [0.1, 3]])
    mean, deviation = fewshot.moments(features)
    np.testing.assert_array_equal((features - mean)[:, 0], 0)
    linear = fewshot.fit(features, np.array([0, 1, 1]), 2, 1.0)
    np.testing.assert_array_equal(linear.weights[0], 0)
    assert deviation[0] == 1e-5


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_moments_of_chunks_are_those_of_all(chunk_size):
    features = np.random.default_rng(0).normal(3, 2, (33, 4)).astype(np.float32)
    mean, deviation = fewshot.moments(features, chunk_size)
    wanted = features.astype(np.float64)
    np.testing.assert_allclose(mean, wanted.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(deviation, wanted.std(axis=0) + 1e-5, rtol=1e-13)


def test_features_are_read_from_a_memory_map(digits, found, tmp_path):
    np.save(tmp_path / "features.npy", digits[0])
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert fewshot.fewshot(mapped, *digits[1:], 10, shots=[25])[25] == found[25]


def test_features_and_labels_that_cannot_be_are_refused():
    features, labels = np.ones((3, 2), np.float16), np.array([0, 1, 1])
    damaged = features.copy()
    damaged[2, 1] = np.nan
    cases = [
        ((damaged, labels, 2, "test set"), "test set: the features of example 2 are not fini"),
        ((features, labels, 1, "x"), "x: the label of example 1 is 1; expected 0 to 0"),
        ((features, labels - 1, 2, "x"), "x: the label of example 0 is -1; expected 0 to 1"),
        ((features, labels[:2], 2, "x"), r"features have the shape \[3, 2\] and labels \[2\]"),
        ((features[:0], labels[:0], 2, "x"), "N at least 1"),
    ]
    for arguments, words in cases:
        with pytest.raises(DataError, match=words):
            fewshot.check(*arguments)
    with pytest.raises(DataError, match="test set: 1 features; the training set has 2"):
        fewshot.fewshot(features, labels, features[:, :1], labels, 2)
    for options in ({"l2": 0.0}, {"l2": []}, {"shots": [0]}, {"seeds": 0}):
        with pytest.raises(ConfigError):
            fewshot.fewshot(features, labels, features, labels, 2, **options)
