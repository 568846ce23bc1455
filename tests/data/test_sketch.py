"""Tests of `sketch`: removed images are counted; any other change is not mistaken for that."""

import numpy as np
import pytest

from vit_jax.data import sketch
from vit_jax.data.image_folder import FolderSource
from vit_jax.data.sketch import count_removed, make_sketch

FILES = tuple(f"{'ab'[k % 2]}/{k}.jpg" for k in range(40))


def sketch_of(files, labels=None):
    labels = [int(file[0] == "b") for file in files] if labels is None else labels
    return make_sketch(FolderSource("root", tuple(files), np.array(labels), ("a", "b")))


@pytest.mark.parametrize("removed", [(), (3,), (0, 7, 39)])
def test_count_removed_counts_missing_images_in_any_order(removed):
    files = [file for k, file in enumerate(FILES) if k not in removed]
    assert count_removed(sketch_of(FILES), sketch_of(files[::-1])) == len(removed)


@pytest.mark.parametrize(
    "files",
    [(*FILES, "a/new.jpg"), ("a/new.jpg", *FILES[1:]), ("a/new.jpg", *FILES[2:]), FILES[:1] * 40],
)
def test_count_removed_is_none_for_added_and_renamed_images(files):
    assert count_removed(sketch_of(FILES), sketch_of(files)) is None


def test_count_removed_is_none_for_a_renamed_image_in_the_same_bucket(monkeypatch):
    monkeypatch.setattr(sketch, "NUM_BUCKETS", 1)
    assert count_removed(sketch_of(FILES), sketch_of(("a/new.jpg", *FILES[1:]))) is None
    assert count_removed(sketch_of(FILES), sketch_of(FILES[1:])) == 1


def test_count_removed_is_none_for_another_class_or_kind_of_data():
    labels = [int(file[0] == "b") for file in FILES]
    assert count_removed(sketch_of(FILES), sketch_of(FILES, [1 - labels[0], *labels[1:]])) is None
    assert make_sketch(range(3)) is None
    assert count_removed(None, sketch_of(FILES)) is None
