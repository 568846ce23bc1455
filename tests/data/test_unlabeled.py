"""Images without classes: folders, tar files and lists, also damaged and hostile ones."""

import dataclasses
import gzip
import io
import os
import pathlib
import pickle
import tarfile

import numpy as np
import pytest

from tests.support.image_files import encode_image, make_tar
from vit_jax.config.schema import Data
from vit_jax.data.decode import UnreadableImage, decode
from vit_jax.data.loader import HostShard, TrainRows, host_batches, make_sampler
from vit_jax.data.overview import describe_splits
from vit_jax.data.preprocess import TrainRecipe
from vit_jax.data.sketch import count_removed, make_sketch
from vit_jax.data.sources import check_classes, open_both, open_split, open_training
from vit_jax.errors import DataError


def png(value: int) -> bytes:
    return encode_image(np.full((2, 3, 3), value, np.uint8), "PNG")


def write(root: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def open_images(where, split="train", val_fraction=0.0):
    val_split = "val" if val_fraction else ""
    data = Data(source="images", dir=str(where), val_fraction=val_fraction, val_split=val_split)
    return open_split(data, split)


def values(source) -> dict[str, int]:
    """Name of each image -> the value of its pixels."""
    pixels = [decode(source[index]["image"]) for index in range(len(source))]
    assert all(len(np.unique(image)) == 1 for image in pixels)
    return {source.name(index): int(image[0, 0, 0]) for index, image in enumerate(pixels)}


NESTED = {"1.png": png(1), "a/2.PNG": png(2), "a/b/c/3.png": png(3), "train/4.png": png(4)}
NAMES = {"1.png": 1, "a/2.PNG": 2, "a/b/c/3.png": 3, "train/4.png": 4}


def test_folder_gives_all_images_at_any_depth_without_classes(tmp_path):
    source = open_images(write(tmp_path / "data", NESTED))
    assert values(source) == NAMES
    assert source.classes == ()
    assert source.labels.tolist() == [-1] * 4
    assert [source[index]["label"] for index in range(4)] == [-1] * 4


def test_tar_file_gives_its_members_without_unpacking(tmp_path):
    write(tmp_path, {"data.tar": make_tar({f"./{name}": data for name, data in NESTED.items()})})
    before = sorted(tmp_path.rglob("*"))
    assert values(open_images(tmp_path / "data.tar")) == NAMES
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_may_have_tar_files_which_count_as_folders(tmp_path):
    inner = make_tar({"5.png": png(5)})
    files = {"1.png": png(1), "s/x.tar": make_tar({"2.png": png(2), "y.tar": inner})}
    files["s/x2.tar"] = make_tar({"2.png": png(3)})
    source = open_images(write(tmp_path / "data", files))
    assert values(source) == {"1.png": 1, "s/x/2.png": 2, "s/x/y/5.png": 5, "s/x2/2.png": 3}
    assert len(source.tars) == 2


def test_list_gives_the_images_and_tar_files_of_its_lines(tmp_path):
    write(tmp_path / "data", NESTED | {"b.tar": make_tar({"5.png": png(5)})})
    outside = write(tmp_path, {"6.png": png(6)}) / "6.png"
    lines = ["data/a/2.PNG", "", "data/1.png  ", str(outside), "data/b.tar"]
    (tmp_path / "list.txt").write_text("\r\n".join(lines))
    expected = {"data/1.png": 1, "data/a/2.PNG": 2, "data/b/5.png": 5, str(outside): 6}
    assert values(open_images(tmp_path / "list.txt")) == expected


def test_list_may_be_in_any_folder_and_have_a_byte_order_mark(tmp_path, monkeypatch):
    write(tmp_path / "data", {"é.png": png(7)})
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "data/list").write_text("é.png\n", encoding=encoding)
        assert values(open_images(tmp_path / "data/list")) == {"é.png": 7}
    monkeypatch.chdir(tmp_path / "data")
    assert values(open_images("list")) == {"é.png": 7}


