"""Tests of `local_copy`: what is copied from a bucket and when, and what is refused."""

import pathlib

import pytest

from tests.support.buckets import contents, use_memory
from tests.support.json_steps import write_step
from vit_jax.checkpoints import layout, lock
from vit_jax.checkpoints import local_copy as local_copy_lib
from vit_jax.checkpoints.lease import NAME, Holder
from vit_jax.checkpoints.local_copy import (
    MARKER,
    LocalCopy,
    complete,
    destination,
    find,
    newest_steps,
    open_folder,
    publish,
    registered,
    upload_folder,
    url_of,
)
from vit_jax.data.object_store import ObjectStore
from vit_jax.errors import CheckpointError, ConfigError, InUseError


@pytest.fixture
def store(monkeypatch, tmp_path) -> ObjectStore:
    """A workdir in a bucket with two steps, and one without a marker."""
    monkeypatch.setattr(local_copy_lib, "_copies", {})
    store = ObjectStore(f"{use_memory(monkeypatch, tmp_path)}/runs/a")
    source = tmp_path / "source"
    for step in (4, 8):
        folder = write_step(source / layout.FOLDER, step)
        (folder / "state" / "d").mkdir(parents=True)
        (folder / "state" / "d" / "array").write_bytes(b"%d" % step * 50)
        (folder / MARKER).write_text("Checkpoint commit was successful")
    (source / "config.json").write_text("{}")
    (source / "metrics.jsonl").write_text('{"step": 4}\n')
    (source / ".lock").write_text("process 1")
    upload_folder(store, source)
    store.write(f"{layout.FOLDER}/12/meta/metadata", b"{}")
    store.write("profile/trace.json", b"{}")
    store.write("events.out.tfevents.1", b"1")
    return store


