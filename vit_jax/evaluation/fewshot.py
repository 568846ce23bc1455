"""Few-shot linear evaluation on frozen features (section 4.1).

Regularised least squares in closed form, from the features of k examples of each class to
targets in {-1, +1}. The constants are those of big_vision (`evaluators/fewshot_lsr.py`), with
which the paper's figures were made. Features stay on the host, as float16, float32 or a memory
map; devices receive `chunk_size` examples at a time. Every process of a run computes the same
result on its own devices.

Letters of shapes: N examples   D features   K classes
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import ConfigError, DataError

SHOTS, SEEDS = (1, 5, 10, 25), 3
L2 = 2.0**10
CONSTANT = 100.0  # Feature of the bias; l2 is negligible relative to its square.
EPSILON = 1e-5  # Added to standard deviations.
DEV_PARTS = 3  # One part of the shots selects l2 from a grid.
REFINEMENTS = 2  # Steps after Cholesky in float32; one is enough for l2 = 2^10.
LARGEST_CHANGE = 1e-3  # Relative change of the weights in the last refinement that converges.
CHUNK = 8192  # Examples: 12 MB of 768 features in float16.
EXAMPLES = "examples"


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Results for one number of shots, with one entry for each seed."""

    n: int  # Number of test examples.
    correct: tuple[int, ...]
    l2: tuple[float, ...]

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Top-1 accuracy of each seed."""
        return tuple(correct / self.n for correct in self.correct)

    @property
    def mean(self) -> float:
        """Mean of the accuracies."""
        return float(np.mean(self.accuracy))

    @property
    def std(self) -> float:
        """Sample standard deviation of the accuracies; 0 for one seed."""
        return float(np.std(self.accuracy, ddof=1)) if len(self.correct) > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear classifier with logits (features - mean) / deviation @ weights + bias."""

    mean: np.ndarray  # D
    deviation: np.ndarray  # D, including EPSILON.
    weights: np.ndarray  # D K
    bias: np.ndarray  # K

    def predict(self, features, *, chunk_size: int = CHUNK, devices=None) -> np.ndarray:
        """Returns the class with the largest logit, the first of equal ones: features N D -> N."""
        mesh = make_mesh(devices)
        parameters = [np.asarray(array, np.float32) for array in vars(self).values()]
        parameters = jax.device_put(parameters, replicated(mesh))
        chunks = stream(mesh, chunk_size, features)
        found = [np.asarray(_predict(*parameters, chunk)) for chunk in chunks]
        return np.concatenate(found)[: len(features)]


@jax.jit
def _predict(mean, deviation, weights, bias, features):
    return jnp.argmax(logits_of(standardise(features, mean, deviation), weights, bias), axis=-1)


def standardise(features: jax.Array, mean: jax.Array, deviation: jax.Array) -> jax.Array:
    """Returns (features - mean) / deviation in float32: N D, D, D -> N D."""
    return (features.astype(jnp.float32) - mean[None]) / deviation[None]


