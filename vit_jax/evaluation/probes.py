"""Linear probe and nearest neighbours on frozen features.

Both stream the features: devices hold chunks of them, and D x K arrays for the probe.

Letters of shapes: N examples   D features   K classes   T test examples of a chunk
C training examples of a chunk   k neighbours
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.errors import ConfigError
from vit_jax.evaluation import fewshot
from vit_jax.evaluation.fewshot import CHUNK, Linear
from vit_jax.tasks import losses

L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
DEV_PARTS = 5  # One part of the training set selects l2 from the grid.
MAX_ITERATIONS = 1000  # Of L-BFGS for one value of l2.
# The objective is known to a relative precision of 1e-7 in float32.
FUNCTION_TOLERANCE, GRADIENT_TOLERANCE = 1e-10, 1e-6

NEIGHBOURS = (1, 5, 10, 20, 100, 200)
TEMPERATURE = 0.07  # Of InstDisc (arXiv:1805.01978) and DINO (arXiv:2104.14294).


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted probe and its results on the test set."""

    n: int  # Number of test examples.
    correct: int
    l2: float
    dev_n: int
    dev_correct: dict[float, int]  # By l2, each fitted to the rest of the training set.
    linear: Linear


def probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    num_classes: int,
    *,
    l2: float | Sequence[float] = L2_GRID,
    seed: int = 0,
    chunk_size: int = CHUNK,
    devices=None,
) -> Probe:
    """Fits multinomial logistic regression, with the l2 that is best on held-out examples.

    Args:
      train_features: N D; all features are standardised by the mean and standard deviation of
        the training set. test_features are N D, too.
      train_labels: N, from 0 to num_classes - 1.
      l2: penalties of the objective of `fit`; the largest of equally good ones is used. A single
        value is used as it is.
      seed: seed of the held-out part, a fifth of every class.

    Raises DataError for invalid features or labels, ConfigError for invalid options.
    """
    train_labels, test_labels = (np.asarray(each, np.int64) for each in (train_labels, test_labels))
    fewshot.check(train_features, train_labels, num_classes, "training set")
    width = train_features.shape[1]
    fewshot.check(test_features, test_labels, num_classes, "test set", width=width)
    grid = fewshot.check_grid(l2)
    options = {"chunk_size": chunk_size, "devices": devices}
    mean, deviation = fewshot.moments(train_features, chunk_size)
    linear = Linear(mean, deviation, np.zeros((width, num_classes)), np.zeros(num_classes))
    is_dev = fewshot.hold_out(train_labels, DEV_PARTS, seed)
    dev_correct, best = {}, (-1, linear, grid[0])
    if len(grid) > 1:
        if not is_dev.any():
            raise ConfigError(f"l2={grid}: no class has two examples to select l2 on; give one l2.")
        known = np.where(is_dev, -1, train_labels)
        for value in grid:
            linear = fit(train_features, known, linear, value, **options)
            found = linear.predict(train_features, **options)
            dev_correct[value] = int((found == train_labels)[is_dev].sum())
            best = max(best, (dev_correct[value], linear, value), key=lambda each: each[0])
    _, linear, value = best
    linear = fit(train_features, train_labels, linear, value, **options)
    correct = int((linear.predict(test_features, **options) == test_labels).sum())
    return Probe(len(test_labels), correct, value, int(is_dev.sum()), dev_correct, linear)


def fit(features, labels: np.ndarray, start: Linear, l2: float, **options) -> Linear:
    """Minimises mean(cross-entropy) + l2 / 2 |weights|^2 by L-BFGS, starting from `start`.

    The bias has no penalty. For N labels this is scikit-learn's LogisticRegression with
    C = 1 / (l2 N); the mean makes l2 independent of N.

    Args:
      labels: N; examples with label -1 are ignored.
      **options: options of `make_objective`.
    """
    from scipy import optimize  # Takes half a second to import.

    objective = make_objective(features, labels, start, l2, **options)
    found = optimize.minimize(
        objective,
        np.concatenate([start.weights, start.bias[None]]).astype(np.float64).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": MAX_ITERATIONS,
            "ftol": FUNCTION_TOLERANCE,
            "gtol": GRADIENT_TOLERANCE,
        },
    )
    weights = found.x.reshape(-1, len(start.bias))
    return dataclasses.replace(start, weights=weights[:-1], bias=weights[-1])


