"""Folders that `prepare` wrote, by split and slice, with the labels and names of the manifest."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data import manifest, subsets
from vit_jax.data.decode import decode
from vit_jax.data.sources import open_split, open_training
from vit_jax.errors import ConfigError, DataError
from vit_jax.prepare.exclude import signature_batches
from vit_jax.prepare.prepare import prepare_dataset

AGAIN = """
import pickle, sys
source = pickle.load(open(sys.argv[1], "rb"))
print([source[i]["label"] for i in range(len(source))], "jax" in sys.modules)
"""


def write_images(root, split: str, counts: dict[str, int]) -> None:
    """Solid colours: the class in green, the number in red."""
    for k, (title, count) in enumerate(counts.items()):
        folder = root / split / title
        folder.mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 3), (i, k, 0)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("prepared")
    write_images(root / "source", "train", {"ant": 40, "bee": 20, "cat": 5})
    write_images(root / "source", "val", {"ant": 3, "bee": 2, "cat": 2})
    prepare_dataset(str(root / "source"), str(root / "set"), workers=1)
    return str(root / "set")


@pytest.fixture(scope="module")
def without_val(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("train_only")
    write_images(root / "source", "", {"ant": 40, "bee": 20})
    prepare_dataset(str(root / "source"), str(root / "set"), workers=1)
    return str(root / "set")


def open_prepared(folder, split="train", **fields):
    return open_split(Data(source="prepared", dir=folder, **fields), split)


def found_in(source) -> list[tuple[int, int, str]]:
    """Class and number by the pixels, and the name, of every record."""
    pixels = [decode(source[i]["image"])[0, 0] for i in range(len(source))]
    return [(int(p[1]), int(p[0]), source.name(i)) for i, p in enumerate(pixels)]


@pytest.mark.parametrize(
    ("split", "size"),
    [("train", 65), ("val", 7), ("train[:20%]", 13), ("train[10:30]+val", 27), ("train[-5:]", 5)],
)
def test_prepared_source_has_the_labels_and_names_of_its_records(folder, split, size):
    source = open_prepared(folder, split)
    assert len(source) == size
    assert source.classes == ("ant", "bee", "cat")
    found = found_in(source)
    assert (
        [source[i]["label"] for i in range(size)] == list(source.labels) == [k for k, *_ in found]
    )
    for k, number, name in found:
        assert name.split("/", 1)[1] == f"{source.classes[k]}/{number}.png"


def test_prepared_labels_are_read_without_the_records(folder):
    source = open_prepared(folder)

    class Untouchable:
        def __getattr__(self, name):
            raise AssertionError("a record was read")

    blind = type(source)(**vars(source) | {"records": Untouchable()})
    assert list(np.bincount(blind.labels)) == [40, 20, 5]


def test_slices_of_a_prepared_split_are_disjoint_and_complete(folder):
    parts = [set(found_in(open_prepared(folder, s))) for s in ("train[:98%]", "train[98%:]")]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(found_in(open_prepared(folder)))
    # Records are in an order of their own, so that a slice is a fair sample.
    assert len({k for k, *_ in found_in(open_prepared(folder, "train[:20%]"))}) >= 2


def test_open_prepared_without_val_holds_it_out_of_train(without_val):
    train, val = (set(found_in(open_prepared(without_val, s))) for s in ("train", "val"))
    assert (len(train), len(val)) == (54, 6)
    assert not train & val
    assert len(open_prepared(without_val, val_fraction=0.0)) == 60
    with pytest.raises(DataError, match=r"has splits \['train'\], not 'val'"):
        open_prepared(without_val, "val", val_fraction=0.0)


def test_prepared_fingerprint_depends_on_contents_and_slice(folder, without_val):
    prints = [open_prepared(folder, s).fingerprint() for s in ("train", "val", "train[:50%]")]
    assert len({*prints, open_prepared(without_val).fingerprint()}) == 4
    assert prints[0] == open_prepared(folder).fingerprint()


def test_prepared_source_is_pickled_in_a_few_bytes(folder, tmp_path):
    source = subsets.draw_subset(open_prepared(folder), Data(fraction=0.5))
    assert source.name(0)  # The manifest is open; it stays here.
    packed = pickle.dumps(source)
    assert len(packed) < 10_000
    (tmp_path / "source").write_bytes(packed)
    command = [sys.executable, "-c", AGAIN, str(tmp_path / "source")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{[int(k) for k in source.labels]} False\n", done.stderr


def test_manifest_writes_a_million_labels_with_four_bytes_each(tmp_path):
    record = {"path": "train/a/1.jpg", "label": 7}
    line = json.dumps(record).encode() + b"\n"
    manifest.write(tmp_path, ((line, record) for _ in range(1_000_000)))
    rows = manifest.rows(str(tmp_path))
    assert isinstance(rows, np.memmap)
    assert rows["label"].nbytes == 4_000_000
    assert manifest.record(str(tmp_path), 999_999) == manifest.record(str(tmp_path), 0) == record


def test_open_training_mixes_prepared_folders(folder, without_val):
    data = Data(source="prepared", mix=((without_val, 1), (folder, 3)), fraction=0.5)
    train = open_training(data)
    assert train.classes == ("ant", "bee", "cat")
    assert sum(train.sizes) == round((54 + 65) / 2)
    assert [train[i]["label"] for i in range(len(train))] == list(train.labels)


def test_open_prepared_reports_mistakes_in_one_line(folder, tmp_path):
    with pytest.raises(DataError, match=r"has splits \['train', 'val'\], not 'test'\.$"):
        open_prepared(folder, "test")
    with pytest.raises(DataError, match=r"data\.split=train\[:a\] of .* cannot be read"):
        open_prepared(folder, "train[:a]")
    with pytest.raises(DataError, match=r"data\.dir=.*nowhere: no such folder\.$"):
        open_prepared(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"data\.dir=\(empty\): no such folder"):
        open_prepared("")
    (tmp_path / "half.partial").mkdir()
    with pytest.raises(DataError, match="`prepare` has not finished it; run it again"):
        open_prepared(str(tmp_path / "half"))
    with pytest.raises(DataError, match="`prepare` did not write this folder; use data"):
        open_prepared(str(tmp_path))


def test_open_prepared_names_a_missing_shard(without_val, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(without_val, copy)
    shard = next(copy.glob("*.array_record-*"))
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}: no such file; the data set is incomplete"):
        open_prepared(str(copy))


def test_open_prepared_and_exclude_import_no_class_of_another_package(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    file = tmp_path / "data" / "features.json"
    file.write_text(file.read_text().replace("tensorflow_datasets.core", "own.core"))
    message = r"features\.json is 'own\.core\..*': not part of vit_jax\."
    with pytest.raises(ConfigError, match=message):
        open_split(Data(source="prepared", dir=str(tmp_path / "data")), "train")
    with pytest.raises(ConfigError, match=message):
        signature_batches(str(tmp_path / "data"))


def test_open_prepared_reports_a_damaged_list_of_features(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "features.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"features\.json: damaged \(Expecting value"):
        open_split(Data(source="prepared", dir=str(tmp_path / "data")), "train")