def local_names(folder: pathlib.Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_fetch_copies_small_files_of_finished_steps_only(store, tmp_path):
    copy = LocalCopy(store, tmp_path / "copy")
    copy.fetch()
    names = local_names(tmp_path / "copy")
    assert {"config.json", "metrics.jsonl", "checkpoints/8/meta/metadata"} <= names
    assert not [name for name in names if "state" in name or "12" in name]
    assert not {".lock", "profile/trace.json", "events.out.tfevents.1"} & names
    assert layout.list_steps(tmp_path / "copy" / layout.FOLDER) == [4, 8]
    assert set(copy.steps) == {"checkpoints/4", "checkpoints/8"}


def test_complete_copies_the_arrays_of_one_step(store, tmp_path):
    copy = LocalCopy(store, tmp_path / "copy")
    copy.fetch()
    step = tmp_path / "copy" / layout.FOLDER / "8"
    complete(step)  # Not registered: ignored.
    assert not (step / "state").exists()
    with registered(copy):
        complete(step)
    assert (step / "state" / "d" / "array").read_bytes() == b"8" * 50
    assert not (step.with_name("4") / "state").exists()


def test_fetch_keeps_equal_files_and_removes_all_others(store, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    copy = LocalCopy(store, folder)
    copy.fetch()
    copy.complete(folder / layout.FOLDER / "8")
    (folder / "junk").write_text("x")
    (folder / layout.FOLDER / "99").mkdir()
    (folder / layout.FOLDER / "99" / "meta").write_text("x")
    (folder / layout.FOLDER / "4" / "meta" / "metadata").write_text("damaged")
    copied = []
    original = ObjectStore.download

    def download(self, name, *args, **kwargs):
        copied.append(name)
        return original(self, name, *args, **kwargs)

    monkeypatch.setattr(ObjectStore, "download", download)
    again = LocalCopy(store, folder)
    again.fetch()
    again.complete(folder / layout.FOLDER / "8")
    in_steps = [name for name in copied if "/" in name and MARKER not in name]
    assert in_steps == ["checkpoints/4/meta/metadata"]
    assert "junk" not in local_names(folder)
    assert layout.list_steps(folder / layout.FOLDER) == [4, 8]
    assert (folder / layout.FOLDER / "8/state/d/array").read_bytes() == b"8" * 50


@pytest.mark.parametrize("damage", [b"9" * 50, b"8" * 49, None])
def test_complete_refuses_arrays_that_differ_from_the_marker(store, tmp_path, damage):
    name = "checkpoints/8/state/d/array"
    store.delete([name]) if damage is None else store.write(name, damage)
    copy = LocalCopy(store, tmp_path / "copy")
    copy.fetch()
    message = "no such object" if damage is None else "is damaged"
    with pytest.raises(CheckpointError, match=f"a/{name}.* {message}|a/{name}: {message}"):
        copy.complete(tmp_path / "copy" / layout.FOLDER / "8")
    lenient = LocalCopy(store, tmp_path / "copy", keeps_damaged=True)
    lenient.fetch()
    lenient.complete(tmp_path / "copy" / layout.FOLDER / "8")


def test_a_workdir_copied_from_a_disk_has_steps_without_checksums(store, tmp_path):
    store.write(f"checkpoints/8/{MARKER}", b"Checkpoint commit was successful to /runs/a")
    copy = LocalCopy(store, tmp_path / "copy")
    copy.fetch()
    copy.complete(tmp_path / "copy" / layout.FOLDER / "8")
    path = tmp_path / "copy" / layout.FOLDER / "8/state/d/array"
    assert path.read_bytes() == b"8" * 50
    assert layout.read_manifest(path.parents[2])["step"] == 8


def test_a_marker_cannot_name_files_outside_of_its_step(store, tmp_path):
    marker = b'{"files": {"../../../evil": [1, 1], "state/a": [1, 1]}}'
    store.write(f"checkpoints/8/{MARKER}", marker)
    copy = LocalCopy(store, tmp_path / "copy")
    copy.fetch()
    assert set(copy.steps["checkpoints/8"]) == {"state/a"}


def test_open_folder_returns_paths_unchanged_and_copies_of_urls(store):
    assert open_folder("runs/x") == pathlib.Path("runs/x")
    folder = open_folder(store.url + "/")
    assert folder.is_absolute()
    assert folder.name == "a"
    assert open_folder(f"{store.url}/checkpoints/8") == folder / "checkpoints/8"
    assert url_of(folder / "checkpoints/8") == f"{store.url}/checkpoints/8"
    assert url_of(folder) == store.url
    assert url_of("runs/x") == "runs/x"
    assert find(folder / "checkpoints").folder == folder
    for error in (CheckpointError, ConfigError):
        with pytest.raises(error, match=f"{store.url}/none: no such object or folder"):
            open_folder(f"{store.url}/none", error)


def test_publish_writes_files_of_a_copy_back(store, tmp_path):
    folder = open_folder(store.url)
    (folder / "eval-val.json").write_text("{}")
    (tmp_path / "elsewhere").write_text("1")
    publish(folder / "eval-val.json", tmp_path / "elsewhere")
    assert store.read("eval-val.json") == b"{}"
    assert "elsewhere" not in contents("memory://bucket")


def test_a_workdir_with_a_lease_is_in_use_until_it_is_finished(store):
    holder = Holder.this_process()
    values = f'{{"process": {holder.process}, "started": "{holder.started}", "host": "h", '
    store.write(NAME, (values + f'"machine": "{holder.machine}"}}').encode())
    folder = open_folder(store.url)
    with pytest.raises(
        InUseError, match=rf"{store.url} is in use by process {holder.process} on h"
    ):
        lock.check_not_in_use(folder)
    (folder / "summary.json").write_text("{}")
    lock.check_not_in_use(folder)


def test_destination_uploads_a_new_file_and_the_files_beside_it(store, tmp_path):
    with destination(f"{store.url}/new/w.npz") as path:
        path.write_bytes(b"weights")
        path.with_suffix(".classes.txt").write_bytes(b"a\nb\n")
    found = contents(f"{store.url}/new")
    assert found == {"w.npz": b"weights", "w.classes.txt": b"a\nb\n"}
    with pytest.raises(ConfigError, match=r"w\.npz exists"), destination(f"{store.url}/new/w.npz"):
        pass
    with destination(f"{store.url}/new/w.npz", overwrite=True) as path:
        path.write_bytes(b"other")
    assert store.read("new/w.npz") == b"other"
    with pytest.raises(ConfigError, match="exists"), destination(store.url, overwrite=True):
        pass
    with destination(str(tmp_path / "local")) as path:
        assert path == tmp_path / "local"


def test_destination_of_a_failed_block_writes_nothing(store):
    with pytest.raises(ZeroDivisionError), destination(f"{store.url}/new/w.npz") as path:
        path.write_bytes(b"weights")
        raise ZeroDivisionError
    assert not contents(f"{store.url}/new")


def test_newest_steps_of_a_bucket_are_those_of_finished_steps(store):
    upload = ObjectStore(f"{store.url}/finetune")
    upload.write(f"{layout.FOLDER}/9/{MARKER}", b"")
    upload.write(f"{layout.BEST}/10/{MARKER}", b"")
    assert newest_steps(store.url) == {store.url: 8, f"{store.url}/finetune": 9}
    assert newest_steps(f"{store.url}/nothing") == {}


def test_newest_steps_of_a_folder_are_those_of_all_runs_in_it(tmp_path):
    assert newest_steps(str(tmp_path / "run")) == {}
    for step in ("first/checkpoints/4", "first/checkpoints/10", "first/best/12", "checkpoints/3"):
        (tmp_path / "run" / step).mkdir(parents=True)
    (tmp_path / "run/damaged/checkpoints/5").mkdir(parents=True)
    run = f"{tmp_path}/run"
    assert newest_steps(run) == {run: 3, f"{run}/first": 10}