def make_objective(
    features, labels: np.ndarray, start: Linear, l2: float, *, chunk_size: int, devices=None
):
    """Returns the function from flat weights and bias, (D + 1) K, to (objective, gradient).

    Devices sum over each chunk in float32; the host adds the losses of chunks in float64, because
    L-BFGS compares objectives that differ little.
    """
    mesh = fewshot.make_mesh(devices)
    everywhere = fewshot.replicated(mesh)
    D, K = start.weights.shape
    stats = jax.device_put(
        [np.asarray(each, np.float32) for each in (start.mean, start.deviation)], everywhere
    )
    count = int((labels >= 0).sum())
    numbers = labels.astype(np.int32) + 1  # 0 is the padding of the last chunk.

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = jax.device_put(flat.reshape(D + 1, K).astype(np.float32), everywhere)
        gradient = jax.device_put(np.zeros((D + 1, K), np.float32), everywhere)
        loss = 0.0
        chunks = (fewshot.stream(mesh, chunk_size, each) for each in (features, numbers))
        for each in zip(*chunks):
            more, gradient = _add_chunk(gradient, weights, *stats, *each, mesh)
            loss += float(more)
        penalised = flat.copy()
        penalised[-K:] = 0  # The bias has no penalty.
        slope = np.asarray(gradient, np.float64).ravel() / count + l2 * penalised
        return loss / count + l2 / 2 * float(penalised @ penalised), slope

    return objective


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _add_chunk(gradient, weights, mean, deviation, features, numbers, mesh: Mesh):
    """Returns the summed loss of a chunk and the gradient with that of the chunk added."""
    z = fewshot.standardise(features, mean, deviation)
    targets = losses.smooth_labels(numbers - 1, weights.shape[1])

    def total(weights):
        logits = fewshot.logits_of(z, weights[:-1], weights[-1])
        return losses.softmax_cross_entropy(logits, targets).sum()

    loss, more = jax.value_and_grad(total)(weights)
    return jax.lax.with_sharding_constraint((loss, gradient + more), fewshot.replicated(mesh))


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Results of nearest neighbours on the test set."""

    n: int  # Number of test examples.
    correct: dict[int, int]  # By k.


def knn(
    train_features,
    train_labels,
    test_features,
    test_labels,
    num_classes: int,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    chunk_size: int = CHUNK,
    devices=None,
) -> Neighbours:
    """Counts correct votes on the test set for every number of neighbours.

    Raises DataError for invalid features or labels, ConfigError for invalid options.
    """
    train_labels, test_labels = (np.asarray(each, np.int64) for each in (train_labels, test_labels))
    fewshot.check(train_features, train_labels, num_classes, "training set")
    width = train_features.shape[1]
    fewshot.check(test_features, test_labels, num_classes, "test set", width=width)
    if not neighbours or min(neighbours) < 1 or not temperature > 0:
        raise ConfigError(
            f"neighbours={list(neighbours)}, temperature={temperature:g}: expected "
            "numbers of neighbours of at least 1 and a temperature above 0."
        )
    found = vote(
        train_features,
        train_labels,
        test_features,
        neighbours=tuple(neighbours),
        temperature=temperature,
        chunk_size=chunk_size,
        devices=devices,
    )
    correct = {k: int((found[:, i] == test_labels).sum()) for i, k in enumerate(neighbours)}
    return Neighbours(len(test_labels), correct)


def vote(
    train_features,
    train_labels: np.ndarray,
    test_features,
    *,
    neighbours: tuple[int, ...],
    temperature: float,
    chunk_size: int = CHUNK,
    devices=None,
) -> np.ndarray:
    """Returns the classes that the k nearest training examples vote for, one column for each k.

    Neighbours have the highest cosine similarity s, and a vote has the weight
    exp(s / temperature). The first of equally near examples in the training set is used, and the
    lowest label of equal votes. If there are fewer than k examples, all vote.
    """
    mesh = fewshot.make_mesh(devices)
    numbers = np.asarray(train_labels, np.int32) + 1  # 0 is the padding of the last chunk.
    most = min(max(neighbours), len(numbers))

    def nearest(queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns similarities T k, descending, and the label numbers T k of the neighbours."""
        T = queries.shape[0]
        best = (np.full((T, most), -np.inf, np.float32), np.zeros((T, most), np.int32))
        best = jax.device_put(best, fewshot.over_examples(mesh))
        everywhere = fewshot.replicated(mesh)
        chunks = (
            fewshot.stream(mesh, chunk_size, each, everywhere) for each in (train_features, numbers)
        )
        for keys, number in zip(*chunks):
            best = jax.block_until_ready(_merge(best, queries, keys, number, mesh))
        return best

    found = [
        np.asarray(_vote(*nearest(queries), neighbours, temperature))
        for queries in fewshot.stream(mesh, chunk_size, test_features)
    ]
    return np.concatenate(found)[: len(test_features)]


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _merge(best, queries: jax.Array, keys: jax.Array, numbers: jax.Array, mesh: Mesh):
    """Merges the nearest so far with keys C D of label numbers C, for queries T D."""

    def merge(best, queries, keys, numbers):
        near, whose = best
        k = near.shape[1]
        similarity = jnp.matmul(_unit(queries), _unit(keys).T, precision="highest")  # T C
        similarity = jnp.where(numbers[None] > 0, similarity, -jnp.inf)
        # `top_k` returns the first of equal values, which are those of earlier chunks.
        near, place = jax.lax.top_k(jnp.concatenate([near, similarity], axis=1), k)
        earlier = jnp.take_along_axis(whose, jnp.minimum(place, k - 1), axis=1)
        later = numbers[jnp.maximum(place - k, 0)]
        return near, jnp.where(place < k, earlier, later)

    # Each device handles its own queries; without shard_map `top_k` gathers the similarities.
    own, every = fewshot.over_examples(mesh).spec, fewshot.replicated(mesh).spec
    specs = {"in_specs": (own, own, every, every), "out_specs": own}
    return jax.shard_map(merge, mesh=mesh, **specs)(best, queries, keys, numbers)


