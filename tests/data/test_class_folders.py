"""Splits and classes of data sets, by the names of their folders."""

import unicodedata

import pytest

from vit_jax.data.class_folders import arrange, find_split, split_name
from vit_jax.data.listing import ImageFile, Listing
from vit_jax.errors import DataError

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def arranged(*paths: str) -> dict[str, dict[str, int]]:
    """Number of images of each class of each split."""
    listing = Listing("root")
    folders = arrange(listing, [ImageFile(path, "", 0, 0) for path in paths])
    return {
        split: {title: len(images) for title, images in classes.items()}
        for split, classes in folders.images.items()
    }


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        *(("train", "train"), ("Training", "train"), ("TRAIN", "train"), ("train_set", "train")),
        *(("val", "val"), ("valid", "val"), ("Validation", "val"), ("val images", "val")),
        *(("dev", "val"), ("DevSet", "val"), ("device", None)),
        *(("test", "test"), ("Testing", "test"), ("test-data", "test"), ("TestSet", "test")),
        *(("trainer", None), ("bullet_train", None), ("value", None), ("contest", None)),
    ],
)
def test_split_name_knows_the_usual_names(folder, split):
    assert split_name(folder) == split


def test_find_split_prefers_the_name_itself():
    assert find_split("val", ["train", "val", "validation"]) == "val"
    assert find_split("val", ["train", "validation"]) == "validation"
    assert find_split("valid", ["train", "val"]) == "val"
    assert find_split("val", ["valid", "validation"]) is None
    assert find_split("holdout", ["train"]) is None


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("Train", "Val", "val"),
        ("training", "validation", "val"),
        ("train", "valid", "val"),
        ("TRAIN", "TEST", "test"),
        ("training_set", "test_set", "test"),
        ("train", "holdout", "holdout"),
    ],
)
def test_arrange_finds_splits_by_their_usual_names(train, other, split):
    paths = [f"{train}/cat/1.png", f"{train}/dog/1.png", f"{other}/cat/2.png"]
    assert arranged(*paths) == {"train": {"cat": 1, "dog": 1}, split: {"cat": 1}}


def test_arrange_finds_classes_without_splits():
    assert arranged("cat/1.png", "dog/old/2.png", "train/3.png", "4.png") == {
        "train": {"cat": 1, "dog": 1, "train": 1}
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [("fold1", "fold2"), ("site_a", "site_b"), ("2019", "2020"), ("tr", "te"), ("sun", "rain")],
)
def test_arrange_rejects_folders_with_class_folders_of_equal_names(one, other):
    words = rf"'{min(one, other)}' and '{max(one, other)}' both contain a folder 'cat', as splits"
    with pytest.raises(DataError, match=words):
        arranged(f"{one}/cat/1.png", f"{one}/dog/1.png", f"{other}/cat/1.png", f"{other}/sheet.png")


def test_arrange_rejects_folders_that_contain_splits_or_wrapped_class_folders():
    wrapped = [
        f"seg_{split}/seg_{split}/{title}/1.png" for split in "ab" for title in ("sea", "ice")
    ]
    with pytest.raises(DataError, match=r"'seg_a' and 'seg_b' both contain a folder 'ice', as"):
        arranged(*wrapped, "seg_c/seg_c/1.png")
    splits = [f"photos/{split}/{title}/1.png" for split in ("train", "val") for title in "ab"]
    with pytest.raises(
        DataError, match=r"the folder photos has the folders train, val; .* Is root"
    ):
        arranged(*splits, "samples/1.png")


def test_arrange_accepts_equal_names_in_classes_of_a_split():
    paths = [f"train/{title}/2024/1.png" for title in ("cat", "dog")]
    assert arranged(*paths) == {"train": {"cat": 1, "dog": 1}}


def test_arrange_accepts_equal_names_beside_most_images_of_a_class():
    paths = [f"{title}/{name}.png" for title in ("cat", "dog") for name in ("1", "2", "thumbs/1")]
    assert arranged(*paths) == {"train": {"cat": 3, "dog": 3}}


@pytest.mark.parametrize("inner", [("cat", "dog"), ("train/cat", "val/cat")])
def test_arrange_names_a_folder_that_may_be_the_data_set(inner):
    with pytest.raises(DataError, match=r"Is root/photos the data set\?$"):
        arranged(*(f"photos/{folder}/1.png" for folder in inner))


def test_arrange_rejects_two_folders_of_one_split():
    with pytest.raises(DataError, match=r"'val' and 'validation' are both the split 'val'; rename"):
        arranged("train/cat/1.png", "val/cat/1.png", "validation/cat/2.png")


@pytest.mark.parametrize("loose", [("train", "test"), ("cat", "dog", "val"), ("Testing", "cat")])
def test_arrange_rejects_splits_whose_images_are_not_in_class_folders(loose):
    with pytest.raises(DataError, match="are not in class folders; put the images of a split"):
        arranged(*(f"{folder}/{number}.png" for folder in loose for number in range(3)))


def test_arrange_merges_both_unicode_forms_of_a_name():
    assert NFC != NFD
    paths = [f"train/{NFC}/1.png", "train/tea/1.png", f"val/{NFD}/1.png", f"train/{NFD}/2.png"]
    assert arranged(*paths) == {"train": {NFC: 2, "tea": 1}, "val": {NFC: 1}}
