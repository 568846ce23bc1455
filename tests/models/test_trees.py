"""Tests of `trees`: names of leaves, flatten and unflatten, element counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.models import trees

TREE = {"head": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}, "cls": np.ones(())}


def test_flatten_names_leaves_by_their_path_in_tree_order():
    assert list(trees.flatten(TREE)) == ["cls", "head/bias", "head/kernel"]
    assert trees.flatten(TREE)["head/kernel"] is TREE["head"]["kernel"]


def test_unflatten_is_the_inverse_of_flatten():
    unflattened = trees.unflatten(trees.flatten(TREE))
    assert unflattened == {"head": TREE["head"], "cls": TREE["cls"]}
    assert trees.unflatten({}) == {}
    assert trees.unflatten({"a/b/c": 1, "a/b/d": 2, "a/e": 3}) == {
        "a": {"b": {"c": 1, "d": 2}, "e": 3}
    }


def test_flatten_of_an_optimizer_state_ends_names_with_parameter_names():
    state = optax.adam(0.1).init({"head": {"kernel": jnp.ones(2)}})
    assert set(trees.flatten(state)) == {"0/count", "0/mu/head/kernel", "0/nu/head/kernel"}


def test_map_with_names_passes_each_name_and_keeps_the_structure():
    shapes = trees.map_with_names(lambda name, leaf: (name, leaf.shape), TREE)
    assert shapes == {
        "head": {"kernel": ("head/kernel", (2, 3)), "bias": ("head/bias", (3,))},
        "cls": ("cls", ()),
    }


def test_count_sums_array_elements_and_counts_a_scalar_as_one():
    assert trees.count(TREE) == 6 + 3 + 1
    assert trees.count({}) == 0


def test_num_bytes_sums_the_bytes_of_arrays_and_of_shapes():
    tree = {"a": np.zeros((2, 3), np.float16), "b": [jax.ShapeDtypeStruct((), jnp.int32)]}
    assert trees.num_bytes(tree) == 2 * 3 * 2 + 4
    assert trees.num_bytes({}) == 0
