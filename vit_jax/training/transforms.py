"""Transformations of gradients and updates that depend on the names of parameters.

Factors by name are (regex, factor) pairs: the first regex found in a parameter's slash name gives
its factor; without one the factor is 1.
"""

import collections
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from vit_jax.models import trees
from vit_jax.training.param_groups import (
    Factors,
    factor_of,
    first_match,
    layer_of,
    module_of,
    num_layers_of,
)

# Function from the name of a parameter to the group whose gradients are clipped together.
CLIP_GROUPS: dict[str, Callable[[str], str]] = {
    "module": module_of,
    "parameter": lambda name: name,
}


def clip_by_norm(max_norm: float, per: str) -> optax.GradientTransformation:
    """Scales gradients whose norm is larger to `max_norm`.

    Args:
      per: arrays that share a norm: "model" for all, or a key of CLIP_GROUPS.
    """
    if per == "model":
        return optax.clip_by_global_norm(max_norm)
    group_of = CLIP_GROUPS[per]

    def clip(grads, _):
        groups = collections.defaultdict(list)
        for name, grad in trees.flatten(grads).items():
            groups[group_of(name)].append(grad)
        norms = {group: optax.tree.norm(leaves) for group, leaves in groups.items()}

        def clip_leaf(name: str, grad: jax.Array) -> jax.Array:
            norm = norms[group_of(name)]
            return jnp.where(norm < max_norm, grad, grad / norm.astype(grad.dtype) * max_norm)

        return trees.map_with_names(clip_leaf, grads)

    return optax.stateless(clip)


def add_decayed_weights(weight_decay: jax.typing.ArrayLike, factors: Factors):
    """Adds to each update its parameter times the weight decay and the factor of its name."""

    def add(updates, params):
        decays = trees.map_with_names(
            lambda name, _: weight_decay * factor_of(name, factors), params
        )
        return jax.tree.map(lambda decay, u, p: u + decay * p, decays, updates, params)

    return optax.stateless(add)


def where_decayed(tx: optax.GradientTransformation, factors: Factors):
    """Applies a transformation to the parameters whose factor of the weight decay is above 0."""

    def is_decayed(params):
        return trees.map_with_names(lambda name, _: factor_of(name, factors) > 0, params)

    return optax.masked(tx, is_decayed)


def scale_by_name(factors: Factors, layer_decay: float | None) -> optax.GradientTransformation:
    """Multiplies updates by the factor of their name and by layer_decay^(layers above)."""
    layer_decay = layer_decay or 1.0

    def scale(updates, params):
        # Frozen parameters are masked here; their layers count.
        leaves = jax.tree_util.tree_leaves_with_path(
            params, is_leaf=lambda node: isinstance(node, optax.MaskedNode)
        )
        num_layers = num_layers_of([trees.leaf_name(path) for path, _ in leaves])

        def scale_leaf(name: str, update: jax.Array) -> jax.Array:
            layers_above = num_layers + 1 - layer_of(name, num_layers)
            return update * (factor_of(name, factors) * layer_decay**layers_above)

        return trees.map_with_names(scale_leaf, updates)

    return optax.stateless(scale)


def freeze_first_steps(num_steps: Sequence[tuple[str, int]]) -> optax.GradientTransformation:
    """Replaces updates by 0 in the first steps of a parameter.

    Args:
      num_steps: (regex, number of steps) pairs; the first regex found in a name counts.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        del params

        def freeze(name: str, update: jax.Array) -> jax.Array:
            steps = first_match(name, num_steps, 0)
            return jnp.where(state.count < steps, 0, update) if steps else update

        count = optax.safe_increment(state.count)
        return trees.map_with_names(freeze, updates), optax.ScaleByScheduleState(count)

    return optax.GradientTransformation(init, update)
