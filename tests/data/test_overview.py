"""The lines that say what data a run reads."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data.overview import describe_splits
from vit_jax.data.sources import open_both, open_split
from vit_jax.prepare.prepare import prepare_dataset


def add_images(folder, count: int):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (2, 2), (i, 0, 0)).save(folder / f"{i}.png")


@pytest.fixture
def parted(tmp_path):
    for split, count in (("train", 10), ("valid", 3), ("Testing", 2)):
        for title in ("cat", "dog"):
            add_images(tmp_path / "data" / split / title, count)
    (tmp_path / "data/train/cat/x.gif").write_bytes(b"GIF89a")
    return tmp_path / "data"


def lines_of(data: Data) -> list[str]:
    train, val = open_both(data)
    return describe_splits({data.split: train} | ({data.val_split: val} if val else {}))


def test_describe_splits_counts_images_and_lists_what_is_not_read(parted):
    data = Data(source="folder", dir=str(parted), count=7)
    skipped = "data: skipped 1 .gif (not JPEG, PNG or WebP, such as train/cat/x.gif)"
    assert lines_of(data) == [
        "data: train 7 images, 2 classes; val 6 images, 2 classes (not used: test 4 images)",
        skipped,
    ]
    assert lines_of(dataclasses.replace(data, val_split="")) == [
        "data: train 7 images, 2 classes (not used: test 4 images, val 6 images)",
        skipped,
    ]


def test_describe_splits_names_the_share_of_a_held_out_split(tmp_path):
    for title in ("cat", "dog"):
        add_images(tmp_path / title, 10)
    data = Data(source="folder", dir=str(tmp_path), val_fraction=0.2)
    assert lines_of(data) == [
        "data: train 16 images, 2 classes; val 4 images, 2 classes",
        "data: val is the fraction 0.2 of train, because the data has no split val",
    ]
    whole = open_split(dataclasses.replace(data, val_fraction=1.0), "val")
    assert describe_splits({"val": whole}) == [
        "data: val 20 images, 2 classes",
        "data: val is all images, because the data has no split val",
    ]


def test_describe_splits_names_a_class_without_images(parted):
    for path in (parted / "valid" / "dog").iterdir():
        path.unlink()
    lines = lines_of(Data(source="folder", dir=str(parted)))
    assert "data: val has no image of 1 of 2 classes, such as dog" in lines


def test_prepared_splits_are_those_of_the_folder(parted, tmp_path):
    prepare_dataset(str(parted), str(tmp_path / "set"), workers=1)
    folder = Data(source="folder", dir=str(parted))
    prepared = dataclasses.replace(folder, source="prepared", dir=str(tmp_path / "set"))
    assert lines_of(prepared) == lines_of(folder)[:1]
    for split in ("train", "validation", "test"):
        counts = [np.bincount(open_split(data, split).labels) for data in (folder, prepared)]
        np.testing.assert_array_equal(*counts)
