"""Several sets under one list of classes."""

import pickle

import numpy as np
import pytest
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data.labels import Relabelled, relabelled, union
from vit_jax.data.mixture import mix
from vit_jax.data.sources import ArraySource, open_split, open_training
from vit_jax.errors import DataError


def a_source(labels, classes, first_pixel=0) -> ArraySource:
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = first_pixel + np.arange(len(labels))
    return ArraySource(images, np.array(labels), tuple(classes))


@pytest.fixture
def pets():
    return a_source([0, 1, 1], ["cat", "dog"])


@pytest.fixture
def birds():
    return a_source([0, 1, 2, 0], ["owl", "dog", "tit"], first_pixel=100)


def test_classes_stand_in_the_order_they_first_appear_in():
    assert union(("b", "a"), ("c", "a"), ("d",)) == ("b", "a", "c", "d")


def test_records_follow_each_other_with_the_labels_of_the_union(pets, birds):
    both = mix([pets, birds], shares=[3, 1])
    assert both.classes == ("cat", "dog", "owl", "tit")
    assert (both.sizes, both.shares, len(both)) == ((3, 4), (3, 1), 7)
    assert [int(both[i]["image"][0, 0, 0]) for i in range(7)] == [0, 1, 2, 100, 101, 102, 103]
    names = ["cat", "dog", "dog", "owl", "dog", "tit", "owl"]
    assert [both.classes[both[i]["label"]] for i in range(7)] == names
    assert [both.classes[label] for label in both.labels] == names
    assert [both.name(i) for i in range(7)] == ["0", "1", "2", "0", "1", "2", "3"]
    for index in (-1, 7):
        with pytest.raises(IndexError):
            both[index]


def test_the_order_of_sets_and_their_shares_tell_mixtures_apart(pets, birds):
    orders = [([pets, birds], [3, 1]), ([birds, pets], [3, 1]), ([pets, birds], [1, 1])]
    assert len({mix(sources, shares).fingerprint() for sources, shares in orders}) == 3
    assert mix(*orders[0]).fingerprint() == mix(*orders[0]).fingerprint()


def test_a_mixture_is_the_same_in_another_process(pets, birds):
    both = mix([pets, birds], shares=[3, 1])
    assert both[4]["label"] == 1
    again = pickle.loads(pickle.dumps(both))
    assert [again[i]["label"] for i in range(7)] == list(both.labels)


def test_equal_classes_need_no_other_labels(pets):
    assert relabelled(pets, ("cat", "dog")) is pets


def test_labels_are_counted_among_the_classes_of_training(pets):
    source = relabelled(pets, ("dog", "emu", "cat"))
    assert [source[i]["label"] for i in range(3)] == list(source.labels) == [2, 0, 0]
    assert source.classes == ("dog", "emu", "cat")
    assert source.fingerprint() == pets.fingerprint()


def test_a_class_unknown_to_training_is_named_with_the_nearest(pets):
    with pytest.raises(
        DataError, match=r"class 'cat' .* 2 classes of training\. Did you mean cats"
    ):
        relabelled(pets, ("cats", "dog"))


def test_a_label_out_of_range_is_told_of_by_name():
    for label in (2, -1):
        source = Relabelled(a_source([0, label], ["cat", "dog"]), ("dog", "cat"))
        with pytest.raises(DataError, match=rf"^1: label {label} is out of range \[0, 2\)"):
            source[1]


@pytest.fixture
def two_folders(tmp_path):
    for root, titles in (("pets", ("cat", "dog")), ("birds", ("dog", "owl"))):
        for split, count in (("train", 3), ("val", 2)):
            for title in titles:
                folder = tmp_path / root / split / title
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", (3, 2), (i, 0, 0)).save(folder / f"{i}.png")
    return [str(tmp_path / "pets"), str(tmp_path / "birds")]


def test_the_config_names_folders_and_shares(two_folders):
    pets, birds = two_folders
    data = Data(source="folder", dir=birds, mix=((pets, 2), (birds, 5)))
    train = open_training(data)
    assert train.classes == ("cat", "dog", "owl")
    assert (train.sizes, train.shares) == ((6, 6), (2, 5))
    val = relabelled(open_split(data, "val"), train.classes)
    assert val.classes == train.classes
    assert [val[i]["label"] for i in range(4)] == [1, 1, 2, 2]
    assert [val.name(i) for i in range(2)] == ["dog/0.png", "dog/1.png"]