def logits_of(z: jax.Array, weights: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns logits: N D, D K, K -> N K, in full float32 precision on every device."""
    return jnp.matmul(z, weights, precision="highest") + bias[None]


def fewshot(
    train_features,
    train_labels,
    test_features,
    test_labels,
    num_classes: int,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    l2: float | Sequence[float] = L2,
    float64: bool = False,
    chunk_size: int = CHUNK,
    devices=None,
) -> dict[int, FewShot]:
    """Counts correct predictions on the test set, for every number of shots and every seed.

    Args:
      train_features: N D; `draw_shots` selects examples. test_features are N D, too.
      train_labels: N, from 0 to num_classes - 1. A class without training examples has
        targets of -1 only and is rarely predicted.
      l2: penalty; a sequence is a grid. Each value is fitted to two thirds of the shots and
        scored on the rest; the best value, the largest of equal ones, is fitted to all shots.
      float64: solve on the host in float64 instead of on the devices in float32.

    Raises DataError for invalid features or labels, ConfigError for invalid options.
    """
    train_labels, test_labels = (np.asarray(each, np.int64) for each in (train_labels, test_labels))
    check(train_features, train_labels, num_classes, "training set")
    check(test_features, test_labels, num_classes, "test set", width=train_features.shape[1])
    grid = check_grid(l2)
    if seeds < 1 or not shots or min(shots) < 1:
        raise ConfigError(f"shots={list(shots)}, seeds={seeds}: expected numbers of at least 1.")
    options = {"float64": float64, "devices": devices}

    def run(k: int, seed: int) -> tuple[int, float]:
        drawn = draw_shots(train_labels, k, seed)
        features, labels = np.asarray(train_features[drawn]), train_labels[drawn]
        best = grid[0]
        if len(grid) > 1:
            best = _choose(features, labels, num_classes, grid, k, seed, **options)
        linear = fit(features, labels, num_classes, best, **options)
        found = linear.predict(test_features, chunk_size=chunk_size, devices=devices)
        return int((found == test_labels).sum()), best

    results = {}
    for k in shots:
        correct, chosen = zip(*(run(k, seed) for seed in range(seeds)))
        results[k] = FewShot(len(test_labels), correct, chosen)
    return results


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Returns the indices of the first `shots` examples of every class, in random order.

    The generator `numpy.random.default_rng(seed)` permutes the ascending indices of each class, in
    the order of the labels. With the same seed, fewer shots are a subset of more shots. A class
    with fewer examples gives all of them.
    """
    return np.concatenate([members[:shots] for members in _shuffled_classes(labels, seed)])


def hold_out(labels: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """Returns a mask N of the examples that are held out.

    They are one of `parts` parts of every class, rounded down but at least one example, in the
    order of `draw_shots`. The only example of a class is never held out.
    """
    is_dev = np.zeros(len(labels), bool)
    for members in _shuffled_classes(labels, seed):
        count = max(1, len(members) // parts) if len(members) > 1 else 0
        is_dev[members[:count]] = True
    return is_dev


def _shuffled_classes(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order])) + 1
    return [random.permutation(members) for members in np.split(order, ends)]


def _choose(features, labels, num_classes: int, grid, shots: int, seed: int, **options) -> float:
    """Returns the l2 of a grid that is best on the held-out part of the shots."""
    is_dev = hold_out(labels, DEV_PARTS, seed)
    if not is_dev.any():
        raise ConfigError(
            f"l2={list(grid)}: with {shots} shots, no class has a second example to hold out for "
            "selecting l2; give a single value of l2, or more shots."
        )

    def score(l2: float) -> tuple[int, float]:
        linear = fit(features[~is_dev], labels[~is_dev], num_classes, l2, **options)
        found = linear.predict(features[is_dev], devices=options["devices"])
        return int((found == labels[is_dev]).sum()), l2

    return max(map(score, grid))[1]


def fit(features, labels: np.ndarray, num_classes: int, l2: float, **options) -> Linear:
    """Fits least squares from standardised features N D to targets +1 for the label and -1 else.

    Args:
      **options: options of `solve_ridge`.
    """
    mean, deviation = moments(features)
    targets = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
    weights, bias = solve_ridge((features - mean) / deviation, targets, l2, **options)
    return Linear(mean, deviation, weights, bias)


def solve_ridge(
    features: np.ndarray, targets: np.ndarray, l2: float, *, float64: bool = False, devices=None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights D K and bias K that minimise |[X c] W - Y|^2 + l2 |W|^2, c = 100.

    Args:
      features: X, N D, with columns of mean 0. The constant feature c, whose row of W times c is
        the bias, is then orthogonal to all others and is solved separately; it is what makes the
        problem ill-conditioned, with c^2 N / l2.
      targets: Y, N K.
      float64: solve on the host in float64 instead of on the devices in float32.
    """
    bias = CONSTANT**2 * targets.sum(axis=0) / (CONSTANT**2 * len(targets) + l2)
    targets = targets - targets.mean(axis=0)  # Orthogonal to X: removed before rounding.
    if float64:
        X, Y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
        M, right = (X, X.T @ Y) if len(X) >= X.shape[1] else (X.T, Y)
        solution = np.linalg.solve(M.T @ M + l2 * np.eye(M.shape[1]), right)
        return (solution if M is X else X.T @ solution), bias
    mesh = make_mesh(devices)
    X = _pad(_pad(np.asarray(features, np.float32), mesh.size).T, mesh.size).T
    Y = _pad(np.asarray(targets, np.float32), mesh.size)
    X, Y = jax.device_put((X, Y), over_examples(mesh))
    weights, has_converged = jax.device_get(_solve(X, Y, np.float32(l2), mesh))
    if not has_converged:
        raise ConfigError(f"l2={l2:g} is too small for these features; use a larger value.")
    return weights[: features.shape[1]], bias.astype(np.float32)


@functools.partial(jax.jit, static_argnames="mesh")
def _solve(X: jax.Array, Y: jax.Array, l2: jax.Array, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Returns (X'X + l2)^-1 X'Y, or X'(XX' + l2)^-1 Y if that is smaller, and if it converged.

    X may be padded: rows of zeros change nothing, and columns of zeros get weights of 0.
    """
    with jax.default_matmul_precision("highest"):
        M, right = (X, X.T @ Y) if X.shape[0] >= X.shape[1] else (X.T, Y)
        factor = cho_factor(gram(M, mesh) + l2 * jnp.eye(M.shape[1]))
        solution = cho_solve(factor, right)
        for _ in range(REFINEMENTS):  # With the residual of M, not of its rounded Gram matrix.
            change = cho_solve(factor, right - M.T @ (M @ solution) - l2 * solution)
            solution += change
        # False if Cholesky has failed and everything is NaN.
        has_converged = jnp.linalg.norm(change) <= LARGEST_CHANGE * jnp.linalg.norm(solution)
        return (solution if M is X else X.T @ solution), has_converged


def gram(M: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns M'M, with its rows sharded over the devices."""
    return jax.lax.with_sharding_constraint(M.T @ M, over_examples(mesh))


def moments(features, chunk_size: int = CHUNK) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation + EPSILON of each feature in float64: N D -> D, D.

    One pass; chunks are combined as in Chan, Golub and LeVeque (1983). The deviation of a constant
    feature is exactly 0, and so are its standardised values.
    """
    count, mean, squares = 0, 0.0, 0.0
    for start in range(0, len(features), chunk_size):
        part = np.asarray(features[start : start + chunk_size], np.float64)
        centre, total = part.mean(axis=0), count + len(part)
        away = centre - mean
        squares += ((part - centre) ** 2).sum(axis=0) + away**2 * (count * len(part) / total)
        mean += away * (len(part) / total)
        count = total
    return mean, np.sqrt(squares / count) + EPSILON


def check(features, labels, num_classes: int, name: str, *, width: int | None = None) -> None:
    """Raises DataError unless features are N D (D = width), finite, with valid labels N."""
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise DataError(
            f"{name}: features have the shape {list(features.shape)} and labels "
            f"{list(labels.shape)}; expected [N, D] and [N], with N at least 1."
        )
    if width is not None and features.shape[1] != width:
        raise DataError(f"{name}: {features.shape[1]} features; the training set has {width}.")
    is_wrong = (labels < 0) | (labels >= num_classes)
    if is_wrong.any():
        i = int(is_wrong.argmax())
        raise DataError(
            f"{name}: the label of example {i} is {labels[i]}; expected 0 to {num_classes - 1}."
        )
    for start in range(0, len(features), CHUNK):
        is_finite = np.isfinite(features[start : start + CHUNK]).all(axis=1)
        if not is_finite.all():
            i = start + int(is_finite.argmin())
            raise DataError(f"{name}: the features of example {i} are not finite.")


def check_grid(l2: float | Sequence[float]) -> list[float]:
    """Returns the values in descending order; raises ConfigError unless all are positive."""
    grid = sorted({float(value) for value in np.atleast_1d(l2)}, reverse=True)
    if not grid or not np.isfinite(grid).all() or grid[-1] <= 0:
        raise ConfigError(f"l2={np.atleast_1d(l2).tolist()}: expected finite numbers above 0.")
    return grid


def make_mesh(devices=None) -> Mesh:
    """Returns a mesh of one axis over all devices of this process, or over the given ones."""
    return Mesh(np.array(jax.local_devices() if devices is None else devices), (EXAMPLES,))


def over_examples(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the first dimension over the devices."""
    return NamedSharding(mesh, PartitionSpec(EXAMPLES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on all devices."""
    return NamedSharding(mesh, PartitionSpec())


def stream(mesh: Mesh, chunk_size: int, array, sharding=None) -> Iterator[jax.Array]:
    """Yields chunks of an array on the devices; the last chunk is padded with zeros.

    The next chunk is transferred while one is in use, so at most two are on the devices.
    """
    sharding = over_examples(mesh) if sharding is None else sharding
    size = -(-min(chunk_size, len(array)) // mesh.size) * mesh.size
    ready = None
    for start in range(0, len(array), size):
        following = jax.device_put(_pad(np.asarray(array[start : start + size]), size), sharding)
        if ready is not None:
            yield ready
        ready = following
    yield ready


def _pad(array: np.ndarray, multiple: int) -> np.ndarray:
    """Appends rows of zeros up to a multiple of rows."""
    missing = -len(array) % multiple
    return np.pad(array, ((0, missing), *[(0, 0)] * (array.ndim - 1))) if missing else array
