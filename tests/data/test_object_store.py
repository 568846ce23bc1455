"""Tests of `object_store`: names, faults that pass and faults that last, in memory."""

import errno
import threading

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.buckets import use_memory
from vit_jax.data import object_store
from vit_jax.data.object_store import Fingerprint, ObjectStore, fetch_file, fingerprint_of, is_url
from vit_jax.errors import CheckpointError, ConfigError, DataError


@pytest.fixture
def store(monkeypatch, tmp_path) -> ObjectStore:
    monkeypatch.setattr(object_store, "PAUSE", 0.001)
    return ObjectStore(f"{use_memory(monkeypatch, tmp_path)}/a/b")


def fail(monkeypatch, method: str, *errors: Exception) -> list[Exception]:
    """Makes the first calls of a method of the file system fail; returns the errors not raised."""
    left, original = list(errors), getattr(MemoryFileSystem, method)

    def failing(self, *args, **kwargs):
        if left:
            raise left.pop(0)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, method, failing)
    return left


class HttpError(Exception):
    """An error with a status, as that of gcsfs."""

    def __init__(self, code):
        super().__init__(f"status {code}")
        self.code = code


@pytest.mark.parametrize("text", ["gs://b", "s3://b/c", "S3://b/c/"])
def test_is_url_accepts_buckets(text):
    assert is_url(text)


@pytest.mark.parametrize("text", ["/gs:/b", "gs:/b", "https://b/c", "runs/s3", "file:///b"])
def test_is_url_rejects_paths_and_other_urls(text):
    assert not is_url(text)


@pytest.mark.parametrize("url", ["gs://", "gs:///a", "s3://b/../c", "s3://b//c", "s3://b/./c"])
def test_urls_that_are_no_folder_are_refused(url):
    with pytest.raises(ConfigError, match="is not the URL of a folder in a bucket"):
        ObjectStore(url)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(object_store.PACKAGES, "none", ("nonefs", "nones"))
    import fsspec

    fsspec.register_implementation("none", "no_such_module.None", clobber=True)
    with pytest.raises(ConfigError, match=r"needs the package nonefs.*extra nones.*pip install"):
        ObjectStore("none://bucket/x").list()


def test_objects_are_written_listed_read_and_deleted(store, tmp_path):
    store.write("x/y", b"123")
    (tmp_path / "file").write_bytes(b"12345")
    assert store.upload("z", tmp_path / "file") == fingerprint_of(tmp_path / "file")
    assert {name: each.size for name, each in store.list().items()} == {"x/y": 3, "z": 5}
    assert list(store.list("x")) == ["x/y"]
    assert store.read("x/y") == b"123"
    assert store.read("x/none") is None
    store.delete(["x/y", "x/none"])
    assert list(store.list()) == ["z"]
    assert ObjectStore("memory://bucket/none").list() == {}


def test_create_refuses_an_existing_object(store):
    assert store.create("lock", b"one")
    assert not store.create("lock", b"two")
    assert store.read("lock") == b"one"


def test_create_recognises_its_own_object_after_a_lost_answer(store, monkeypatch):
    original = MemoryFileSystem.pipe_file

    def lose_answer(self, path, value, mode="overwrite"):
        original(self, path, value, mode=mode)
        monkeypatch.setattr(MemoryFileSystem, "pipe_file", original)
        raise TimeoutError("no answer")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lose_answer)
    assert store.create("lock", b"mine")


def test_names_that_leave_the_folder_are_not_listed(store):
    store.write("good", b"")
    MemoryFileSystem.store["/bucket/a/b/../../evil"] = MemoryFileSystem.store["/bucket/a/b/good"]
    assert list(store.list()) == ["good"]


@pytest.mark.parametrize(
    "error",
    [TimeoutError("slow"), ConnectionResetError("closed"), HttpError(503), HttpError("429")],
)
def test_faults_that_pass_are_repeated(store, monkeypatch, capsys, error):
    store.write("x", b"1")
    left = fail(monkeypatch, "cat_file", error, error)
    assert store.read("x") == b"1"
    assert not left
    assert capsys.readouterr().err.count("next attempt in") == 2


