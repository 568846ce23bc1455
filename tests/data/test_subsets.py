"""Random subsets: seeded, and the smaller ones part of the larger ones."""

import dataclasses

import numpy as np
import pytest

from vit_jax.config.schema import Data
from vit_jax.data import subsets
from vit_jax.data.mixture import Mixture, mix
from vit_jax.data.sources import ArraySource, open_both, open_training
from vit_jax.errors import DataError

LABELS = np.repeat([0, 1, 2], [30, 20, 10])


def pixels_of(labels=LABELS, classes=("ant", "bee", "cat")) -> ArraySource:
    labels = np.array(labels)
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return ArraySource(images, labels, classes)


def draw(source, **fields):
    return subsets.draw_subset(source, Data(**fields))


def split_off(source, dev: float, seed: int = 0):
    return subsets.split_off_dev(source, Data(dev=dev, subset_seed=seed))


def drawn(source=None, **fields) -> list[int]:
    """Returns the indices of the subset in the source, from the pixels."""
    subset = draw(source or pixels_of(), **fields)
    return [int(subset[i]["image"][0, 0, 0]) for i in range(len(subset))]


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ({"per_class": 3}, {"per_class": 8}),
        ({"count": 7}, {"count": 41}),
        ({"fraction": 0.2}, {"fraction": 0.5}),
        ({"fraction": 0.2}, {"count": 12}),
    ],
)
def test_smaller_subset_is_part_of_a_larger_one_of_the_same_seed(smaller, larger):
    for seed in range(5):
        few, many = drawn(**smaller, subset_seed=seed), drawn(**larger, subset_seed=seed)
        assert set(few) <= set(many)
        assert many == sorted(set(many))  # In the source's order, none twice.


def test_per_class_draws_that_number_of_each_class():
    subset = draw(pixels_of(), per_class=4)
    assert list(subset.labels) == [0] * 4 + [1] * 4 + [2] * 4
    assert [subset[i]["label"] for i in range(12)] == list(subset.labels)
    assert subset.classes == ("ant", "bee", "cat")


def test_count_and_fraction_draw_their_number_of_examples():
    assert len(drawn(count=13)) == 13
    assert len(drawn(fraction=0.25)) == 15
    assert len(drawn(fraction=1e-9)) == 1
    assert drawn(fraction=1.0) == list(range(60))


def test_count_draws_every_example_with_equal_probability():
    counts = np.zeros(60)
    for seed in range(400):
        counts[drawn(count=15, subset_seed=seed)] += 1
    # Binomial(400, 1/4): deviation 8.7; 60 of them stay within 4 deviations.
    assert np.abs(counts - 100).max() < 35


def test_subset_depends_on_the_seed_only():
    for options in ({"per_class": 4}, {"count": 10}, {"fraction": 0.3}):
        assert drawn(**options, subset_seed=1) == drawn(**options, subset_seed=1)
        assert drawn(**options, subset_seed=1) != drawn(**options, subset_seed=2)


def test_subset_fingerprint_depends_on_the_examples():
    prints = [draw(pixels_of(), count=10, subset_seed=s).fingerprint() for s in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


def test_draw_subset_without_options_returns_the_source():
    source = pixels_of()
    assert draw(source) is source


def test_draw_subset_rejects_more_examples_than_the_source_has():
    with pytest.raises(DataError, match="per_class is 11, but class 'cat' has 10 examples"):
        drawn(per_class=11)
    with pytest.raises(DataError, match="count is 61, but the split has 60 examples"):
        drawn(count=61)


def test_per_class_rejects_a_class_without_examples():
    with pytest.raises(DataError, match="class 'dog' has 0 examples"):
        drawn(pixels_of(classes=("ant", "bee", "cat", "dog")), per_class=1)


def test_subset_of_a_mixture_is_a_mixture_drawn_from_all_examples():
    a, b = pixels_of(), pixels_of([0] * 40, ("bee",))
    whole = mix([a, b], shares=[3, 1])
    part = draw(whole, fraction=0.5, subset_seed=3)
    assert isinstance(part, Mixture)
    assert part.shares == (3, 1)
    assert sum(part.sizes) == len(part) == 50
    chosen = np.sort(np.random.default_rng(3).permutation(100)[:50])
    assert part.sizes == ((chosen < 60).sum(), (chosen >= 60).sum())
    pixels = [int(part[i]["image"][0, 0, 0]) for i in range(50)]
    assert pixels == [*chosen[chosen < 60], *(chosen[chosen >= 60] - 60)]
    assert [part[i]["label"] for i in range(50)] == list(part.labels)
    # Bees of both sets are one class, of which the draw takes four together.
    assert list(np.bincount(draw(whole, per_class=4).labels)) == [4, 4, 4]


def test_draw_subset_rejects_a_mixture_with_an_empty_set():
    whole = mix([pixels_of(), pixels_of([0] * 40, ("bee",))], shares=[1, 1])
    with pytest.raises(
        DataError, match=r"one data set of data\.mix \(its first example is .*\) has no example"
    ):
        draw(whole, count=1)


def test_open_training_draws_the_subset_of_the_config():
    data = Data(source="fake", num_classes=3, num_examples=30, image_size=4)
    assert len(open_training(data)) == 30
    few = open_training(Data(**vars(data) | {"per_class": 2, "subset_seed": 5}))
    assert list(np.bincount(few.labels)) == [2, 2, 2]
    assert len(open_training(Data(**vars(data) | {"fraction": 0.1}))) == 3
    assert len(open_training(Data(**vars(data) | {"count": 7}))) == 7


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_split_off_dev_gives_two_parts_of_the_source(share):
    whole = pixels_of()
    rest, held = split_off(whole, share, seed=4)
    assert len(held) == max(1, round(share * len(whole)))
    names = [part.name(i) for part in (rest, held) for i in range(len(part))]
    assert sorted(names, key=int) == [whole.name(i) for i in range(len(whole))]
    again, other = (split_off(whole, share, seed)[1] for seed in (4, 5))
    assert again.fingerprint() == held.fingerprint() != other.fingerprint()


def test_open_both_with_dev_splits_the_subset_instead_of_opening_val():
    data = Data(source="fake", num_classes=3, num_examples=30, image_size=4, per_class=4, dev=0.25)
    train, dev = open_both(data)
    assert (len(train), len(dev)) == (9, 3)
    drawn = open_training(dataclasses.replace(data, dev=None))
    names = {part.name(i) for part in (train, dev) for i in range(len(part))}
    assert names == {drawn.name(i) for i in range(12)}
    assert open_training(data).fingerprint() == train.fingerprint()


def test_split_off_dev_rejects_a_single_example():
    with pytest.raises(DataError, match=r"data\.dev is 0\.5, but 1 training examples are too few"):
        split_off(draw(pixels_of(), count=1), 0.5)
