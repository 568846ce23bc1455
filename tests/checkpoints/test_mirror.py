"""Tests of `mirror`: the bucket holds what is on disk, steps are whole, and kills leave no step."""

import json
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.buckets import contents, use_memory
from vit_jax.checkpoints import layout, lease, lock
from vit_jax.checkpoints import local_copy as local_copy_lib
from vit_jax.checkpoints.checkpoint import Checkpoints, restore
from vit_jax.checkpoints.lease import NAME
from vit_jax.checkpoints.local_copy import MARKER, STEP, find, open_folder
from vit_jax.checkpoints.mirror import Mirror, NoMirror, local_folder, mirror_of
from vit_jax.data.object_store import ObjectStore
from vit_jax.errors import CheckpointError, ConfigError, InUseError, notes_of

STATE = {"params": {"kernel": jnp.arange(4096.0), "bias": jnp.ones(3)}, "step": jnp.asarray(1)}


@pytest.fixture
def url(monkeypatch, tmp_path) -> str:
    monkeypatch.setattr(local_copy_lib, "_copies", {})
    monkeypatch.setattr(lease, "SETTLES", 0.01)
    return f"{use_memory(monkeypatch, tmp_path)}/runs/a"


def save(folder: pathlib.Path, *steps: int, **options) -> None:
    """Saves checkpoints, each after a line of metrics."""
    writer = Checkpoints(folder / layout.FOLDER, **options)
    for step in steps:
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(f'{{"step": {step}}}\n')
        writer.save(step, STATE | {"step": jnp.asarray(step)}, data={}, meta={"step": step})
    writer.close()


def steps_in(url: str) -> list[str]:
    names = map(STEP.fullmatch, ObjectStore(url).list())
    return sorted({match[1] for match in filter(None, names)})


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_local_workdir_has_no_mirror(tmp_path):
    with local_folder(tmp_path / "run") as folder:
        assert folder == tmp_path / "run"
        assert isinstance(mirror_of(folder), NoMirror)
        assert find(folder) is None
    with (
        pytest.raises(ConfigError, match=r"--scratch has no effect: workdir .* is not in a bucket"),
        local_folder(tmp_path / "run", str(tmp_path)),
    ):
        pass


def test_the_bucket_has_the_files_of_the_local_folder(url):
    with local_folder(url) as folder:
        save(folder, 4, 8)
        (folder / "config.json").write_text("{}")
        expected = files_of(folder)
    found = contents(url)
    assert set(found) == set(expected)
    assert all(
        found[n] == expected[n] for n in found if not n.endswith(f"8/{MARKER}") and "4/c" not in n
    )
    marker = json.loads(found[f"checkpoints/8/{MARKER}"])["files"]
    names = {f"checkpoints/8/{name}": size for name, (size, _) in marker.items()}
    assert {name: len(found[name]) for name in names} == names
    assert not folder.exists()


def test_a_resumed_run_has_every_step_and_the_arrays_of_those_it_reads(url):
    with local_folder(url) as folder:
        save(folder, 4, 8)
    with local_folder(url) as folder:
        assert layout.list_steps(folder / layout.FOLDER) == [4, 8]
        assert (folder / "metrics.jsonl").read_text() == '{"step": 4}\n{"step": 8}\n'
        step = folder / layout.FOLDER / "8"
        assert not (step / "state").exists()
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), STATE)
        restored = restore(step, abstract)
        np.testing.assert_array_equal(restored["params"]["kernel"], STATE["params"]["kernel"])
        assert not (folder / layout.FOLDER / "4" / "state").exists()
        save(folder, 12)  # Retention counts the steps whose arrays are not here.
    assert steps_in(url) == ["checkpoints/12", "checkpoints/8"]


def test_retention_deletes_steps_in_the_bucket_as_on_disk(url):
    with local_folder(url) as folder:
        save(folder, 2, 4, 6, 8, keep_last=1, keep_every=4)
    assert steps_in(url) == ["checkpoints/4", "checkpoints/8"]


def test_the_marker_is_written_last_and_deleted_first(url, monkeypatch):
    calls = []
    for name in ("write", "upload", "delete"):
        original = getattr(ObjectStore, name)

        def record(self, target, *args, original=original, name=name):
            targets = list(target) if name == "delete" else [target]
            calls.extend((name, each) for each in targets)
            return original(self, targets if name == "delete" else target, *args)

        monkeypatch.setattr(ObjectStore, name, record)
    with local_folder(url) as folder:
        save(folder, 4, 8, keep_last=1)
    of_8 = [call for call in calls if "/8/" in call[1]]
    assert of_8[-1] == ("write", f"checkpoints/8/{MARKER}")
    deleted = [name for verb, name in calls if verb == "delete" and "/4/" in name]
    assert deleted[0] == f"checkpoints/4/{MARKER}"
    assert calls.index(("write", f"checkpoints/8/{MARKER}")) < calls.index(("delete", deleted[0]))
    first_of_8 = calls.index(of_8[0])
    assert ("write", "metrics.jsonl") in calls[:first_of_8]  # The lines of a step come before it.


def test_a_step_whose_upload_was_cut_does_not_exist_and_is_cleaned(url):
    with local_folder(url) as folder:
        save(folder, 4, 8)
    ObjectStore(url).delete([f"checkpoints/8/{MARKER}"])
    assert layout.list_steps(open_folder(url) / layout.FOLDER) == [4]
    with local_folder(url) as folder:
        assert layout.list_steps(folder / layout.FOLDER) == [4]
        assert steps_in(url) == ["checkpoints/4"]
        save(folder, 8)
    assert steps_in(url) == ["checkpoints/4", "checkpoints/8"]


