"""Images with equal bytes in a prepared data set: counted by class pair and split pair, listed."""

import json

import pytest

from tests.support.image_files import encode_image
from vit_jax.prepare import copies
from vit_jax.prepare.prepare import prepare_dataset


@pytest.fixture
def source(photos, tmp_path):
    """Pictures a to e: a is once in three classes, b thrice in one, c in both splits."""
    crops = {name: photos[0][k : k + 16, :16] for k, name in enumerate("abcde")}
    pictures = {name: encode_image(crop, "PNG") for name, crop in crops.items()}
    for path in (
        *("train/ant/a1", "train/bee/a2", "train/cat/a3"),
        *("train/ant/b1", "train/ant/b2", "train/ant/b3"),
        *("train/bee/c1", "val/bee/c2"),
        *("train/cat/d1", "val/ant/d2"),
        *("train/bee/e1", "train/cat/more/e2"),
    ):
        file = tmp_path / "source" / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pictures[file.name[0]])
    return tmp_path / "source"


def test_prepare_counts_and_lists_equal_images(source, tmp_path, capsys):
    for _ in range(2):  # The second run reads the finished set.
        line = prepare_dataset(str(source), str(tmp_path / "set"), workers=1)
        assert line.startswith("done: images=12 classes=3 damaged=0 duplicates=12 destination=")
        out = capsys.readouterr().out.splitlines()
        table = [tuple(part.strip() for part in line.rsplit(None, 2)) for line in out[-10:-1]]
        assert table == [
            ("exact duplicates", "groups", "images"),
            ("all", "5", "12"),
            ("in one class", "1", "3"),
            ("in several classes", "3", "7"),
            ("ant, cat", "2", "4"),
            ("bee, cat", "2", "4"),
            ("ant, bee", "1", "2"),
            ("in several splits", "2", "4"),
            ("train, val", "2", "4"),
        ]
        assert out[-1] == f"exact duplicates are listed in {tmp_path / 'set/duplicates.jsonl'}"


def lines(path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_manifest_and_list_name_equal_images(source, tmp_path):
    prepare_dataset(str(source), str(tmp_path / "set"), workers=1)
    records = lines(tmp_path / "set/manifest.jsonl")
    digests = {record["path"]: record["sha256"] for record in records}
    groups = lines(tmp_path / "set/duplicates.jsonl")
    assert sorted(len(group) for group in groups) == [2, 2, 2, 3, 3]
    first_of = {}
    for group in groups:
        assert len({digests[image["path"]] for image in group}) == 1
        for image in group:
            assert image["path"].split("/")[:2] == [image["split"], image["class"]]
            first_of[image["path"]] = group[0]["path"]
    for record in records:
        first = first_of[record["path"]]
        assert record.get("copy_of", record["path"]) == first


def test_find_firsts_ignores_images_that_are_left_out():
    digests = ["a", "b", "b", "a", "c", "a"]
    records = [{"sha256": letter * 64} for letter in digests]
    records[1]["reason"] = "damaged"
    # Rows: a 0, b 1, a 2, c 3, a 4.
    assert copies.find_firsts(records) == {2: 0, 4: 0}
