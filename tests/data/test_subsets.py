"""Subsets are seeded draws, the smaller within the larger."""

import dataclasses

import numpy as np
import pytest

from vit_jax.config.schema import Data
from vit_jax.data import subsets
from vit_jax.data.mixture import Mixture, mix
from vit_jax.data.sources import ArraySource, open_both, open_training
from vit_jax.errors import DataError

LABELS = np.repeat([0, 1, 2], [30, 20, 10])


def a_source(labels=LABELS, classes=("ant", "bee", "cat")) -> ArraySource:
    labels = np.array(labels)
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return ArraySource(images, labels, classes)


def drawn(source=None, **options) -> list[int]:
    """Which records of the source stand in the subset, by their one pixel."""
    subset = subsets.draw(source or a_source(), **options)
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
def test_a_smaller_draw_lies_within_a_larger_one_of_the_same_seed(smaller, larger):
    for seed in range(5):
        few, many = drawn(**smaller, seed=seed), drawn(**larger, seed=seed)
        assert set(few) <= set(many)
        assert many == sorted(set(many))  # In the source's order, none twice.


def test_every_class_gives_per_class_records():
    subset = subsets.draw(a_source(), per_class=4)
    assert list(subset.labels) == [0] * 4 + [1] * 4 + [2] * 4
    assert [subset[i]["label"] for i in range(12)] == list(subset.labels)
    assert subset.classes == ("ant", "bee", "cat")


def test_count_and_fraction_give_their_number_whatever_the_classes():
    assert len(drawn(count=13)) == 13
    assert len(drawn(fraction=0.25)) == 15
    assert len(drawn(fraction=1e-9)) == 1
    assert drawn(fraction=1.0) == list(range(60))


def test_a_draw_takes_every_record_equally_often():
    counts = np.zeros(60)
    for seed in range(400):
        counts[drawn(count=15, seed=seed)] += 1
    # Binomial(400, 1/4): deviation 8.7; 60 of them stay within 4 deviations.
    assert np.abs(counts - 100).max() < 35


def test_another_seed_is_another_draw_and_the_same_is_the_same():
    for options in ({"per_class": 4}, {"count": 10}, {"fraction": 0.3}):
        assert drawn(**options, seed=1) == drawn(**options, seed=1)
        assert drawn(**options, seed=1) != drawn(**options, seed=2)


def test_a_subset_is_told_from_another_by_its_fingerprint():
    prints = [subsets.draw(a_source(), count=10, seed=s).fingerprint() for s in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


def test_no_draw_is_the_source_itself():
    source = a_source()
    assert subsets.draw(source) is source


def test_more_than_there_are_is_refused_with_what_there_is():
    with pytest.raises(DataError, match="per_class is 11, but class 'cat' has 10 examples"):
        drawn(per_class=11)
    with pytest.raises(DataError, match="count is 61, but the split has 60 examples"):
        drawn(count=61)


def test_a_class_without_records_has_no_per_class_draw():
    with pytest.raises(DataError, match="class 'dog' has 0 examples"):
        drawn(a_source(classes=("ant", "bee", "cat", "dog")), per_class=1)


def test_a_draw_from_a_mixture_is_of_all_its_records_and_stays_a_mixture():
    a, b = a_source(), a_source([0] * 40, ("bee",))
    whole = mix([a, b], shares=[3, 1])
    part = subsets.draw(whole, fraction=0.5, seed=3)
    assert isinstance(part, Mixture)
    assert part.shares == (3, 1)
    assert sum(part.sizes) == len(part) == 50
    chosen = np.sort(np.random.default_rng(3).permutation(100)[:50])
    assert part.sizes == ((chosen < 60).sum(), (chosen >= 60).sum())
    pixels = [int(part[i]["image"][0, 0, 0]) for i in range(50)]
    assert pixels == [*chosen[chosen < 60], *(chosen[chosen >= 60] - 60)]
    assert [part[i]["label"] for i in range(50)] == list(part.labels)
    # Bees of both sets are one class, of which the draw takes four together.
    assert list(np.bincount(subsets.draw(whole, per_class=4).labels)) == [4, 4, 4]


def test_a_draw_that_leaves_a_set_of_the_mixture_empty_is_refused():
    whole = mix([a_source(), a_source([0] * 40, ("bee",))], shares=[1, 1])
    with pytest.raises(DataError, match=r"the draw from data\.mix leaves nothing of the set"):
        subsets.draw(whole, count=1)


def test_the_config_says_what_training_draws():
    data = Data(source="fake", num_classes=3, num_examples=30, image_size=4)
    assert len(open_training(data)) == 30
    few = open_training(Data(**vars(data) | {"per_class": 2, "subset_seed": 5}))
    assert list(np.bincount(few.labels)) == [2, 2, 2]
    assert len(open_training(Data(**vars(data) | {"fraction": 0.1}))) == 3
    assert len(open_training(Data(**vars(data) | {"count": 7}))) == 7


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_part_held_out_and_the_rest_are_the_whole(share):
    whole = a_source()
    rest, held = subsets.hold_out(whole, share, seed=4)
    assert len(held) == max(1, round(share * len(whole)))
    names = [part.name(i) for part in (rest, held) for i in range(len(part))]
    assert sorted(names, key=int) == [whole.name(i) for i in range(len(whole))]
    again, other = (subsets.hold_out(whole, share, seed)[1] for seed in (4, 5))
    assert again.fingerprint() == held.fingerprint() != other.fingerprint()


def test_dev_is_of_what_is_drawn_and_takes_the_place_of_val():
    data = Data(source="fake", num_classes=3, num_examples=30, image_size=4, per_class=4, dev=0.25)
    train, dev = open_both(data)
    assert (len(train), len(dev)) == (9, 3)
    drawn = open_training(dataclasses.replace(data, dev=None))
    names = {part.name(i) for part in (train, dev) for i in range(len(part))}
    assert names == {drawn.name(i) for i in range(12)}
    assert open_training(data).fingerprint() == train.fingerprint()


def test_nothing_is_held_out_of_a_single_example():
    with pytest.raises(DataError, match="1 training examples are too few"):
        subsets.hold_out(subsets.draw(a_source(), count=1), 0.5)
