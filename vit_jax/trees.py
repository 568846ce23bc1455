"""Pytrees whose leaves are known by slash names such as `head/kernel`."""

from collections.abc import Callable, Mapping

import jax
import numpy as np


def name_of(path: tuple) -> str:
    """The slash name of a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree) -> dict:
    """Name -> leaf, in tree order; works for optimiser states too."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: Mapping[str, object]) -> dict:
    """Nested dictionaries from slash names: the inverse of `flatten` on parameters."""
    tree: dict = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def map_with_names(function: Callable, tree):
    """`function(name, leaf)` at every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(name_of(path), leaf), tree)


def count(tree) -> int:
    """How many numbers the tree holds."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