def test_a_fault_that_does_not_pass_in_time_is_an_error(store, monkeypatch):
    monkeypatch.setattr(object_store, "PATIENCE", 0.05)
    fail(monkeypatch, "cat_file", *[TimeoutError("slow")] * 1000)
    with pytest.raises(CheckpointError, match=r"memory://bucket/a/b/x: cannot read it: slow \("):
        store.read("x")


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (PermissionError("denied"), "Check the credentials"),
        (HttpError(403), "Check the credentials"),
        (type("NoCredentialsError", (Exception,), {})("none"), "Check the credentials"),
        (FileNotFoundError("no bucket"), "Check that the bucket exists"),
        (ValueError("odd"), ""),
        (OSError(errno.EINVAL, "odd"), ""),
    ],
)
def test_lasting_faults_are_an_error_at_once(store, monkeypatch, capsys, error, hint):
    left = fail(monkeypatch, "pipe_file", error, error)
    with pytest.raises(CheckpointError, match=f"a/b/x: cannot write it: .*{hint}"):
        store.write("x", b"1")
    assert len(left) == 1
    assert not capsys.readouterr().err


def test_the_error_type_is_that_of_the_store(monkeypatch, tmp_path):
    store = ObjectStore(f"{use_memory(monkeypatch, tmp_path)}/x", DataError)
    fail(monkeypatch, "find", PermissionError("denied"))
    with pytest.raises(DataError, match="denied"):
        store.list()


def truncate(monkeypatch, times: int) -> None:
    """Makes the first copies to files lose their last byte."""
    original, left = MemoryFileSystem.get_file, [None] * times

    def copy(self, rpath, lpath, **kwargs):
        original(self, rpath, lpath, **kwargs)
        if left:
            left.pop()
            with open(lpath, "r+b") as file:
                file.truncate(2)

    monkeypatch.setattr(MemoryFileSystem, "get_file", copy)


def test_download_reads_again_after_a_truncated_read(store, tmp_path, monkeypatch):
    store.write("x", b"12345")
    truncate(monkeypatch, object_store.READS - 1)
    found = store.download("x", tmp_path / "new" / "x", Fingerprint(5))
    assert (tmp_path / "new" / "x").read_bytes() == b"12345"
    assert found == fingerprint_of(tmp_path / "new" / "x")


def test_download_of_damaged_content_is_an_error_and_leaves_no_file(store, tmp_path):
    store.write("x", b"12345")
    with pytest.raises(CheckpointError, match=r"a/b/x is damaged: 5 bytes with CRC-32C \d+; exp"):
        store.download("x", tmp_path / "x", Fingerprint(5, 1))
    assert not list(tmp_path.glob("*x*"))
    store.download("x", tmp_path / "x", Fingerprint(5, 1), keeps_damaged=True)
    assert (tmp_path / "x").read_bytes() == b"12345"


def test_download_of_a_missing_object_is_an_error(store, tmp_path):
    with pytest.raises(CheckpointError, match="a/b/x: no such object"):
        store.download("x", tmp_path / "x")
    assert store.download("x", tmp_path / "x", keeps_damaged=True) is None


def test_a_full_disk_is_an_error_of_the_disk(store, tmp_path, monkeypatch):
    store.write("x", b"12345")
    fail(monkeypatch, "get_file", OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left") as caught:
        store.download("x", tmp_path / "x")
    assert caught.value.filename == str(tmp_path / "x")


def test_map_raises_the_first_error_and_keeps_the_order(store):
    gate = threading.Event()

    def slow(item):
        if item == 1:
            gate.wait(10)
        gate.set()
        return item

    assert store.map(slow, [1, 2, 3]) == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        store.map(lambda item: 1 / item, [1, 0, 2])


def test_fetch_file_copies_an_object_once_per_version(store, tmp_path, monkeypatch):
    store.write("w.npz", b"12345")
    url, folder = f"{store.url}/w.npz", tmp_path / "cache"
    path = fetch_file(url, folder)
    assert path == folder / "memory/bucket/a/b/w.npz"
    store.write("w.npz", b"123456")
    assert fetch_file(url, folder).read_bytes() == b"123456"
    with pytest.raises(DataError, match="no such object"):
        fetch_file(f"{store.url}/none.npz", folder, DataError)
