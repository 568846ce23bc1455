"""Mixtures of data sets with one list of classes."""

import pickle

import numpy as np
import pytest
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data.labels import relabelled
from vit_jax.data.mixture import mix
from vit_jax.data.sources import ArraySource, open_split, open_training


def pixels_of(labels, classes, first_pixel=0) -> ArraySource:
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = first_pixel + np.arange(len(labels))
    return ArraySource(images, np.array(labels), tuple(classes))


@pytest.fixture
def pets():
    return pixels_of([0, 1, 1], ["cat", "dog"])


@pytest.fixture
def birds():
    return pixels_of([0, 1, 2, 0], ["owl", "dog", "tit"], first_pixel=100)


def test_mixture_concatenates_records_with_the_labels_of_all_classes(pets, birds):
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


def test_mixture_fingerprint_depends_on_the_order_and_the_shares(pets, birds):
    orders = [([pets, birds], [3, 1]), ([birds, pets], [3, 1]), ([pets, birds], [1, 1])]
    assert len({mix(sources, shares).fingerprint() for sources, shares in orders}) == 3
    assert mix(*orders[0]).fingerprint() == mix(*orders[0]).fingerprint()


def test_mixture_can_be_pickled(pets, birds):
    both = mix([pets, birds], shares=[3, 1])
    assert both[4]["label"] == 1
    again = pickle.loads(pickle.dumps(both))
    assert [again[i]["label"] for i in range(7)] == list(both.labels)


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


def test_open_training_mixes_the_folders_of_the_config(two_folders):
    pets, birds = two_folders
    data = Data(source="folder", dir=birds, mix=((pets, 2), (birds, 5)))
    train = open_training(data)
    assert train.classes == ("cat", "dog", "owl")
    assert (train.sizes, train.shares) == ((6, 6), (2, 5))
    val = relabelled(open_split(data, "val"), train.classes)
    assert val.classes == train.classes
    assert [val[i]["label"] for i in range(4)] == [1, 1, 2, 2]
    assert [val.name(i) for i in range(2)] == ["dog/0.png", "dog/1.png"]
