"""Pytrees whose leaves are addressed by names such as `head/kernel`."""

import math
from collections.abc import Callable, Mapping

import jax


def leaf_name(path: tuple) -> str:
    """Returns the name of a key path of `jax.tree_util`, its keys joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree) -> dict:
    """Returns {name: leaf} of any pytree, optimizer states included, in tree order."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: Mapping[str, object]) -> dict:
    """Returns nested dictionaries of {name: leaf}: the inverse of `flatten` on parameters."""
    tree: dict = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def map_with_names(function: Callable, tree):
    """Returns the tree with `function(name, leaf)` in place of every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(leaf_name(path), leaf), tree
    )


def count(tree) -> int:
    """Returns the total number of array elements of a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree) -> int:
    """Returns the total number of bytes of the arrays of a tree, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
