"""Class folders of image files as sources."""

import os
import pathlib
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data.decode import decode
from vit_jax.data.sources import open_split
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


def open_folder(folder, split="train", **fields):
    return open_split(Data(source="folder", dir=str(folder), **fields), split)


def test_open_folder_takes_the_classes_of_training_for_all_splits(parted):
    train, val = open_folder(parted), open_folder(parted, "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert train.files == tuple(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3))
    assert list(train.labels) == [0, 0, 0, 1, 1, 1]
    # The folder `val/cat` does not exist; its dogs are class 1 all the same.
    assert val.files == ("dog/0.png", "dog/1.png")
    assert list(val.labels) == [1, 1]


def test_folder_source_record_is_the_image_of_the_file_and_its_label(parted):
    train = open_folder(parted)
    record = train[4]
    assert decode(record["image"]).shape == (2, 3, 3)
    assert decode(record["image"])[0, 0, 0] == 1
    assert record["label"] == 1
    assert train.name(4) == "dog/1.png"


def test_open_folder_accepts_any_folder_beside_train_as_a_split(parted):
    add_images(parted / "test" / "cat", numbered(4))
    assert list(open_folder(parted, "test").labels) == [0, 0, 0, 0]
    with pytest.raises(DataError, match=r"no folder for split 'tset'; found test, train, val\.$"):
        open_folder(parted, "tset")


def test_open_folder_without_val_splits_the_images_into_train_and_val(flat):
    train, val = (set(open_folder(flat, split).files) for split in ("train", "val"))
    everything = {str(p.relative_to(flat)) for p in flat.rglob("*.png")}
    assert not train & val
    assert train | val == everything
    assert open_folder(flat, "val").classes == ("ant", "cat", "dog")


def test_open_folder_holds_out_val_fraction_of_each_class_and_at_least_one(flat):
    # A tenth of 2, 20 and 30.
    assert list(np.bincount(open_folder(flat, "val").labels)) == [1, 2, 3]
    assert list(np.bincount(open_folder(flat, "val", val_fraction=0.5).labels)) == [1, 10, 15]


def test_open_folder_with_train_alone_holds_out_val_from_it(tmp_path):
    for title in ("cat", "dog"):
        add_images(tmp_path / "train" / title, numbered(10))
    train, val = (open_folder(tmp_path, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (18, 2)
    assert not set(train.files) & set(val.files)


def test_open_folder_keeps_the_only_image_of_a_class_for_training(flat):
    add_images(flat / "bee", ["only.png"])
    assert "bee/only.png" in open_folder(flat).files
    assert "bee/only.png" not in open_folder(flat, "val").files


def test_open_folder_holds_out_the_same_files_in_every_process(flat):
    code = (
        "from vit_jax.config.schema import Data\n"
        "from vit_jax.data.image_folder import open_folder\n"
        f"print(*open_folder(Data(dir={str(flat)!r}), 'val').files)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert tuple(done.stdout.split()) == open_folder(flat, "val").files


def test_open_folder_accepts_image_suffixes_in_any_case_and_no_others(tmp_path):
    add_images(tmp_path / "train" / "a", ["1.JPG", "2.Jpeg", "3.PNG", "4.webp", "5.jpg"])
    add_images(tmp_path / "train" / "b", ["1.png"])
    (tmp_path / "val").mkdir()  # Else a tenth of each class would be kept for it.
    for name in ("notes.txt", "Thumbs.db", "6.gif", "jpg"):
        (tmp_path / "train" / "a" / name).write_text("x")
    train = open_folder(tmp_path)
    assert train.files == ("a/1.JPG", "a/2.Jpeg", "a/3.PNG", "a/4.webp", "a/5.jpg", "b/1.png")
    assert all(decode(train[i]["image"]).shape == (2, 3, 3) for i in range(6))


def test_open_folder_finds_images_at_any_depth_of_a_class_folder(parted):
    add_images(parted / "train" / "cat" / "2024" / "may", ["x.png"])
    assert "cat/2024/may/x.png" in open_folder(parted).files


def test_open_folder_skips_hidden_files_and_hidden_class_folders(parted):
    add_images(parted / "train" / "cat", ["._0.png", ".x.jpg"])
    add_images(parted / "train" / ".cache", ["0.png"])
    train = open_folder(parted)
    assert len(train) == 6
    assert train.classes == ("cat", "dog")


def test_open_folder_skips_hidden_folders_in_a_class_folder(parted):
    add_images(parted / "train" / "cat" / ".thumbnails", ["0.png"])
    assert len(open_folder(parted)) == 6


def test_open_folder_skips_folders_with_the_suffix_of_an_image(parted):
    (parted / "train" / "cat" / "album.jpg").mkdir()
    assert len(open_folder(parted)) == 6


def test_open_folder_accepts_file_names_that_are_not_utf8(flat):
    os.rename(flat / "dog" / "0.png", os.fsencode(flat / "dog") + b"/caf\xe9.png")
    assert len(open_folder(flat)) + len(open_folder(flat, "val")) == 52


def test_open_folder_names_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"data\.dir=.*nowhere: no such folder\.$"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.dir=\(empty\): no such folder\.$"):
        open_folder("")
    with pytest.raises(DataError, match=r"data\.dir=here: no such folder in .*current folder"):
        open_folder("here")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="no such folder"):
        open_folder(tmp_path / "file")


def test_open_folder_rejects_fewer_than_two_classes(tmp_path):
    with pytest.raises(DataError, match="no class folders; expected at least two"):
        open_folder(tmp_path)
    add_images(tmp_path / "cat", numbered(3))
    with pytest.raises(DataError, match="only the class 'cat'; expected at least two"):
        open_folder(tmp_path)


def test_open_folder_rejects_class_folders_without_images(tmp_path):
    for title in ("cat", "dog"):
        (tmp_path / title).mkdir()
        (tmp_path / title / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"cat: no images \(\.jpg, .*\); found 1 \.txt \("):
        open_folder(tmp_path)


def test_open_folder_rejects_an_unknown_val_class_with_the_nearest_name(parted):
    add_images(parted / "val" / "dogs", numbered(1))
    words = r"class 'dogs' is not among the 2 classes of .*train\. Did you mean dog\?$"
    with pytest.raises(DataError, match=words):
        open_folder(parted, "val")
    assert len(open_folder(parted)) == 6


def test_folder_source_names_a_deleted_file(parted):
    train = open_folder(parted)
    (parted / "train" / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match=r"cat/1\.png: unreadable image \(No such file"):
        train[1]


def test_open_folder_finds_splits_by_their_usual_names(tmp_path):
    for split, count in (("Training", 8), ("valid", 4), ("Testing", 3)):
        for title in ("cat", "dog"):
            add_images(tmp_path / split / title, numbered(count))
    sizes = {split: len(open_folder(tmp_path, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 16, "val": 8, "test": 6}
    assert open_folder(tmp_path, "val").classes == ("cat", "dog")
    assert open_folder(tmp_path, "validation").files == open_folder(tmp_path, "val").files


def test_open_folder_finds_one_class_in_both_unicode_forms(tmp_path):
    for split, form in (("train", "NFC"), ("val", "NFD")):
        add_images(tmp_path / split / unicodedata.normalize(form, "café"), numbered(6))
        add_images(tmp_path / split / "tea", numbered(6))
    train, val = open_folder(tmp_path), open_folder(tmp_path, "val")
    assert train.classes == val.classes == (unicodedata.normalize("NFC", "café"), "tea")
    assert list(val.labels) == [0] * 6 + [1] * 6
    assert decode(val[0]["image"]).shape == (2, 3, 3)


def test_open_folder_notes_what_it_skips(parted):
    add_images(parted / "train" / "cat", ["3.jfif"])
    (parted / "train/dog/4.bmp").write_bytes(b"BM")
    (parted / "train/dog/5.png").symlink_to("/not/mounted.png")
    source = open_folder(parted)
    assert "cat/3.jfif" in source.files
    assert source.notes == (
        "data: skipped 1 .bmp (not JPEG, PNG or WebP, such as train/dog/4.bmp); "
        "1 .png (link to a missing file, such as train/dog/5.png)",
    )


def test_open_folder_rejects_classes_of_one_image_for_a_held_out_split(tmp_path):
    for title in ("cat", "dog"):
        add_images(tmp_path / title, numbered(1))
    assert len(open_folder(tmp_path, val_split="")) == 2
    with pytest.raises(
        DataError, match=r"no class has enough images to hold one out for 'val'; .*val_split=''"
    ):
        open_folder(tmp_path, "val")


def test_open_folder_holds_out_everything_of_data_that_is_only_scored(flat):
    assert len(open_folder(flat, "val", val_fraction=1.0)) == 52
    add_images(flat / "train" / "cat", numbered(1))
    add_images(flat / "train" / "dog", numbered(1))
    add_images(flat / "test" / "dog", numbered(1))
    with pytest.raises(DataError, match="no folder for split 'val'; found"):
        open_folder(flat, "val", val_fraction=1.0)


def test_open_folder_names_the_kind_of_a_prepared_folder(tmp_path):
    (tmp_path / "prepared.json").write_text("{}")
    with pytest.raises(DataError, match=r"wrote this folder; set data\.source=prepared\.$"):
        open_folder(tmp_path)


@pytest.mark.parametrize("link", ["val", "train/bird"])
def test_open_folder_rejects_a_link_to_a_missing_folder(link, tmp_path):
    for title in ("cat", "dog"):
        add_images(tmp_path / "train" / title, numbered(3))
    (tmp_path / "train/cat/README").symlink_to("/not/mounted")
    assert len(open_folder(tmp_path, val_split="")) == 6
    for target in ("/not/mounted", str(tmp_path / link)):
        (tmp_path / link).symlink_to(target)
        with pytest.raises(DataError, match=f"/{link}: a link to a missing folder"):
            open_folder(tmp_path)
        (tmp_path / link).unlink()
