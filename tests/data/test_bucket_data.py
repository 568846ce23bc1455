"""Tests of `bucket_data`: copies of data sets, and what they are checked against."""

import shutil

import numpy as np
import pytest

from tests.support.buckets import use_memory
from vit_jax.config.schema import Data
from vit_jax.data import bucket_data
from vit_jax.data.object_store import Listed, ObjectStore
from vit_jax.data.sources import open_both, open_split
from vit_jax.errors import DataError


@pytest.fixture
def store(monkeypatch, tmp_path, photo_folder) -> ObjectStore:
    """Class folders of photos in a bucket; every object has a version."""
    bucket_data.fetch_data.cache_clear()
    store = ObjectStore(f"{use_memory(monkeypatch, tmp_path)}/photos")
    for path in photo_folder.rglob("*.jpg"):
        store.write(path.relative_to(photo_folder).as_posix(), path.read_bytes())
    original = ObjectStore.list

    def list_with_versions(self, prefix=""):
        found = original(self, prefix)
        return {name: Listed(each.size, str(hash(self.read(name)))) for name, each in found.items()}

    monkeypatch.setattr(ObjectStore, "list", list_with_versions)
    yield store
    bucket_data.fetch_data.cache_clear()


def open_photos(store: ObjectStore, **fields):
    return open_both(Data(source="folder", dir=store.url, val_split="val", **fields))


def test_class_folders_in_a_bucket_are_those_on_disk(store, photo_folder):
    sources = open_photos(store)
    expected = open_both(Data(source="folder", dir=str(photo_folder), val_split="val"))
    for found, local in zip(sources, expected, strict=True):
        assert found.fingerprint() == local.fingerprint()
        assert found.classes == local.classes
        assert len(found) == len(local)


def test_objects_are_copied_once_and_again_if_they_differ(store, capsys):
    open_photos(store)
    assert "62 files" in capsys.readouterr().out
    bucket_data.fetch_data.cache_clear()
    open_photos(store)
    assert "; 0 of them are copied" in capsys.readouterr().out
    bucket_data.fetch_data.cache_clear()
    names = list(store.list())
    store.write(names[0], store.read(names[1]))
    store.delete([names[2]])
    train, _ = open_photos(store)
    out = capsys.readouterr().out
    assert "61 files" in out
    assert "; 1 of them are copied" in out
    assert len(train) == 47


def test_a_damaged_copy_is_copied_again(store, capsys):
    train, _ = open_photos(store)
    path = next(p for p in (bucket_data.cache_folder("data")).rglob("*.jpg"))
    size = path.stat().st_size
    path.write_bytes(b"short")
    bucket_data.fetch_data.cache_clear()
    open_photos(store)
    assert "; 1 of them are copied" in capsys.readouterr().out
    assert path.stat().st_size == size
    assert len(train) == 48


def test_missing_data_and_kinds_that_need_a_disk_are_errors(store):
    with pytest.raises(DataError, match=rf"data\.dir={store.url}/none: no such object or folder"):
        open_split(Data(source="folder", dir=f"{store.url}/none"), "train")
    with pytest.raises(DataError, match=r"data\.source=tfds reads a folder on a disk"):
        open_split(Data(source="tfds", dir=store.url, dataset="x"), "train")


def test_a_disk_that_is_too_small_is_one_line(store, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(DataError, match=r"bytes to copy, 10 bytes free in .*XDG_CACHE_HOME"):
        open_photos(store)


def test_a_single_object_is_one_file(store, photo_folder, tmp_path):
    shutil.make_archive(str(tmp_path / "images"), "tar", photo_folder / "train")
    other = ObjectStore(store.url.replace("photos", "images.tar"))
    other.write("", (tmp_path / "images.tar").read_bytes())
    source = open_split(Data(source="images", dir=other.url, val_split=""), "train")
    assert len(source) == 48
    assert np.array_equal(source.labels, np.full(48, -1))
