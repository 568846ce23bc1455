"""Writing of files: complete or not at all, through no link, and without leftovers."""

import errno
import json
import os
import pathlib
import stat
import subprocess
import sys
import types

import numpy as np
import pytest

from tests.support.runs import ROOT
from vit_jax import atomic_io
from vit_jax.atomic_io import (
    add_path_to_errors,
    describe_space,
    json_object,
    open_atomically,
    open_to_append,
    remove_abandoned,
    replace_atomically,
    temporary_folder,
    to_json,
    write_aside,
    write_atomically,
)
from vit_jax.errors import NonFiniteError

OTHER_HOST = "0" * 8


def names(folder: pathlib.Path) -> list[str]:
    return sorted(os.listdir(folder))


def leftover(folder: pathlib.Path, host: str = atomic_io.HOST, age: float = 0) -> pathlib.Path:
    path = folder / f".vit_jax-{host}-0123456789abcdef.tmp"
    path.write_text("part")
    changed = path.stat().st_mtime - age
    os.utime(path, (changed, changed))
    return path


@pytest.mark.parametrize("content", ["Kätzchen \udcff", b"\0\xff"])
def test_write_atomically_replaces_the_content(tmp_path, content):
    path = tmp_path / "x"
    path.write_text("old and longer content")
    write_atomically(path, content)
    expected = content if isinstance(content, bytes) else "Kätzchen ".encode() + b"\xff"
    assert path.read_bytes() == expected
    assert names(tmp_path) == ["x"]


def test_write_atomically_supports_the_longest_file_names(tmp_path):
    write_atomically(tmp_path / ("x" * 255), "content")
    assert names(tmp_path) == ["x" * 255]


def test_new_files_have_the_permissions_of_the_umask(tmp_path):
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x", "content")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_readers_see_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with open_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_failed_block_keeps_the_old_file_and_no_other(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyError), open_atomically(tmp_path / "x") as file:
        file.write(b"new")
        raise KeyError
    with pytest.raises(KeyboardInterrupt), replace_atomically(tmp_path / "y", is_folder=True) as y:
        (y / "file").write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_link_is_replaced_and_its_target_unchanged(tmp_path):
    (tmp_path / "target").write_text("thesis")
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", "content")
    assert (tmp_path / "target").read_text() == "thesis"
    assert not (tmp_path / "link").is_symlink()


def test_a_taken_temporary_name_is_not_overwritten(tmp_path, monkeypatch):
    (tmp_path / "target").write_text("thesis")
    taken = tmp_path / f".vit_jax-{atomic_io.HOST}-{'0' * 16}.tmp"
    taken.symlink_to("target")
    monkeypatch.setattr(atomic_io.secrets, "token_hex", lambda count: "0" * 2 * count)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "x", "content")
    with pytest.raises(FileExistsError), replace_atomically(tmp_path / "x", is_folder=True):
        pass
    assert (tmp_path / "target").read_text() == "thesis"
    assert taken.is_symlink()


def test_folder_replaces_an_empty_folder_only(tmp_path):
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "thesis").touch()
    for name in ("new", "empty"):
        with replace_atomically(tmp_path / name, is_folder=True) as folder:
            (folder / "file").touch()
        assert names(tmp_path / name) == ["file"]
    full = replace_atomically(tmp_path / "full", is_folder=True)
    with pytest.raises(OSError, match="not empty"), full as folder:
        (folder / "file").touch()
    assert names(tmp_path) == ["empty", "full", "new"]
    assert names(tmp_path / "full") == ["thesis"]


def test_write_aside_moves_all_files_and_the_named_one_last(tmp_path, monkeypatch):
    (tmp_path / "x.npz").write_text("old")
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(b.name), replace(a, b)))
    with write_aside(tmp_path / "x.npz", is_folder=False) as new:
        for name in ("x.npz", "x.npz.md", "a.txt", "z.txt"):
            (new.parent / name).write_text("new")
        assert names(tmp_path) == [new.parent.name, "x.npz"]
    assert moved[-1] == "x.npz"
    assert names(tmp_path) == ["a.txt", "x.npz", "x.npz.md", "z.txt"]
    assert (tmp_path / "x.npz").read_text() == "new"


@pytest.mark.parametrize("is_folder", [False, True])
def test_write_aside_leaves_nothing_if_the_block_raises(tmp_path, is_folder):
    with pytest.raises(KeyError), write_aside(tmp_path / "x", is_folder=is_folder) as new:
        (new / "file" if is_folder else new).write_text("not verified")
        raise KeyError
    assert names(tmp_path) == []


def test_temporary_folder_is_removed_at_the_end(tmp_path):
    with temporary_folder(tmp_path) as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path
    assert names(tmp_path) == []


# Errors.


def test_full_disk_error_has_path_and_bytes(tmp_path, monkeypatch):
    def full_disk(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"\(5 bytes needed, [\d,]+ bytes free\)") as caught:
        write_atomically(tmp_path / "x", "abcde")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    new_folder = replace_atomically(tmp_path / "folder", is_folder=True)
    with pytest.raises(OSError, match="bytes free") as caught, new_folder as folder:
        write_atomically(folder / "file", "abcde")
    assert caught.value.filename == str(tmp_path / "folder")
    assert caught.value.strerror.count("5 bytes needed") == 1
    assert names(tmp_path) == []


