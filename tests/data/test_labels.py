"""Labels of one list of class names in another."""

import numpy as np
import pytest

from vit_jax.data.labels import Relabelled, relabelled, union
from vit_jax.data.sources import ArraySource
from vit_jax.errors import DataError


def pixels_of(labels, classes) -> ArraySource:
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    return ArraySource(images, np.array(labels), tuple(classes))


@pytest.fixture
def pets():
    return pixels_of([0, 1, 1], ["cat", "dog"])


def test_union_has_the_order_of_first_occurrence():
    assert union(("b", "a"), ("c", "a"), ("d",)) == ("b", "a", "c", "d")


def test_relabelled_returns_a_source_with_the_same_classes_itself(pets):
    assert relabelled(pets, ("cat", "dog")) is pets


def test_relabelled_numbers_labels_in_the_given_classes(pets):
    source = relabelled(pets, ("dog", "emu", "cat"))
    assert [source[i]["label"] for i in range(3)] == list(source.labels) == [2, 0, 0]
    assert source.classes == ("dog", "emu", "cat")
    assert source.fingerprint() == pets.fingerprint()


def test_relabelled_rejects_an_unknown_class_with_the_nearest_name(pets):
    with pytest.raises(
        DataError, match=r"class 'cat' .* 2 classes of training\. Did you mean cats"
    ):
        relabelled(pets, ("cats", "dog"))


def test_relabelled_rejects_a_label_out_of_range_with_the_name_of_the_example():
    for label in (2, -1):
        source = Relabelled(pixels_of([0, label], ["cat", "dog"]), ("dog", "cat"))
        with pytest.raises(DataError, match=rf"^1: label {label} is out of range \[0, 2\)"):
            source[1]