def _unit(features: jax.Array) -> jax.Array:
    """Scales rows to length 1; rows of zeros are unchanged."""
    features = features.astype(jnp.float32)
    length = jnp.linalg.norm(features, axis=1, keepdims=True)
    return features / jnp.where(length > 0, length, 1)


@functools.partial(jax.jit, static_argnames="neighbours")
def _vote(near: jax.Array, numbers: jax.Array, neighbours: tuple[int, ...], temperature: float):
    """Returns the label with most votes of the first k, for each k: T k -> T len(neighbours)."""
    weights = jnp.exp((near - near[:, :1]) / temperature)  # Relative to the nearest.

    def add(j: jax.Array, votes: jax.Array) -> jax.Array:
        """Adds the vote of neighbour j to all neighbours with its label; needs no T x K array."""
        is_for = numbers == numbers[:, j, None]
        return votes + jnp.where(is_for, weights[:, j, None], 0)

    votes, counted, winners = jnp.zeros_like(near), 0, {}
    for k in sorted(min(each, near.shape[1]) for each in neighbours):
        votes, counted = jax.lax.fori_loop(counted, k, add, votes), k
        is_winner = votes == votes.max(axis=1, keepdims=True)
        lowest = jnp.where(is_winner, numbers, jnp.iinfo(jnp.int32).max).min(axis=1)
        winners[k] = lowest - 1
    return jnp.stack([winners[min(k, near.shape[1])] for k in neighbours], axis=1)