def test_names_need_not_be_utf_8(tmp_path):
    name = os.fsdecode(b"\xff\xe9.png")
    write(tmp_path / "data", {name: png(8)})
    (tmp_path / "data/list.txt").write_bytes(b"\xff\xe9.png\n")
    write(tmp_path, {"data.tar": make_tar({name: png(8)})})
    for where in ("data", "data/list.txt", "data.tar"):
        source = open_images(tmp_path / where)
        assert values(source) == {name: 8}
        assert isinstance(source.fingerprint(), int)
        assert make_sketch(source)


NUMBERED = {f"{i:03}.png": png(i) for i in range(40)}


def test_val_is_a_fraction_that_does_not_depend_on_the_kind_of_storage(tmp_path):
    folder = write(tmp_path / "data", NUMBERED)
    (folder / "list.txt").write_text("\n".join(reversed(NUMBERED)))
    (tmp_path / "data.tar").write_bytes(make_tar(NUMBERED))
    parts = []
    for where in (folder, folder / "list.txt", tmp_path / "data.tar"):
        train, val = (open_images(where, split, 0.2) for split in ("train", "val"))
        assert len(val) == 8
        assert sorted(train.files + val.files) == sorted(NUMBERED)
        parts.append(val.files)
        assert values(val) == {name: int(name[:3]) for name in val.files}
    assert parts[0] == parts[1] == parts[2] != tuple(NUMBERED)[:8]
    one_more = write(folder, {"999.png": png(9)})  # Most images keep their split.
    assert len(set(open_images(one_more, "val", 0.2).files) ^ set(parts[0])) <= 2


def test_splits_are_train_and_val_only(tmp_path):
    folder = write(tmp_path / "data", NUMBERED)
    with pytest.raises(DataError, match="images has splits train and val, not 'test'"):
        open_images(folder, "test")
    assert len(open_images(folder, "val", 1.0)) == len(open_images(folder)) == 40
    for split, fraction in (("val", 0.0), ("train", 1.0)):
        with pytest.raises(DataError, match=f"no image is left for '{split}' with data.val_frac"):
            open_images(folder, split, fraction)
    one = write(tmp_path / "one", {"1.png": png(1)})
    with pytest.raises(DataError, match="no image is left for 'val'"):
        open_images(one, "val", 0.1)


def test_subsets_dev_and_mixtures_work_without_classes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, NUMBERED)
    data = Data(source="images", dir=str(tmp_path / "a"), count=10, val_split="")
    assert len(open_training(data)) == 10
    train, dev = open_both(dataclasses.replace(data, count=None, dev=0.25))
    assert (len(train), len(dev)) == (30, 10)
    mix = ((str(tmp_path / "a"), 1), (str(tmp_path / "b"), 3))
    mixed = open_training(Data(source="images", mix=mix, val_split=""))
    assert (len(mixed), mixed.classes, mixed[50]["label"]) == (80, (), -1)
    with pytest.raises(DataError, match=r"data\.per_class is 3, but the data has no classes; use"):
        open_training(Data(source="images", dir=str(tmp_path / "a"), per_class=3, val_split=""))


def test_description_counts_images_and_skipped_files(tmp_path):
    files = NUMBERED | {"x/1.gif": b"GIF89a", "y.txt": b"", ".z.png": b"", "s.tar.gz": b""}
    train, val = (open_images(write(tmp_path, files), split, 0.1) for split in ("train", "val"))
    assert describe_splits({"train": train, "val": val}) == [
        "data: train 36 images, no classes; val 4 images, no classes",
        "data: skipped 1 .gz (archive; decompress it to a .tar, or unpack it, such as s.tar.gz); "
        "1 .png (hidden, such as .z.png); 1 .txt (no image suffix, such as y.txt); "
        "1 .gif (not JPEG, PNG or WebP, such as x/1.gif)",
        "data: val is the fraction 0.1 of train, because the data has no split val",
    ]


