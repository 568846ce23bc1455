"""CSV lists of images and labels, in real files."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data.decode import decode
from vit_jax.data.sources import open_split
from vit_jax.errors import DataError

HEADER = "path,label\n"


def open_csv(where, split="train", **fields):
    return open_split(Data(source="csv", dir=str(where), **fields), split)


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    """A folder with the images 0.png to 29.png, of one red each."""
    for i in range(30):
        Image.new("RGB", (3, 2), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def write_list(folder: pathlib.Path, rows, name="train.csv") -> pathlib.Path:
    text = HEADER + "".join(f"{i}.png,{title}\n" for i, title in rows)
    (folder / name).write_text(text)
    return folder / name


def records(source) -> list[tuple[int, str]]:
    """Returns the red and the class name of every record."""
    reds = [int(decode(source[i]["image"])[0, 0, 0]) for i in range(len(source))]
    titles = [source.classes[source[i]["label"]] for i in range(len(source))]
    assert titles == [source.classes[label] for label in source.labels]
    return list(zip(reds, titles, strict=True))


def test_open_csv_reads_the_lists_of_a_folder(images):
    write_list(images, [(3, "dog"), (1, "cat"), (2, "dog")])
    write_list(images, [(5, "dog")], "val.csv")
    write_list(images, [(6, "cat"), (7, "cat")], "test.csv")
    train, val, test = (open_csv(images, split) for split in ("train", "val", "test"))
    assert train.classes == val.classes == test.classes == ("cat", "dog")
    assert sorted(records(train)) == [(1, "cat"), (2, "dog"), (3, "dog")]
    assert records(val) == [(5, "dog")]
    assert records(test) == [(6, "cat"), (7, "cat")]
    assert {train.name(i) for i in range(3)} == {"1.png", "2.png", "3.png"}
    assert train.fingerprint() != val.fingerprint()


def test_paths_are_relative_to_the_list_or_absolute(images, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.csv").write_text(f"path,label\n../4.png,a\n{images}/5.png,b\n")
    assert records(open_csv(lists, val_fraction=0.0)) == [(4, "a"), (5, "b")]


@pytest.mark.parametrize("is_file", [True, False])
def test_open_csv_without_val_holds_it_out_of_each_class(images, is_file):
    file = write_list(images, [(i, "abc"[i % 3]) for i in range(30)])
    where = file if is_file else images
    train, val = (open_csv(where, split, val_fraction=0.2) for split in ("train", "val"))
    assert list(np.bincount(val.labels)) == [2, 2, 2]
    assert sorted(records(train) + records(val)) == [(i, "abc"[i % 3]) for i in range(30)]
    shuffled = write_list(images, [(i, "abc"[i % 3]) for i in reversed(range(30))], "again.csv")
    assert open_csv(shuffled, "val", val_fraction=0.2).files == val.files


def test_open_csv_sorts_numeric_class_names_by_value(images):
    write_list(images, [(0, "10"), (1, "9"), (2, "b"), (3, "007"), (4, "A")])
    assert open_csv(images).classes == ("007", "9", "10", "A", "b")


def test_open_csv_reads_a_byte_order_mark_crlf_quotes_and_other_columns(images):
    Image.new("RGB", (3, 2), (77, 0, 0)).save(images / 'a, "b".png')
    rows = ["label,width,path", 'a cat,3,"a, ""b"".png"', "", '"dog, small", 3, "1.png"']
    rows.append("chat é,3,2.png")
    (images / "train.csv").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    source = open_csv(images, val_fraction=0.0)
    assert source.classes == ("a cat", "chat é", "dog, small")
    assert records(source) == [(77, "a cat"), (2, "chat é"), (1, "dog, small")]


def test_a_folder_without_train_list_is_for_evaluation_only(images):
    write_list(images, [(0, "a"), (1, "b")], "test.csv")
    assert len(open_csv(images, "test")) == 2
    with pytest.raises(DataError, match=r"expected a CSV file, or a folder with train\.csv\.$"):
        open_csv(images)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "",
            r"train\.csv, line 1: the header '' has 0 columns named 'path'; expected path,label\.$",
        ),
        ("0.png,a\n1.png,b\n", r"line 1: the header '0\.png,a' has 0 columns named 'path'"),
        ("path;label\n0.png;a\n", r"line 1: the header 'path;label' has 0 columns named 'path'"),
        ("path,class\n0.png,a\n", r"line 1: the header 'path,class' has 0 columns named 'label'"),
        ("path,label,path\n0.png,a,b\n", r"line 1: .* has 2 columns named 'path'"),
        (HEADER, r"train\.csv: classes \[\]; expected at least two\.$"),
        (f"{HEADER}0.png,a\n1.png,a\n", r"train\.csv: classes \['a'\]; expected at least two\.$"),
        (f"{HEADER}0.png,a\n1.png\n", r"line 3: 1 columns; the header has 2\.$"),
        (f"{HEADER}0.png,a,b\n", r"line 2: 3 columns; the header has 2\.$"),
        (f"{HEADER}\n0.png,a\n1.png, \n", r"line 4: the label is empty\.$"),
        (f"{HEADER},a\n", r"line 2: the path is empty\.$"),
        (f"{HEADER}0.png,a\nnone.png,b\n", r"line 3: no such file: .*none\.png\.$"),
        (
            f"{HEADER}0.png,a\n1.png,b\n./0.png,a\n",
            r"line 4: path '\./0\.png' is also in line 2\.$",
        ),
        (f'{HEADER}0.png,a\n"1.png,b\n', r"line 3: not valid CSV \(unexpected end of data\)\.$"),
    ],
    ids=str,
)
def test_open_csv_names_file_and_line_of_a_mistake(images, text, words):
    (images / "train.csv").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        open_csv(images)
    assert str(caught.value).startswith(str(images / "train.csv"))
    assert "\n" not in str(caught.value)


def test_open_csv_names_the_line_that_is_not_utf8(images):
    (images / "train.csv").write_bytes(b"path,label\n0.png,caf\xc3\xa9\n1.png,caf\xe9\n")
    with pytest.raises(DataError, match=r"train\.csv, line 3: not UTF-8 \(invalid"):
        open_csv(images)


def test_open_csv_rejects_a_val_class_unknown_to_training(images):
    write_list(images, [(0, "cat"), (1, "dog")])
    write_list(images, [(2, "dog"), (3, "dogs")], "val.csv")
    words = r"val\.csv, line 3: class 'dogs' is not among the 2 classes .*Did you mean dog\?$"
    with pytest.raises(DataError, match=words):
        open_csv(images, "val")
    assert len(open_csv(images)) == 2


def test_open_csv_rejects_missing_lists_and_empty_splits(images):
    file = write_list(images, [(0, "cat"), (1, "dog")])
    with pytest.raises(DataError, match=r"no list test\.csv for split 'test'\.$"):
        open_csv(images, "test")
    with pytest.raises(DataError, match=r"no list test\.csv for split 'test'\.$"):
        open_csv(file, "test")
    with pytest.raises(DataError, match="split 'val' has no images"):
        open_csv(file, "val")  # A class with one image keeps it for training.
    with pytest.raises(DataError, match=r"data\.dir=.*nowhere: expected a CSV file"):
        open_csv(images / "nowhere")
    with pytest.raises(DataError, match=r"data\.dir=\(empty\): expected a CSV file"):
        open_csv("")
