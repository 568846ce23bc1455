"""The verb `prepare`: folders and tars become a data set, whatever happens on the way."""

import csv
import hashlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from tests.support.runs import ROOT, run_main
from vit_jax.errors import ConfigError, DataError
from vit_jax.prepare.prepare import prepare

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


def encoded(image: np.ndarray, format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, **options)
    return file.getvalue()


def crop(photos, i: int) -> np.ndarray:
    top, left = divmod(i, 8)
    return photos[i % 2][60 * top : 60 * top + 56, 78 * left : 78 * left + 70]


@pytest.fixture(scope="module")
def files(photos) -> dict[str, bytes]:
    """JPEGs, and a PNG and a WebP, of two classes in two splits."""
    found = {}
    for i in range(24):
        split, title = ("train", "val")[i % 4 == 3], ("ant", "bee")[i // 12]
        found[f"{split}/{title}/{i:02}.jpg"] = encoded(crop(photos, i), quality=90)
    found["train/ant/screen.png"] = encoded(crop(photos, 30), "PNG")
    found["train/bee/deep/web.webp"] = encoded(crop(photos, 31), "WEBP")
    return found


def write_folder(root: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def tar_of(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


def contents(folder: pathlib.Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_prepare(source, destination, **options) -> str:
    return prepare(str(source), str(destination), workers=1, **options)


@pytest.fixture(scope="module")
def made(files, tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("made")
    source = write_folder(root / "source", files)
    line = run_prepare(source, root / "set")
    assert line == f"done: images=26 classes=2 damaged=0 duplicates=0 destination={root / 'set'}"
    return root / "set"


def test_tfds_reads_every_file_untouched_where_there_is_no_tensorflow(made, files):
    command = [sys.executable, "-c", READ, str(made)]
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


def test_the_manifest_tells_of_every_image_what_it_is(made, files):
    found = {line["path"]: line for line in lines(made / "manifest.jsonl")}
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


def test_the_order_of_a_split_is_not_that_of_its_classes(made):
    labels = [line["label"] for line in lines(made / "manifest.jsonl") if line["split"] == "train"]
    assert labels != sorted(labels)


def test_a_second_run_leaves_a_finished_set_as_it_is(made, files, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in made.iterdir()}
    line = run_prepare(made.parent / "source", made)
    assert line.startswith("done: images=26 ")
    assert {p.name: p.stat().st_mtime_ns for p in made.iterdir()} == before
    assert not made.with_name("set.partial").exists()
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["class", "train", "val", "damaged", "duplicate"]
    assert [line.split() for line in out[2:]] == [
        ["ant", "10", "3", "0", "0"],
        ["bee", "10", "3", "0", "0"],
        ["all", "20", "6", "0", "0"],
    ]


def test_tars_of_class_folders_of_classes_and_of_tars_make_the_same_set(made, files, tmp_path):
    parts: dict[str, dict[str, dict[str, bytes]]] = {"train": {}, "val": {}}
    for path, data in files.items():
        split, title, name = path.split("/", 2)
        parts[split].setdefault(title, {})[name] = data
    one = tmp_path / "one.tar"  # With a folder around everything, as `tar cf one.tar photos` does.
    one.write_bytes(tar_of({f"./photos/{path}": data for path, data in files.items()}))
    classes = {
        f"{split}/{title}.tar": tar_of(images)  # As in ImageNet-21k.
        for split, titles in parts.items()
        for title, images in titles.items()
    }
    nested = {  # As ILSVRC2012_img_train.tar is.
        f"{split}.tar": tar_of({f"{title}.tar": tar_of(i) for title, i in titles.items()})
        for split, titles in parts.items()
    }
    sources = [one, write_folder(tmp_path / "classes", classes)]
    sources.append(write_folder(tmp_path / "nested", nested))
    for i, source in enumerate(sources):
        run_prepare(source, tmp_path / f"set{i}")
        assert contents(tmp_path / f"set{i}") == contents(made)


def test_exactly_the_damaged_images_are_listed_and_left_out(files, photos, tmp_path, capsys):
    cmyk = io.BytesIO()
    Image.fromarray(crop(photos, 1)).convert("CMYK").save(cmyk, "JPEG")
    odd = {  # None of them is damaged.
        "train/ant/cmyk.jpg": cmyk.getvalue(),
        "train/ant/grey.png": encoded(crop(photos, 2)[..., 0], "PNG"),
        "train/ant/png_called.jpg": encoded(crop(photos, 3), "PNG"),
        "train/ant/.hidden.jpg": b"",
        "train/ant/notes.txt": b"x",
    }
    whole = files["train/bee/12.jpg"]
    damaged = {
        "train/ant/cut.jpg": whole[: len(whole) // 2],
        "train/bee/empty.png": b"",
        "train/bee/text.jpg": b"<html>404</html>",
        "train/bee/gif.jpg": encoded(crop(photos, 4), "GIF"),
        "train/bee/caf\udce9.jpg": b"",  # A name in Latin-1.
        "val/bee/cut.png": encoded(crop(photos, 5), "PNG")[:200],
    }
    source = write_folder(tmp_path / "source", files | odd | damaged)
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
def test_near_duplicates_of_excluded_images_are_dropped(kind, made, files, photos, tmp_path):
    copied = ["train/ant/01.jpg", "train/bee/14.jpg", "train/ant/screen.png"]
    test_set = {}
    for i, path in enumerate(copied):
        image = Image.open(io.BytesIO(files[path])).convert("RGB")
        larger = np.asarray(image.resize((105, 84)))
        test_set[f"c{i % 2}/{i}.jpg"] = encoded(larger, quality=60)
    test_set |= {f"c1/{i}.jpg": encoded(crop(photos, i), quality=90) for i in range(40, 50)}
    excluded = write_folder(tmp_path / "test", test_set | {"c0/broken.jpg": b""})
    if kind == "tar":
        excluded = tmp_path / "test.tar"
        excluded.write_bytes(tar_of(test_set))
    elif kind == "prepared":
        run_prepare(excluded, tmp_path / "test_set")
        excluded = tmp_path / "test_set"
    line = run_prepare(made.parent / "source", tmp_path / "set", excluded=str(excluded))
    assert line.startswith("done: images=23 classes=2 damaged=0 duplicates=3 ")
    left_out = {line["path"]: line["reason"] for line in lines(tmp_path / "set" / "left_out.jsonl")}
    assert left_out == {
        path: f"near-duplicate of c{i % 2}/{i}.jpg" for i, path in enumerate(copied)
    }


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> pathlib.Path:
    """A tar of 2,600 images, which is three shards, and what comes of it undisturbed."""
    root = tmp_path_factory.mktemp("many")
    noise = np.random.default_rng(0).integers(0, 256, (2600, 12, 12, 3)).astype(np.uint8)
    named = {f"c{i % 5}/{i}.png": encoded(image, "PNG") for i, image in enumerate(noise)}
    (root / "many.tar").write_bytes(tar_of(named))
    prepare(str(root / "many.tar"), str(root / "whole"), workers=2)
    return root


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_to_the_same_bytes(many, number, tmp_path):
    source, folder = many / "many.tar", tmp_path / "set"
    partial = tmp_path / "set.partial"
    command = [sys.executable, "-m", "vit_jax.main", "prepare", source, folder, "--workers=1"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(partial.glob("parts/*.jsonl")):  # Until the first shard is finished.
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    assert "Traceback" not in err
    assert not folder.exists()
    if number == signal.SIGTERM:
        assert not list(partial.rglob("*.tmp"))
    first = [p.name for p in partial.glob("parts/*.jsonl")]
    assert 1 <= len(first) < 3
    shards = {p.name: p.stat() for p in partial.glob("data/*-of-00003")}
    done = run_main("prepare", source, folder, "--workers=2")
    assert done.code == 0, done.err
    assert f"going on: {len(first)}/3 shards are there" in done.out
    assert contents(folder) == contents(many / "whole")
    finished = {name.replace("train-", "images-train.array_record-")[:-6] for name in first}
    for name in finished:
        now = (folder / name).stat()  # Nothing was done twice, or copied.
        assert (now.st_ino, now.st_mtime_ns) == (shards[name].st_ino, shards[name].st_mtime_ns)
    assert not partial.exists()


def test_a_full_disk_leaves_nothing_half_written(many, tmp_path):
    source, folder, partial = many / "many.tar", tmp_path / "set", tmp_path / "set.partial"
    limit = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
        "runpy.run_module('vit_jax.main', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", limit, "prepare", source, folder, "--workers=1"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2  # 4 where the disk is full; here, the file is too large.
    assert "images-train.array_record-0000" in done.stderr
    assert done.stderr.endswith("File too large.\n")
    assert "Traceback" not in done.stderr
    assert not folder.exists()
    assert not list(partial.glob("data/*"))
    run_prepare(source, folder)
    assert contents(folder) == contents(many / "whole")


def test_another_source_is_not_mixed_into_what_was_begun(made, files, tmp_path):
    changed = files | {"train/ant/00.jpg": files["train/ant/00.jpg"] + b"\0"}
    other = write_folder(tmp_path / "other", changed)
    words = "was begun from a source of other names, sizes or classes; remove it"
    with pytest.raises(ConfigError, match=f"{made} {words}"):
        run_prepare(other, made)
    write_folder(other, {"train/ant/new.jpg": files["train/ant/00.jpg"]})
    with pytest.raises(ConfigError, match="was begun from a source of 26 images, not 27"):
        run_prepare(other, made)
    with pytest.raises(ConfigError, match="was begun with another --exclude"):
        run_prepare(made.parent / "source", made, excluded=str(other))
    partial = tmp_path / "set.partial"
    partial.mkdir()
    (partial / "plan.json").write_text((made / "prepared.json").read_text())
    with pytest.raises(ConfigError, match=f"{partial} was begun from a source of 26 images"):
        run_prepare(other, tmp_path / "set")


def test_a_folder_of_something_else_is_left_alone(made, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("x")
    done = run_main("prepare", made.parent / "source", tmp_path / "set")
    assert done.code == 2
    assert done.error.endswith("set exists and holds no prepared data set; name a new folder.")
    assert os.listdir(tmp_path / "set") == ["thesis.txt"]
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"notes.txt": b""}, "no class folders with images"),
        ({"cat/1.jpg": b""}, "only the class 'cat'"),
        ({"1.jpg": b""}, "no class folders with images"),
        ({"a/1.jpg": b"", "b/1.jpg": b""}, "none of the 2 images can be used"),
        ({"train/a/1.jpg": b"", "train/b/1.jpg": b"", "val/1.jpg": b""}, "val lie in no class"),
        (
            {"train/cat/1.jpg": b"", "train/dog/1.jpg": b"", "val/cats/1.jpg": b""},
            r"'cats' of val is not among the 2 classes of train\. Did you mean cat\?",
        ),
        ({"cat/1.jpg": b"", "cat.tar": tar_of({"1.jpg": b""})}, r"^cat/1\.jpg is in .*cat\.tar"),
        ({"cat/1.jpg": b"", "dog.tar": tar_of({"1.jpg": b"x" * 999})[:1000]}, "damaged tar file"),
        ({"cat/1.jpg": b"", "dog.tar": b"x" * 2000}, r"dog\.tar: damaged tar file"),
    ],
)
def test_a_source_that_is_no_data_set_is_told_in_one_line(files, words, tmp_path):
    with pytest.raises(DataError, match=words):
        run_prepare(write_folder(tmp_path / "source", files), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_tar_with_a_damaged_header_in_the_middle_is_not_taken_for_a_shorter_one(files, tmp_path):
    whole = bytearray(tar_of(files))
    second = 512 + -(-len(files["train/ant/00.jpg"]) // 512) * 512
    whole[second : second + 100] = b"\xff" * 100
    (tmp_path / "a.tar").write_bytes(whole)
    with pytest.raises(DataError, match=rf"a\.tar: damaged tar file \(at byte {second:,}\)"):
        run_prepare(tmp_path / "a.tar", tmp_path / "set")


def test_sources_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "a.tgz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.tgz: neither a folder nor a \.tar file; unpack"):
        run_prepare(tmp_path / "a.tgz", tmp_path / "set")
    with pytest.raises(DataError, match=r"nowhere: no such folder or \.tar file"):
        run_prepare(tmp_path / "nowhere", tmp_path / "set")
