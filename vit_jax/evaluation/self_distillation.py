"""Measures of collapse on a split, for a model of self-distillation; it has no accuracy or loss."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.evaluation.scoring import score_all
from vit_jax.evaluation.spectrum import deviation
from vit_jax.models.dino_vit import prototypes
from vit_jax.tasks.prototypes import entropy

ROWS = 256  # Examples whose logits are in memory.


@dataclasses.dataclass(frozen=True)
class CollapseScores:
    """Measures of a split; the last three are those of the teacher's targets.

    Attributes:
      n: number of examples.
      feature_std: deviation of features of norm 1, times sqrt(D): near 1, or 0 if all are equal.
      teacher_entropy: mean entropy of the targets over ln K: 1 if they are uniform.
      mean_entropy: entropy of the mean target over ln K: 0 if all are one prototype.
      prototypes_used: number of prototypes that are the largest of a target.
      num_bad: images of the split that could not be read.
    """

    n: int
    feature_std: float
    teacher_entropy: float
    mean_entropy: float
    prototypes_used: int
    num_bad: int = 0

    def means(self) -> dict:
        """Returns the measures by name, and `bad_images`, if images could not be read."""
        means = dataclasses.asdict(self)
        num_bad = means.pop("num_bad")
        return means | ({"bad_images": num_bad} if num_bad else {})


def score_examples(
    score: Callable, params, source, recipe: Callable, **options
) -> CollapseScores | None:
    """Scores every example of a source once; returns None if it was stopped.

    The targets have the last temperature, and the mean logits of the split as their centre.

    Args:
      score: the jitted function of `scoring.make_score`, replicated on every host.
      **options: options of `scoring.score_all`.
    """
    columns = score_all(score, params, source, recipe, **options)
    if columns is None:
        return None
    last_layer = params["class_head"]["last_layer"]
    return CollapseScores(
        n=len(columns["features"]),
        feature_std=deviation(columns["features"]),
        **target_usage(last_layer, columns["bottleneck"], options["sharding"]),
        num_bad=len(source) - len(columns["features"]),
    )


def target_usage(last_layer: dict, inputs: np.ndarray, sharding) -> dict:
    """Returns `teacher_entropy`, `mean_entropy` and `prototypes_used` of targets.

    Args:
      last_layer: parameters of `dino_vit.Prototypes`.
      inputs: N b, inputs of the last layer over the temperature. Its products with the prototypes
        are linear, so their centre is that of the inputs.
      sharding: a sharding of the mesh of the parameters.
    """
    total, entropies, used = 0.0, 0.0, False
    centred = inputs - inputs.mean(axis=0)
    for start in range(0, len(inputs), ROWS):
        rows = centred[start : start + ROWS]
        padded = np.pad(rows, ((0, ROWS - len(rows)), (0, 0)))
        weights = (np.arange(ROWS) < len(rows)).astype(np.float32)
        parts = jax.device_get(_sums(getattr(sharding, "mesh", None))(last_layer, padded, weights))
        total, entropies, used = total + parts[0], entropies + parts[1], used | parts[2]
    return {
        "teacher_entropy": float(entropies / len(inputs)),
        "mean_entropy": float(entropy(total / len(inputs))),
        "prototypes_used": int(used.sum()),
    }


@functools.cache
def _sums(mesh) -> Callable:
    """Returns a function of rows that sums targets K, sums entropies, and finds argmaxes K."""

    def sums(last_layer: dict, inputs: jax.Array, weights: jax.Array) -> tuple:
        logits = jnp.matmul(inputs, prototypes(**last_layer), precision="highest")
        targets = jax.nn.softmax(logits)
        used = jnp.zeros(targets.shape[1]).at[jnp.argmax(targets, axis=1)].max(weights)
        return weights @ targets, weights @ entropy(targets), used > 0

    if mesh is None:
        return jax.jit(sums)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(sums, out_shardings=replicated)