def test_a_step_that_is_saved_again_replaces_the_old_one(url, tmp_path):
    with local_folder(url) as folder:
        save(folder, 4)
    old = ObjectStore(url).list("checkpoints/4/state")
    with local_folder(url) as folder:
        shutil.rmtree(folder / layout.FOLDER / "4")
        save(folder, 4)
    assert not set(old) & {n for n in ObjectStore(url).list() if "/d/" in n}
    copy = tmp_path / "copy"
    for name, data in contents(url).items():  # With any tool.
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    restored = restore(copy / layout.FOLDER / "4", {"step": jax.ShapeDtypeStruct((), jnp.int32)})
    assert restored["step"] == 4


def test_a_local_workdir_that_was_copied_to_the_bucket_resumes(url, tmp_path):
    save_folder = tmp_path / "run"
    save_folder.mkdir()
    save(save_folder, 4)
    store = ObjectStore(url)
    for name, data in files_of(save_folder).items():
        store.write(name, data)
    with local_folder(url) as folder:
        restore(folder / layout.FOLDER / "4", {"step": jax.ShapeDtypeStruct((), jnp.int32)})
        save(folder, 8)
    assert steps_in(url) == ["checkpoints/4", "checkpoints/8"]


def test_damage_in_the_bucket_is_an_error_and_with_fallback_a_damaged_step(url):
    with local_folder(url) as folder:
        save(folder, 4)
    store = ObjectStore(url)
    listed = store.list("checkpoints/4/state")
    name = max(listed, key=lambda name: listed[name].size)
    store.write(name, b"x" * len(store.read(name)))
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), STATE)
    with (
        pytest.raises(CheckpointError, match=rf"{url}/{name} is damaged: .* expected"),
        local_folder(url) as folder,
    ):
        restore(folder / layout.FOLDER / "4", abstract)
    with local_folder(url, keeps_damaged=True) as folder:
        with pytest.raises(CheckpointError, match="damaged"):
            restore(folder / layout.FOLDER / "4", abstract)
        Checkpoints(folder / layout.FOLDER).move_damaged_step(4)
        save(folder, 3)
    assert steps_in(url) == ["checkpoints/3"]
    assert ObjectStore(url).list("damaged/4/state")


def test_a_second_run_is_refused_and_changes_nothing(url, monkeypatch, tmp_path):
    monkeypatch.setattr(lease, "RENEWS", 0.05)
    monkeypatch.setattr(lease, "EXPIRES", 0.5)
    with local_folder(url) as folder:
        (folder / "config.json").write_text("{}")
        with (
            pytest.raises(InUseError, match=f"workdir {url} is in use by process"),
            local_folder(url, str(tmp_path / "other")),
        ):
            pass
        assert folder.exists()
        assert not (tmp_path / "other").exists()
        save(folder, 4)
    assert steps_in(url) == ["checkpoints/4"]
    assert NAME not in ObjectStore(url).list()


def test_a_run_that_lost_its_lease_writes_no_marker_and_stops(url):
    store = ObjectStore(url)
    with pytest.raises(InUseError, match="was taken over"), local_folder(url) as folder:
        store.write(NAME, b"{}")
        save(folder, 4)
    assert f"checkpoints/4/{MARKER}" not in store.list()
    assert store.read(NAME) == b"{}"


def test_an_upload_that_fails_names_the_local_step_and_how_to_go_on(url, monkeypatch):
    original = ObjectStore.upload

    def fail(self, name, path):
        if "/8/" in name:
            raise CheckpointError(f"{self.address(name)}: cannot write it: denied.")
        return original(self, name, path)

    monkeypatch.setattr(ObjectStore, "upload", fail)
    with pytest.raises(CheckpointError) as caught, local_folder(url) as folder:
        save(folder, 4, 8)
    message = str(caught.value)
    assert f"The step is complete in {folder / layout.FOLDER / '8'}" in message
    assert f"continues from the last step in {url}." in message
    assert notes_of(caught.value) == [f"{folder} is the local copy of {url}."]
    assert layout.list_steps(folder / layout.FOLDER) == [4, 8]
    monkeypatch.setattr(ObjectStore, "upload", original)
    with local_folder(url) as folder:
        assert layout.list_steps(folder / layout.FOLDER) == [4]  # The bucket is the truth.


def test_files_beside_steps_are_copied_between_renewals(url, monkeypatch):
    monkeypatch.setattr(lease, "RENEWS", 0.02)
    with local_folder(url) as folder:
        (folder / "metrics.jsonl").write_text("1")
        (folder / ".vit_jax-00000000-0000000000000000.tmp").write_text("temporary")
        store = ObjectStore(url)
        for _ in range(500):
            if store.read("metrics.jsonl") == b"1":
                break
            time.sleep(0.01)
        assert set(store.list()) == {"metrics.jsonl", NAME}


def test_an_error_in_the_block_copies_what_is_left_and_keeps_the_folder(url):
    with pytest.raises(ZeroDivisionError), local_folder(url) as folder:
        save(folder, 4)
        (folder / "notes.txt").write_text("last words")
        raise ZeroDivisionError
    assert ObjectStore(url).read("notes.txt") == b"last words"
    assert NAME not in ObjectStore(url).list()
    assert folder.exists()


def test_scratch_is_the_folder_of_the_local_copies(url, tmp_path):
    with local_folder(url, str(tmp_path / "scratch")) as folder:
        assert folder == tmp_path / "scratch/process_0/memory/bucket/runs/a"
        assert isinstance(mirror_of(folder / "x"), Mirror)


def test_a_run_of_this_machine_in_the_same_folder_is_refused_by_its_url(url):
    with local_folder(url) as folder, lock.Lock(folder):
        other = Mirror(ObjectStore(url), folder)
        with pytest.raises(InUseError, match=f"workdir {url} is in use by process"):
            other.start()
        other.close()