def test_fingerprint_and_sketch_notice_other_images(tmp_path):
    def source(names, kind):
        where = tmp_path / f"data{kind}"
        files = {name: NUMBERED[name] for name in names}
        if kind == ".tar":
            where.write_bytes(make_tar(files))
        else:
            write(where, files)
        return open_images(where)

    for kind in ("", ".tar"):
        names = sorted(NUMBERED)
        fewer, whole = (source(each, kind) for each in (names[:-3], names))
        assert fewer.fingerprint() != whole.fingerprint()
        assert whole.fingerprint() == source(names, kind).fingerprint()
        assert count_removed(make_sketch(whole), make_sketch(fewer)) == 3


def test_classes_are_required_with_one_error_that_names_the_alternatives(tmp_path):
    source = open_images(write(tmp_path, NUMBERED))
    with pytest.raises(DataError) as caught:
        check_classes(source, Data(source="images"), "task.name='classification'")
    message = str(caught.value)
    assert message.startswith("data.source=images has no classes, which task.name='classifi")
    assert "folder, csv, prepared" in message
    assert "images," not in message
    assert "features" in message


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_worker_processes_give_equal_batches(tmp_path, kind):
    write(tmp_path / "folder", NUMBERED)
    write(tmp_path, {"tar": make_tar(NUMBERED)})
    os.rename(tmp_path / "tar", tmp_path / "data.tar")
    source = open_images(tmp_path / ("folder" if kind == "folder" else "data.tar"))
    assert pickle.loads(pickle.dumps(source)).files == source.files
    recipe, shard = TrainRecipe(Data(augment="resize"), (2, 3)), HostShard(8, 0, 1)
    rows = TrainRows(source, recipe, make_sampler(source, 0), shard, 0, 0, 5)
    threads, processes = (list(host_batches(rows, shard, workers)) for workers in (0, 2))
    for batch, other in zip(threads, processes, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])
        names = [source.name(index) for index in batch["id"]]
        expected = np.array([int(name[:3]) for name in names]) / 127.5 - 1
        np.testing.assert_allclose(batch["image"][:, 0, 0, 0], expected, atol=1e-6)
        assert (batch["label"] == -1).all()