def test_errors_name_the_file_instead_of_its_temporary_file(tmp_path):
    (tmp_path / "file").touch()
    for folder, expected in (("none", FileNotFoundError), ("file", NotADirectoryError)):
        with pytest.raises(expected) as caught:
            write_atomically(tmp_path / folder / "x", "content")
        assert caught.value.filename == str(tmp_path / folder / "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(tmp_path / "folder", "content")
    assert caught.value.filename == str(tmp_path / "folder")


def test_errors_of_other_files_keep_their_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image\.jpg"), open_atomically(tmp_path / "x"):
        (tmp_path / "image.jpg").read_bytes()
    with pytest.raises(OSError, match="/x") as caught, add_path_to_errors(pathlib.Path("/x")):
        raise OSError(errno.EIO, "Input/output error")
    assert caught.value.errno == errno.EIO


# What killed processes leave.

KILLED = """
import os, pathlib, signal, sys
from vit_jax.atomic_io import open_atomically, replace_atomically
folder = pathlib.Path(sys.argv[1])
with replace_atomically(folder / "folder", is_folder=True) as new, open_atomically(folder / "x"):
    (new / "part").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_next_write_removes_the_files_of_a_killed_process(tmp_path):
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
    assert process.returncode == -9
    assert len(names(tmp_path)) == 2
    write_atomically(tmp_path / "y", "content")
    assert names(tmp_path) == ["y"]


def test_files_of_running_processes_are_kept(tmp_path):
    with replace_atomically(tmp_path / "x") as x, temporary_folder(tmp_path) as folder:
        os.utime(x, (0, 0))
        os.utime(folder, (0, 0))
        remove_abandoned(tmp_path)
        assert x.exists()
        assert folder.exists()


@pytest.mark.parametrize(
    ("host", "age", "is_removed"),
    [
        (atomic_io.HOST, 0, True),
        (OTHER_HOST, 3600, False),  # Its locks may not be known here.
        (OTHER_HOST, atomic_io.MAX_AGE + 60, True),
    ],
)
def test_files_of_other_hosts_are_removed_after_a_day(tmp_path, host, age, is_removed):
    path = leftover(tmp_path, host, age)
    remove_abandoned(tmp_path)
    assert path.exists() != is_removed


def test_without_locks_files_are_removed_after_a_day(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic_io.fcntl, "flock", no_locks)
    path = leftover(tmp_path)
    write_atomically(tmp_path / "x", "content")
    assert path.exists()
    path = leftover(tmp_path, age=atomic_io.MAX_AGE + 60)
    write_atomically(tmp_path / "x", "content")
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "name",
    [
        "notes.tmp",
        ".vit_jax.tmp",
        ".vit_jax-notes.tmp",
        f".vit_jax-{OTHER_HOST}-0123456789abcdef.tmp.bak",
        f"vit_jax-{OTHER_HOST}-0123456789abcdef.tmp",
        "x.npz.1234.tmp",
    ],
)
def test_files_of_the_user_are_kept(tmp_path, name):
    path = tmp_path / name
    path.write_text("thesis")
    os.utime(path, (0, 0))
    write_atomically(tmp_path / "x", "content")
    assert path.read_text() == "thesis"


def test_link_with_the_name_of_a_temporary_file_leaves_its_target(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis").touch()
    link = tmp_path / f".vit_jax-{atomic_io.HOST}-0123456789abcdef.tmp"
    link.symlink_to("folder")
    write_atomically(tmp_path / "x", "content")
    assert names(tmp_path / "folder") == ["thesis"]


# Files that grow.


def test_open_to_append_keeps_content_and_refuses_links(tmp_path):
    for text in ("a", "b"):
        with open_to_append(tmp_path / "x") as file:
            file.write(text)
    assert (tmp_path / "x").read_text() == "ab"
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "nowhere").symlink_to("gone")
    for name in ("link", "nowhere"):
        with pytest.raises(OSError, match="is a link, and links are not written to") as caught:
            open_to_append(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    assert names(tmp_path) == ["link", "nowhere", "x"]


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), np.float64("inf")])
def test_to_json_rejects_numbers_that_json_lacks_and_names_the_place(number):
    assert json.loads(to_json({"a": [1.5, None], "b": "NaN"})) == {"a": [1.5, None], "b": "NaN"}
    with pytest.raises(NonFiniteError, match=rf"^a\.1\.loss is {number}; JSON has finite"):
        to_json({"n": 3, "a": (1.0, {"loss": number})})


@pytest.mark.parametrize(
    ("text", "reason"),
    [("[1]", "found list"), ("{", "Expecting"), ("[" * 200_000, "nested"), (b"\xff", "decode")],
)
def test_json_object_rejects_other_text_by_a_value_error(text, reason):
    with pytest.raises(ValueError, match=reason):
        json_object(text)
    assert json_object(b'{"a": 1}') == {"a": 1}


def test_describe_space_says_that_no_files_are_left(tmp_path, monkeypatch):
    """A disk can have free bytes and no free inodes."""
    status = dict.fromkeys(("f_bavail", "f_bfree", "f_blocks", "f_files", "f_frsize"), 9)
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(f_favail=0, **status))
    assert describe_space(tmp_path / "x").endswith(" bytes free, no more files possible")
