"""Tests of `layout`: names of step folders, their identity, and checksums of JSON items."""

import json
import shutil

import google_crc32c
import numpy as np
import pytest

from tests.support.json_steps import write_manifest, write_step
from vit_jax.checkpoints import layout
from vit_jax.errors import CheckpointError


def test_list_steps_skips_files_and_folders_that_are_no_steps(tmp_path):
    for step in (30, 4):
        write_step(tmp_path, step)
    for name in ("31.orbax-checkpoint-tmp", "032", "step_33", "34 (copy)", "\u0663", ".36"):
        shutil.copytree(tmp_path / "30", tmp_path / name)
    (tmp_path / "37").write_text("")
    (tmp_path / "38").symlink_to(tmp_path / "nowhere")
    assert layout.list_steps(tmp_path) == [4, 30]
    assert layout.find_step_folder(tmp_path) == tmp_path / "30"


def test_list_steps_follows_a_link_to_a_step(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "8").symlink_to(write_step(tmp_path / "other", 8))
    assert layout.list_steps(tmp_path / "checkpoints") == [8]


def test_find_step_folder_lists_what_a_folder_without_checkpoint_contains(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        layout.find_step_folder(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"contains no checkpoint; it contains notes\.txt"):
        layout.find_step_folder(tmp_path)


def test_read_manifest_of_a_renamed_step_names_both_steps(tmp_path):
    write_step(tmp_path, 30, classes=["a", "b"]).rename(tmp_path / "37")
    for read in (layout.read_manifest, lambda path: layout.read_item(path, "meta")):
        with pytest.raises(CheckpointError, match=r"37 contains the checkpoint of step 30;"):
            read(tmp_path / "37")


def test_read_manifest_of_version_0_1_0_compares_the_array_of_the_step(tmp_path):
    crc = google_crc32c.value(np.int32(30).tobytes())
    leaf = {"shape": [], "dtype": "int32", "crc32c": crc}
    step = write_step(tmp_path, 30, leaves={"step": leaf})
    manifest = layout.read_manifest(step)
    del manifest["step"]
    write_manifest(step, manifest)
    assert layout.read_manifest(step)["leaves"] == {"step": leaf}
    step.rename(tmp_path / "37")
    with pytest.raises(CheckpointError, match="37 contains the checkpoint of step"):
        layout.read_manifest(tmp_path / "37")


def test_read_item_of_another_step_is_damaged(tmp_path):
    for step in (4, 8):
        write_step(tmp_path, step, data={"examples_seen": step})
    shutil.copytree(tmp_path / "4" / "data", tmp_path / "8" / "data", dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="8/data is damaged: wrong checksum"):
        layout.read_item(tmp_path / "8", "data")


def test_read_manifest_detects_an_edited_step(tmp_path):
    path = write_step(tmp_path, 30) / "manifest" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 31}))
    with pytest.raises(CheckpointError, match="manifest is damaged: wrong checksum"):
        layout.read_manifest(tmp_path / "30")
