"""Tests of `prepare_dataset`: contents, damaged images, excluded duplicates and errors."""

import csv
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support.image_files import encode_image, file_digests, make_tar
from tests.support.runs import run_main
from vit_jax.atomic_io import HOST
from vit_jax.errors import ConfigError, DataError
from vit_jax.prepare.prepare import prepare_dataset

READ = """
import hashlib, json, sys
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory(sys.argv[1])
skip = {"image": tfds.decode.SkipDecoding()}
found = {"classes": builder.info.features["label"].names}
for split in builder.info.splits:
    encoded, decoded = (builder.as_data_source(split, decoders=d) for d in (skip, None))
    found[split] = [
        [hashlib.sha256(e["image"]).hexdigest(), int(e["label"]), *d["image"].shape]
        for e, d in zip(encoded, decoded)]
assert "tensorflow" not in sys.modules
print(json.dumps(found))
"""


def crop(photos, i: int) -> np.ndarray:
    top, left = divmod(i, 8)
    return photos[i % 2][60 * top : 60 * top + 56, 78 * left : 78 * left + 70]


@pytest.fixture(scope="module")
def files(photos) -> dict[str, bytes]:
    """JPEGs, and a PNG and a WebP, of two classes in two splits."""
    files = {}
    for i in range(24):
        split, title = ("train", "val")[i % 4 == 3], ("ant", "bee")[i // 12]
        files[f"{split}/{title}/{i:02}.jpg"] = encode_image(crop(photos, i), quality=90)
    files["train/ant/screen.png"] = encode_image(crop(photos, 30), "PNG")
    files["train/bee/deep/web.webp"] = encode_image(crop(photos, 31), "WEBP")
    return files


def write_folder(root: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_prepare(source, destination, **options) -> str:
    return prepare_dataset(str(source), str(destination), workers=1, **options)


@pytest.fixture(scope="module")
def prepared(files, tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("prepared")
    source = write_folder(root / "source", files)
    line = run_prepare(source, root / "set")
    assert line == f"done: images=26 classes=2 damaged=0 duplicates=0 destination={root / 'set'}"
    return root / "set"


@pytest.mark.slow
def test_tfds_reads_the_original_bytes_without_tensorflow(prepared, files):
    command = [sys.executable, "-c", READ, str(prepared)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["classes"] == ["ant", "bee"]
    for split in ("train", "val"):
        expected = [
            [hashlib.sha256(data).hexdigest(), ["ant", "bee"].index(path.split("/")[1]), 56, 70, 3]
            for path, data in files.items()
            if path.startswith(split)
        ]
        assert sorted(found[split]) == sorted(expected)


def test_manifest_describes_every_image(prepared, files):
    found = {line["path"]: line for line in lines(prepared / "manifest.jsonl")}
    assert found.keys() == files.keys()
    for path, data in files.items():
        split, title = path.split("/")[:2]
        assert found[path] == {
            "path": path,
            "split": split,
            "class": title,
            "label": ["ant", "bee"].index(title),
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "width": 70,
            "height": 56,
        }


def test_order_of_a_split_mixes_classes(prepared):
    labels = [
        line["label"] for line in lines(prepared / "manifest.jsonl") if line["split"] == "train"
    ]
    assert labels != sorted(labels)


def test_second_run_does_not_change_a_finished_data_set(prepared, files, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in prepared.iterdir()}
    line = run_prepare(prepared.parent / "source", prepared)
    assert line.startswith("done: images=26 ")
    assert {p.name: p.stat().st_mtime_ns for p in prepared.iterdir()} == before
    assert not prepared.with_name("set.partial").exists()
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["class", "train", "val", "damaged", "duplicate"]
    assert [line.split() for line in out[2:]] == [
        ["ant", "10", "3", "0", "0"],
        ["bee", "10", "3", "0", "0"],
        ["all", "20", "6", "0", "0"],
    ]


@pytest.mark.slow
def test_nested_tar_files_give_the_same_data_set_as_folders(prepared, files, tmp_path):
    parts: dict[str, dict[str, dict[str, bytes]]] = {"train": {}, "val": {}}
    for path, data in files.items():
        split, title, name = path.split("/", 2)
        parts[split].setdefault(title, {})[name] = data
    one = tmp_path / "one.tar"  # One folder contains everything, as after `tar cf one.tar photos`.
    one.write_bytes(make_tar({f"./photos/{path}": data for path, data in files.items()}))
    classes = {
        f"{split}/{title}.tar": make_tar(images)  # As in ImageNet-21k.
        for split, titles in parts.items()
        for title, images in titles.items()
    }
    nested = {  # As ILSVRC2012_img_train.tar is.
        f"{split}.tar": make_tar({f"{title}.tar": make_tar(i) for title, i in titles.items()})
        for split, titles in parts.items()
    }
    sources = [one, write_folder(tmp_path / "classes", classes)]
    sources.append(write_folder(tmp_path / "nested", nested))
    for i, source in enumerate(sources):
        run_prepare(source, tmp_path / f"set{i}")
        assert file_digests(tmp_path / f"set{i}") == file_digests(prepared)


def test_damaged_images_are_left_out_and_listed(files, photos, tmp_path, capsys):
    cmyk = io.BytesIO()
    Image.fromarray(crop(photos, 1)).convert("CMYK").save(cmyk, "JPEG")
    unusual = {  # None of them is damaged.
        "train/ant/cmyk.jpg": cmyk.getvalue(),
        "train/ant/grey.png": encode_image(crop(photos, 2)[..., 0], "PNG"),
        "train/ant/png_called.jpg": encode_image(crop(photos, 3), "PNG"),
        "train/ant/.hidden.jpg": b"",
        "train/ant/notes.txt": b"x",
    }
    jpeg = files["train/bee/12.jpg"]
    damaged = {
        "train/ant/cut.jpg": jpeg[: len(jpeg) // 2],
        "train/bee/empty.png": b"",
        "train/bee/text.jpg": b"<html>404</html>",
        "train/bee/gif.jpg": encode_image(crop(photos, 4), "GIF"),
        "train/bee/caf\udce9.jpg": b"",  # A name in Latin-1.
        "val/bee/cut.png": encode_image(crop(photos, 5), "PNG")[:200],
    }
    source = write_folder(tmp_path / "source", files | unusual | damaged)
    line = run_prepare(source, tmp_path / "set")
    assert line.startswith("done: images=29 classes=2 damaged=6 duplicates=0 ")
    left_out = {line["path"]: line for line in lines(tmp_path / "set" / "left_out.jsonl")}
    assert left_out.keys() == damaged.keys()
    assert all(line["reason"].startswith("unreadable image (") for line in left_out.values())
    assert "truncated" in left_out["train/ant/cut.jpg"]["reason"].lower()
    assert len(lines(tmp_path / "set" / "manifest.jsonl")) == 29
    out = capsys.readouterr().out
    for path in damaged:
        shown = path.replace("\udce9", r"\udce9")
        assert f"left out: {shown}: unreadable image (" in out
    with open(tmp_path / "set" / "classes.csv") as file:
        table = list(csv.reader(file))
    assert table[1:] == [["ant", "13", "3", "1", "0"], ["bee", "10", "3", "5", "0"]]


@pytest.mark.parametrize("kind", ["folder", "tar", "prepared"])
@pytest.mark.slow
def test_near_duplicates_of_excluded_images_are_left_out(kind, prepared, files, photos, tmp_path):
    copied = ["train/ant/01.jpg", "train/bee/14.jpg", "train/ant/screen.png"]
    test_set = {}
    for i, path in enumerate(copied):
        image = Image.open(io.BytesIO(files[path])).convert("RGB")
        larger = np.asarray(image.resize((105, 84)))
        test_set[f"c{i % 2}/{i}.jpg"] = encode_image(larger, quality=60)
    test_set |= {f"c1/{i}.jpg": encode_image(crop(photos, i), quality=90) for i in range(40, 50)}
    excluded = write_folder(tmp_path / "test", test_set | {"c0/broken.jpg": b""})
    if kind == "tar":
        excluded = tmp_path / "test.tar"
        excluded.write_bytes(make_tar(test_set))
    elif kind == "prepared":
        run_prepare(excluded, tmp_path / "test_set")
        excluded = tmp_path / "test_set"
    line = run_prepare(prepared.parent / "source", tmp_path / "set", excluded=str(excluded))
    assert line.startswith("done: images=23 classes=2 damaged=0 duplicates=3 ")
    left_out = {line["path"]: line["reason"] for line in lines(tmp_path / "set" / "left_out.jsonl")}
    assert left_out == {
        path: f"near-duplicate of c{i % 2}/{i}.jpg" for i, path in enumerate(copied)
    }


def test_another_source_is_rejected_for_an_existing_destination(prepared, files, tmp_path):
    changed = files | {"train/ant/00.jpg": files["train/ant/00.jpg"] + b"\0"}
    other = write_folder(tmp_path / "other", changed)
    message = "was created from a source with other file names, sizes or classes; remove it"
    with pytest.raises(ConfigError, match=f"{prepared} {message}"):
        run_prepare(other, prepared)
    write_folder(other, {"train/ant/new.jpg": files["train/ant/00.jpg"]})
    with pytest.raises(ConfigError, match="was created from a source of 26 images, not 27"):
        run_prepare(other, prepared)
    with pytest.raises(ConfigError, match="was created with another --exclude"):
        run_prepare(prepared.parent / "source", prepared, excluded=str(other))
    partial = tmp_path / "set.partial"
    partial.mkdir()
    (partial / "plan.json").write_text((prepared / "prepared.json").read_text())
    with pytest.raises(ConfigError, match=f"{partial} was created from a source of 26 images"):
        run_prepare(other, tmp_path / "set")


def test_destination_that_is_a_link_to_nothing_is_rejected(prepared, tmp_path):
    (tmp_path / "set").symlink_to("set")
    with pytest.raises(ConfigError, match="set is a link to set, which does not exist"):
        run_prepare(prepared.parent / "source", tmp_path / "set")
    assert os.listdir(tmp_path) == ["set"]


def test_destination_inside_the_source_is_rejected(files, tmp_path):
    source = write_folder(tmp_path / "photos", files)
    (tmp_path / "link").symlink_to(source)
    names = sorted(os.listdir(source))
    for destination in (source / "set", source / "train" / "set", tmp_path / "link" / "set"):
        with pytest.raises(ConfigError, match=r"is inside the source, .*; choose a folder outside"):
            run_prepare(source, destination)
    assert sorted(os.listdir(source)) == names


def test_destination_with_other_files_is_rejected(prepared, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("x")
    done = run_main("prepare", prepared.parent / "source", tmp_path / "set")
    assert done.code == 2
    assert done.error.endswith("set exists and is not a prepared data set; choose a new folder.")
    assert os.listdir(tmp_path / "set") == ["thesis.txt"]
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize("is_finished", [False, True])
def test_partial_folder_of_the_user_is_kept(prepared, tmp_path, is_finished):
    source, folder = prepared.parent / "source", tmp_path / "set"
    if is_finished:
        shutil.copytree(prepared, folder)
    partial = write_folder(tmp_path / "set.partial", {"a/notes.tmp": b"mine", "data/x": b"mine"})
    with pytest.raises(ConfigError, match=r"was not created by `prepare`; it contains (a|data/x)"):
        run_prepare(source, folder)
    assert (partial / "a" / "notes.tmp").read_bytes() == b"mine"
    assert (partial / "data" / "x").read_bytes() == b"mine"


def test_partial_folder_of_a_killed_run_is_used_and_removed(prepared, tmp_path):
    source, partial = prepared.parent / "source", tmp_path / "set.partial"
    for name in ("data", "parts"):
        (partial / name).mkdir(parents=True)
    (partial / ".lock").touch()
    (partial / f".vit_jax-{HOST}-0123456789abcdef.tmp").touch()
    run_prepare(source, tmp_path / "set")
    assert file_digests(tmp_path / "set") == file_digests(prepared)
    assert os.listdir(tmp_path) == ["set"]
    partial.mkdir()
    shutil.copy(prepared / "prepared.json", partial / "plan.json")  # Killed while it was removed.
    plan = json.loads((partial / "plan.json").read_text())
    del plan["manifest"]
    (partial / "plan.json").write_text(json.dumps(plan))
    (partial / "parts").mkdir()
    run_prepare(source, tmp_path / "set")
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": b""}, r"no class folders; .* \(skipped: 1 \.txt "),
        ({"cat/1.jpg": b""}, "only the class 'cat'"),
        ({"1.jpg": b""}, r"no class folders; .*1 \.jpg \(outside class folders"),
        ({"a/1.jpg": b"", "b/1.jpg": b""}, "none of the 2 images can be used"),
        (
            {"train/a/1.jpg": b"", "train/b/1.jpg": b"", "val/1.jpg": b""},
            r"source/val: no images .*; found 1 \.jpg \(outside class folders\)\.$",
        ),
        (
            {"train/cat/1.jpg": b"", "train/dog/1.jpg": b"", "val/cats/1.jpg": b""},
            r"val: class 'cats' is not among the 2 classes of .*train\. Did you mean cat\?",
        ),
        (
            {"cat/1.jpg": b"", "cat.tar": make_tar({"1.jpg": b""})},
            r"^cat/1\.jpg exists in both .*cat\.tar",
        ),
        ({"cat/1.jpg": b"", "dog.tar": make_tar({"1.jpg": b"x" * 999})[:1000]}, "damaged tar file"),
        ({"cat/1.jpg": b"", "dog.tar": b"x" * 2000}, r"dog\.tar: damaged tar file"),
    ],
)
def test_source_that_is_not_a_data_set_is_rejected_in_one_line(files, message, tmp_path):
    with pytest.raises(DataError, match=message):
        run_prepare(write_folder(tmp_path / "source", files), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_tar_with_a_damaged_header_in_the_middle_is_rejected(files, tmp_path):
    content = bytearray(make_tar(files))
    second = 512 + -(-len(files["train/ant/00.jpg"]) // 512) * 512
    content[second : second + 100] = b"\xff" * 100
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.tar: damaged tar file \(at byte {second:,}\)"):
        run_prepare(tmp_path / "a.tar", tmp_path / "set")


def test_sources_of_other_types_are_rejected(tmp_path):
    (tmp_path / "a.tgz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.tgz is neither a folder nor a \.tar file; unpack"):
        run_prepare(tmp_path / "a.tgz", tmp_path / "set")
    with pytest.raises(DataError, match=r"nowhere: this folder or \.tar file does not exist"):
        run_prepare(tmp_path / "nowhere", tmp_path / "set")
