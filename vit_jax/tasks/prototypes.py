"""Losses on logits of prototypes: DINO, iBOT, DINOv2 (arXiv:2104.14294, 2111.07832, 2304.07193).

Shapes use the letters of `models/vit.py`: B images, V views, S masked patches of a crop, K
prototypes, D width. All is computed in float32. Means, sums and neighbours are over the global
batch, however it is sharded. Rows with weight 0, which pad the batch, count nowhere.
"""

import math

import jax
import jax.numpy as jnp

from vit_jax.models.dino_vit import normalize

SINKHORN_ITERATIONS = 3
KOLEO_EPS = 1e-8


def centred_softmax(logits: jax.Array, centre: jax.Array, temperature) -> jax.Array:
    """Returns softmax((logits - centre) / temperature) of teacher logits ... K."""
    centre = centre.reshape((1,) * (logits.ndim - 1) + centre.shape)
    return jax.nn.softmax((logits - centre) / temperature)


def update_centre(
    centre: jax.Array, logits: jax.Array, weights: jax.Array, momentum: float
) -> jax.Array:
    """Returns the moving average of the mean logits, K; the old one if no row counts.

    Args:
      logits: n K, those of the teacher.
      weights: n, 1 for rows that count and 0 for others.
    """
    count = jnp.sum(weights)
    mean = jnp.einsum("n,nk->k", weights, logits, precision="highest") / jnp.maximum(count, 1)
    return jnp.where(count > 0, momentum * centre + (1 - momentum) * mean, centre)


def sinkhorn(logits: jax.Array, weights: jax.Array, temperature) -> jax.Array:
    """Returns assignments n K of teacher logits n K by Sinkhorn-Knopp (arXiv:2006.09882).

    Prototypes and rows are normalised in turn, three times. Rows sum to 1, and each prototype to
    about the number of rows over K. In the log domain: exp(logit / temperature) overflows float32
    for logits above 3.5 at the temperature 0.04.

    Args:
      weights: n, 1 for rows that count and 0 for others.
    """
    log_q = logits.astype(jnp.float32) / temperature
    counts = weights[:, None].astype(jnp.float32)
    for _ in range(SINKHORN_ITERATIONS):
        totals = jax.nn.logsumexp(log_q, axis=0, b=counts, keepdims=True)
        log_q -= jnp.where(jnp.isfinite(totals), totals, 0)  # Not finite if no row counts.
        log_q = jax.nn.log_softmax(log_q)
    return jnp.exp(log_q)


def cross_entropy(logits: jax.Array, targets: jax.Array, temperature: float) -> jax.Array:
    """Returns the cross-entropies ... in nats of student logits ... K with targets ... K."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    return -jnp.sum(targets * log_p, axis=-1)


def class_loss(logits: jax.Array, targets: jax.Array, temperature: float) -> jax.Array:
    """Returns the mean cross-entropy of each image over pairs of different views, B.

    The global views come first in `logits`; a pair of a view with itself is left out. With 2
    global and 8 local views, there are 18 pairs.

    Args:
      logits: B V K, those of the student.
      targets: B G K, of the G global views.
    """
    G, V = targets.shape[1], logits.shape[1]
    # The pairs of a student view share its log-probabilities, so their targets are added.
    total = jnp.sum(targets, axis=1, keepdims=True)
    of_global = cross_entropy(logits[:, :G], total - targets, temperature)
    of_local = cross_entropy(logits[:, G:], total, temperature)
    return (jnp.sum(of_global, axis=1) + jnp.sum(of_local, axis=1)) / (G * V - G)


def patch_loss(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, temperature: float
) -> jax.Array:
    """Returns the mean over the global views of each image's cross-entropy at masked patches, B.

    Args:
      logits, targets: B G S K, of student and teacher at the same masked patches.
      weights: B G S, 1 / (masked patches of the view), and 0 for padding.
    """
    losses = cross_entropy(logits, targets, temperature)
    return jnp.mean(jnp.sum(losses * weights, axis=-1), axis=-1)


def koleo(features: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns minus the mean log distance of each feature to its nearest neighbour, a scalar.

    The entropy estimator of Kozachenko and Leonenko, on features of norm 1 (arXiv:1806.03198).

    Args:
      features: n D.
      weights: n, 1 for rows that count and 0 for others.
    """
    x = normalize(features.astype(jnp.float32), axis=-1)
    similarity = jax.lax.stop_gradient(jnp.matmul(x, x.T, precision="highest"))
    is_other = (weights[None] > 0) & ~jnp.eye(len(x), dtype=bool)
    nearest = jnp.argmax(jnp.where(is_other, similarity, -2.0), axis=1)
    distance = jnp.linalg.norm(x - x[nearest] + KOLEO_EPS, axis=-1)
    return -jnp.sum(weights * jnp.log(distance + KOLEO_EPS)) / jnp.maximum(jnp.sum(weights), 1)


def entropy(probabilities: jax.Array) -> jax.Array:
    """Returns the entropy ... of distributions ... K, over that of the uniform one: 0 to 1."""
    plogp = jax.scipy.special.xlogy(probabilities, probabilities)
    return -jnp.sum(plogp, axis=-1) / math.log(probabilities.shape[-1])


def usage(targets: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
    """Returns measures of collapse of targets n K: scalars.

    `teacher_entropy` is the mean entropy of the targets: 1 for uniform targets. `mean_entropy`
    is that of their mean: 0 if all are the same prototype. Both are over ln K.
    `prototypes_used` is the number of prototypes that are the largest of a target.

    Args:
      weights: n, 1 for rows that count and 0 for others.
    """
    count = jnp.maximum(jnp.sum(weights), 1)
    mean = jnp.einsum("n,nk->k", weights, targets, precision="highest") / count
    used = jnp.zeros(targets.shape[-1]).at[jnp.argmax(targets, axis=-1)].max(weights)
    return {
        "teacher_entropy": jnp.sum(weights * entropy(targets)) / count,
        "mean_entropy": entropy(mean),
        "prototypes_used": jnp.sum(used),
    }