def error_of(where, split="train") -> str:
    with pytest.raises(DataError) as caught:
        open_images(where, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_tar_file_that_is_compressed_or_damaged_is_an_error(tmp_path):
    whole = make_tar(NUMBERED)
    files = {
        "a.tar.gz": gzip.compress(whole),
        "b.tgz": gzip.compress(whole),
        "c.tar": gzip.compress(whole),
        "d.tar": whole[: len(whole) // 3 + 100],
        "e.tar": b"",
    }
    write(tmp_path, files)
    for name in ("a.tar.gz", "b.tgz"):
        assert "unpack other archives first" in error_of(tmp_path / name)
    assert error_of(tmp_path / "c.tar").endswith(
        "c.tar: a gzip archive, not a tar file; decompress it first."
    )
    for name in ("d.tar", "e.tar"):
        assert "damaged tar file" in error_of(tmp_path / name)
    write(tmp_path / "only", {"a.tar.gz": files["a.tar.gz"]})
    assert "found 1 .gz (archive; decompress it to a .tar" in error_of(tmp_path / "only")
    (tmp_path / "list.txt").write_text("d.tar\n")
    assert "d.tar: damaged tar file" in error_of(tmp_path / "list.txt")


def test_tar_file_that_shrinks_later_makes_images_unreadable(tmp_path):
    (tmp_path / "a.tar").write_bytes(make_tar(NUMBERED))
    source = open_images(tmp_path / "a.tar")
    os.truncate(tmp_path / "a.tar", 540)  # In the first member.
    for index in (0, 39):
        with pytest.raises(UnreadableImage, match=r"unreadable image \(.*a\.tar is truncated\)"):
            source[index]
    os.remove(tmp_path / "a.tar")
    with pytest.raises(UnreadableImage, match=r"000\.png: unreadable image \(No such file"):
        source[0]


def test_hostile_members_of_a_tar_file_stay_outside(tmp_path):
    write(tmp_path, {"secret.png": png(9)})
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, target in (
            ("/etc/1.png", tarfile.REGTYPE, ""),
            ("../secret.png", tarfile.REGTYPE, ""),
            ("link.png", tarfile.SYMTYPE, "secret.png"),
            ("hard.png", tarfile.LNKTYPE, "../secret.png"),
            ("pipe.png", tarfile.FIFOTYPE, ""),
            ("folder.png", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            data = png(1) if kind == tarfile.REGTYPE else b""
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    source = open_images(tmp_path / "a.tar")
    assert values(source) == {"etc/1.png": 1}
    (note,) = source.notes
    for reason in ("link in a tar file", "not a regular file", "hidden"):
        assert reason in note


def test_later_member_of_a_tar_file_replaces_one_of_the_same_name(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for value in (1, 2, 3):
            member = tarfile.TarInfo("a.png")
            member.size = len(png(value))
            tar.addfile(member, io.BytesIO(png(value)))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    source = open_images(tmp_path / "a.tar")
    assert values(source) == {"a.png": 3}
    assert source.notes == (
        "data: skipped 2 .png (replaced by a later member of the same name, such as a.png)",
    )


def test_links_of_a_folder_are_followed_but_not_in_a_circle(tmp_path):
    write(tmp_path / "other", {"1.png": png(1)})
    folder = write(tmp_path / "data", {"2.png": png(2)})
    (folder / "in").symlink_to(tmp_path / "other")
    (folder / "circle").symlink_to(folder)
    (folder / "gone.png").symlink_to(folder / "missing")
    source = open_images(folder)
    assert values(source) == {"2.png": 2, "in/1.png": 1}
    assert "link to a folder above it" in source.notes[0]
    assert "link to a missing file" in source.notes[0]


def test_wrong_lists_are_errors_with_file_and_line(tmp_path):
    write(tmp_path, {"1.png": png(1), "2.bmp": b"BM", "photo.jpg": b""})
    (tmp_path / "folder").mkdir()
    for text, expected in {
        "1.png\nmissing.png\n": "list.txt, line 2: no such file: ",
        "1.png\n\n./1.png\n": "list.txt, line 3: path './1.png' is also in line 1.",
        "folder\n": "list.txt, line 1: no such file: ",
        "2.bmp\n": "no images (.jpg,",
        "": "no images (.jpg,",
        "\n \r\n": "no images (.jpg,",
        "1.png\0\n": "not a text file; expected a folder, a .tar file or a list of images.",
    }.items():
        (tmp_path / "list.txt").write_text(text)
        assert expected in error_of(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("1.png\n2.bmp\nlist.txt\n")
    source = open_images(tmp_path / "list.txt")
    assert values(source) == {"1.png": 1}
    assert source.notes[0].startswith("data: skipped 1 .bmp (not JPEG")


def test_missing_and_unusual_places_are_errors(tmp_path):
    write(tmp_path, {"1.png": png(1)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    expected = "folder, a .tar file or a list of images"
    assert error_of("") == f"data.dir=(empty): no such {expected}."
    assert error_of(tmp_path / "x") == f"data.dir={tmp_path}/x: no such {expected}."
    assert "(a link to nowhere)" in error_of(tmp_path / "link")
    assert "one image; expected a folder" in error_of(tmp_path / "1.png")
    assert "empty: no images (.jpg," in error_of(tmp_path / "empty")
    write(tmp_path / "only", {"a.mp4": b"", "b.gif": b""})
    assert "only: no images" in error_of(tmp_path / "only")
    assert "found 1 .gif (not JPEG" in error_of(tmp_path / "only")


def test_truncated_image_names_its_file(tmp_path):
    write(tmp_path / "data", {"1.png": png(1)[:30]})
    source = open_images(tmp_path / "data")
    with pytest.raises(UnreadableImage, match=r"data/1\.png: unreadable image"):
        decode(source[0]["image"])
