"""Slash names of leaves."""

import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import trees

TREE = {"head": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}, "cls": np.ones(())}


def test_leaves_are_known_by_slash_names_in_tree_order():
    assert list(trees.flatten(TREE)) == ["cls", "head/bias", "head/kernel"]
    assert trees.flatten(TREE)["head/kernel"] is TREE["head"]["kernel"]


def test_unflatten_undoes_flatten():
    again = trees.unflatten(trees.flatten(TREE))
    assert again == {"head": TREE["head"], "cls": TREE["cls"]}
    assert trees.unflatten({}) == {}
    assert trees.unflatten({"a/b/c": 1, "a/b/d": 2, "a/e": 3}) == {
        "a": {"b": {"c": 1, "d": 2}, "e": 3}
    }


def test_the_names_of_an_optimisers_state_end_in_those_of_its_parameters():
    state = optax.adam(0.1).init({"head": {"kernel": jnp.ones(2)}})
    assert set(trees.flatten(state)) == {"0/count", "0/mu/head/kernel", "0/nu/head/kernel"}


def test_map_with_names_sees_each_name_and_keeps_the_structure():
    shapes = trees.map_with_names(lambda name, leaf: (name, leaf.shape), TREE)
    assert shapes == {
        "head": {"kernel": ("head/kernel", (2, 3)), "bias": ("head/bias", (3,))},
        "cls": ("cls", ()),
    }


def test_count_adds_up_the_numbers_and_a_scalar_is_one():
    assert trees.count(TREE) == 6 + 3 + 1
    assert trees.count({}) == 0
