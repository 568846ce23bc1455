"""Reading and writing of .npz and .safetensors files, against numpy and safetensors."""

import errno
import os
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.support.archive_files import (
    ARRAYS,
    METADATA,
    MORE,
    assert_same,
    header,
    one,
    read,
    read_error,
    write,
    write_with_library,
)
from vit_jax.weights.archive import ArrayInfo, open_archive, write_npz

both = pytest.mark.parametrize("suffix", [".npz", ".safetensors"])


@both
def test_open_archive_reads_written_arrays_bit_for_bit(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", MORE | {"strided": MORE["big"][::-3, ::5]})
    archive = open_archive(path)
    assert archive.metadata == METADATA
    assert list(archive.arrays) == [*MORE, "strided"]
    assert archive.arrays["scalar"] == ArrayInfo((), "float32")
    assert_same(read(path), MORE | {"strided": MORE["big"][::-3, ::5]})
    assert os.listdir(tmp_path) == [path.name]
    assert len({write(path).read_bytes() for _ in range(5)}) == 1  # No date, no random order.


def test_written_files_are_readable_by_numpy_and_safetensors(tmp_path):
    assert_same(dict(np.load(write(tmp_path / "x.npz", MORE))), MORE)
    with zipfile.ZipFile(tmp_path / "x.npz") as file:
        assert file.testzip() is None
        assert {member.date_time[0] for member in file.infolist()} == {1980}
    path = write(tmp_path / "x.safetensors", MORE)
    assert_same(safetensors.numpy.load_file(path), MORE)
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["format"] == "pt"


@both
def test_open_archive_reads_files_of_numpy_and_safetensors(tmp_path, suffix):
    path = write_with_library(tmp_path / f"x{suffix}", MORE)
    assert open_archive(path).metadata == {}
    assert_same(read(path), MORE)
    if suffix == ".npz":
        np.savez_compressed(path, **MORE)
        assert_same(read(path), MORE)


@both
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_read_widens_every_16_bit_float_exactly(tmp_path, suffix, dtype):
    array = np.arange(2**16, dtype=np.uint16).view(dtype)
    path = write_with_library(tmp_path / f"x{suffix}", {"a": array})
    assert open_archive(path).arrays["a"] == ArrayInfo((2**16,), np.dtype(dtype).name)
    np.testing.assert_array_equal(read(path)["a"], array.astype(np.float32))


@both
def test_read_rounds_floats_of_64_bits(tmp_path, suffix):
    array = np.array([np.pi, -1e-30, 0.1, 2.0**-150], np.float64)
    path = write_with_library(tmp_path / f"x{suffix}", {"a": array})
    assert open_archive(path).arrays["a"] == ArrayInfo((4,), "float64")
    assert read(path)["a"].tobytes() == array.astype(np.float32).tobytes()


@both
@pytest.mark.parametrize("dtype", ["int64", "int32", "bool"])
def test_read_rejects_other_dtypes_than_floats(tmp_path, suffix, dtype):
    arrays = {"step": np.ones(3, dtype), "w": ARRAYS["scalar"]}
    archive = open_archive(write_with_library(tmp_path / f"x{suffix}", arrays))
    assert archive.arrays["step"].shape == (3,)
    np.testing.assert_array_equal(archive.read("w"), arrays["w"])
    assert "step has dtype " in read_error(archive.path, lambda _: archive.read("step"))


def test_read_aligns_data_at_any_offset(tmp_path):
    numbers = np.arange(3, dtype=np.float32)
    for padding in range(4):
        head = header(literal="{'descr':'<f4','fortran_order':False,'shape':(3,)}" + " " * padding)
        path = one(head + numbers.tobytes(), comment=b"{} of others")(tmp_path / "x.npz")
        assert_same(read(path), {"a": numbers})
        assert read(path)["a"].flags.aligned
        assert open_archive(path).metadata == {}


@both
def test_read_rejects_a_file_that_changed_since_it_was_opened(tmp_path, suffix):
    archive = open_archive(write(tmp_path / f"x{suffix}"))
    write(archive.path)
    assert "changed" in read_error(archive.path, lambda _: archive.read("scalar"))


@both
def test_failed_write_keeps_the_old_file_and_no_other(tmp_path, suffix, monkeypatch):
    def full_disk(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write(tmp_path / f"x{suffix}")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=f"No space left.*{path}"):
        write(path, MORE)
    assert_same(read(path), ARRAYS)
    assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(FileNotFoundError, match=f"none/x{suffix}'"):
        write(tmp_path / "none" / f"x{suffix}")


def test_write_npz_leaves_no_file_if_its_iterator_fails(tmp_path):
    def arrays():
        yield from ARRAYS.items()
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        write_npz(tmp_path / "x.npz", arrays(), {})
    with pytest.raises(ValueError, match="scalar occurs twice"):
        write_npz(tmp_path / "x.npz", [("scalar", ARRAYS["scalar"])] * 2, {})
    assert os.listdir(tmp_path) == []


@both
def test_write_rejects_what_could_not_be_read_back(tmp_path, suffix):
    for arrays, metadata, words in [
        ({"a": np.zeros(3)}, {}, "only float32"),
        ({"a": np.zeros(3, ">f4")}, {}, "only float32"),
        ({"../a": ARRAYS["scalar"]}, {}, "not a valid array name"),
        (ARRAYS, {"text": "x" * 2**20}, "65,535|too long"),
        (ARRAYS, {"mean": float("nan")}, "nan|JSON"),
    ]:
        with pytest.raises(ValueError, match=words):
            write(tmp_path / f"x{suffix}", arrays, metadata)
    assert os.listdir(tmp_path) == []
    most = {"x": "x" * (65_535 - len('vit_jax:1a2b3c4d:{"x":""}'))}
    assert open_archive(write(tmp_path / "x.npz", {}, most)).metadata == most
    with pytest.raises(ValueError, match="of 65536 bytes; at most 65,535"):
        write(tmp_path / "x.npz", {}, {"x": most["x"] + "x"})


@both
def test_open_archive_rejects_missing_files_and_other_suffixes(tmp_path, suffix):
    assert read_error(tmp_path / f"none{suffix}").endswith("no such file.")
    assert read_error(tmp_path / "vit.pth").endswith("no such file.")
