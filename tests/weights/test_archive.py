"""Files of weights from strangers: what is read, what is refused, and at what cost."""

import errno
import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.support.runs import ROOT
from vit_jax.errors import CheckpointError
from vit_jax.weights.archive import Entry, open_archive, write_npz, write_safetensors

random = np.random.default_rng(0)
ARRAYS = {
    "embedding/kernel": random.normal(size=(2, 2, 3, 5)).astype(np.float32),
    "Transformer/encoder_norm/scale": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    "blocks.0.attn+x-y_z": np.ones((1, 1, 1, 7), np.float32),
    "scalar": np.array(3.5, np.float32),
}
MORE = ARRAYS | {
    "empty": np.zeros((0, 3), np.float32),
    "big": random.normal(size=(600, 1000)).astype(np.float32),  # More than one chunk.
    "zeros": np.zeros((900, 900), np.float32),
}
MORE |= {"fortran": np.asfortranarray(MORE["big"][:7, :5])}
METADATA = {"model": "vit_b16", "classes": ["cat", "Kätzchen", "PK\5\6"], "mean": 0.5}


def write(path, arrays=ARRAYS, metadata=METADATA):
    if path.suffix == ".npz":
        write_npz(path, iter(arrays.items()), metadata)
    else:
        write_safetensors(path, arrays, metadata)
    return path


def write_foreign(path, arrays):
    """As numpy and the library of safetensors write."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        safetensors.numpy.save_file(arrays, path)
    return path


def read(path):
    archive = open_archive(path)
    return {name: archive.read(name) for name in archive.entries}


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (np.float32, array.shape)
        assert actual[name].tobytes() == array.tobytes(), name


def refusal(path, act=read):
    with pytest.raises(CheckpointError) as caught:
        act(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()  # No newline, no escape that a terminal would obey.
    assert len(message) < len(str(path)) + 250
    return message


both = pytest.mark.parametrize("suffix", [".npz", ".safetensors"])


@both
def test_what_is_written_is_read_bit_for_bit(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", MORE | {"strided": MORE["big"][::-3, ::5]})
    archive = open_archive(path)
    assert archive.metadata == METADATA
    assert list(archive.entries) == [*MORE, "strided"]
    assert archive.entries["scalar"] == Entry((), "float32")
    assert_same(read(path), MORE | {"strided": MORE["big"][::-3, ::5]})
    assert os.listdir(tmp_path) == [path.name]
    assert len({write(path).read_bytes() for _ in range(5)}) == 1  # No date, no chance.


def test_others_read_what_we_write(tmp_path):
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
def test_what_others_write_is_read(tmp_path, suffix):
    path = write_foreign(tmp_path / f"x{suffix}", MORE)
    assert open_archive(path).metadata == {}
    assert_same(read(path), MORE)
    if suffix == ".npz":
        np.savez_compressed(path, **MORE)
        assert_same(read(path), MORE)


@both
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_every_float_of_16_bits_is_widened_exactly(tmp_path, suffix, dtype):
    array = np.arange(2**16, dtype=np.uint16).view(dtype)
    path = write_foreign(tmp_path / f"x{suffix}", {"a": array})
    assert open_archive(path).entries["a"] == Entry((2**16,), np.dtype(dtype).name)
    np.testing.assert_array_equal(read(path)["a"], array.astype(np.float32))


@both
@pytest.mark.parametrize("dtype", ["int64", "float64", "bool"])
def test_numbers_that_are_no_weights_are_listed_and_not_read(tmp_path, suffix, dtype):
    arrays = {"step": np.ones(3, dtype), "w": ARRAYS["scalar"]}
    archive = open_archive(write_foreign(tmp_path / f"x{suffix}", arrays))
    assert archive.entries["step"].shape == (3,)
    np.testing.assert_array_equal(archive.read("w"), arrays["w"])
    assert "step is " in refusal(archive.path, lambda _: archive.read("step"))


def test_numbers_may_start_anywhere(tmp_path):
    numbers = np.arange(3, dtype=np.float32)
    for padding in range(4):
        head = header(literal="{'descr':'<f4','fortran_order':False,'shape':(3,)}" + " " * padding)
        path = one(head + numbers.tobytes(), comment=b"{} of others")(tmp_path / "x.npz")
        assert_same(read(path), {"a": numbers})
        assert read(path)["a"].flags.aligned
        assert open_archive(path).metadata == {}


@both
def test_a_file_that_changes_after_its_opening_is_refused(tmp_path, suffix):
    archive = open_archive(write(tmp_path / f"x{suffix}"))
    write(archive.path)
    assert "changed" in refusal(archive.path, lambda _: archive.read("scalar"))


@both
def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, suffix, monkeypatch):
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


def test_a_failing_iterator_leaves_no_file(tmp_path):
    def arrays():
        yield from ARRAYS.items()
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        write_npz(tmp_path / "x.npz", arrays(), {})
    with pytest.raises(ValueError, match="scalar is there twice"):
        write_npz(tmp_path / "x.npz", [("scalar", ARRAYS["scalar"])] * 2, {})
    assert os.listdir(tmp_path) == []


@both
def test_what_could_not_be_read_again_is_not_written(tmp_path, suffix):
    for arrays, metadata, words in [
        ({"a": np.zeros(3)}, {}, "only float32"),
        ({"a": np.zeros(3, ">f4")}, {}, "only float32"),
        ({"../a": ARRAYS["scalar"]}, {}, "no name"),
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


# Hostile files, made by hand: a function writes one, and the words tell why it is refused.


def npy(array, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), version)
    return file.getvalue()


def header(descr="<f4", shape=(3,), literal=None):
    literal = literal or f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(literal)) + literal.encode()


def zipped(members, method=zipfile.ZIP_STORED, comment=b"", patch=lambda raw: raw):
    def make(path):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as directory:
            for name, content in members.items():
                content = content() if callable(content) else content
                directory.writestr(zipfile.ZipInfo(name), content, method)
            directory.comment = comment
        path.write_bytes(patch(file.getvalue()))
        return path

    return make


def one(content, **options):
    return zipped({"a.npy": content}, **options)


def two(patch):
    return zipped({"a.npy": GOOD, "b.npy": GOOD}, patch=patch)


def field(at, form, *values):
    """Overwrites a field of the last entry of a zip's directory."""

    def patch(raw):
        raw, start = bytearray(raw), raw.rindex(b"PK\1\2")
        struct.pack_into(form, raw, start + at, *values)
        return bytes(raw)

    return patch


class Marker:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def pickled(path):
    one(npy(np.array([Marker(path.with_name("marker"))], dtype=object)))(path)


def overlapping(path):
    """The second array lies inside the first one's numbers, with a header of its own."""
    inner = zipped({"b.npy": GOOD})(path).read_bytes()
    outer = npy(np.frombuffer(inner[: inner.rindex(b"PK\1\2")], np.uint8))
    zipped({"a.npy": outer, "b.npy": GOOD}, patch=field(42, "<L", 30 + len("a.npy") + 128))(path)


def many(path, count):
    """A directory of `count` entries with names of their own."""
    entry = struct.pack("<4s24xHHH12x", b"PK\1\2", 11, 0, 0) + b"%07d.npy"
    entries, shown = b"".join(entry % i for i in range(count)), count % 2**16
    end = struct.pack("<4s4xHHLLH", b"PK\5\6", shown, shown, len(entries), 0, 0)
    path.write_bytes(entries + end)


def tensors(head, num_bytes=8, length=None):
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    head = struct.pack("<Q", length or len(head)) + head
    return lambda path: path.write_bytes(head + bytes(num_bytes))


def tensor(start=0, end=8, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def sealed(text):
    return f"vit_jax:{google_crc32c.value(text.encode()):08x}:{text}"


def noted(**notes):
    return tensors({"__metadata__": notes, "a": F32})


GOOD, F32, SIZE = npy(np.zeros(3, np.float32)), tensor(), len(header())
LIES = {"method": zipfile.ZIP_DEFLATED, "patch": field(24, "<L", SIZE + 12)}  # The true size.
JUNK = zlib.compress(GOOD, wbits=-15) + b"junk"
AS_DEFLATED = field(10, "<H4xLLL", 8, zlib.crc32(GOOD), len(JUNK), len(GOOD))
PLAIN = {"descr": "<f4", "fortran_order": False, "shape": (3,)}
LONG = {"patch": field(20, "<LL", SIZE + 36, SIZE + 36)}
HOSTILE = {  # Beginning with the suffix.
    ".npz text": (lambda path: path.write_text("not a zip"), "not a zip file"),
    ".npz empty": (lambda path: path.touch(), "not a zip file"),
    ".npz folder": (lambda path: path.mkdir(), "not a regular file"),
    ".npz pipe": (os.mkfifo, "not a regular file"),
    ".npz pickle": (pickled, "a holds object"),
    ".npz code": (one(header(literal="__import__('os').abort()")), "damaged header"),
    ".npz nested": (one(header(literal="(" * 900)), "damaged header"),
    ".npz header of 2 KB": (one(header(literal=str(PLAIN).ljust(2000))), "damaged header"),
    ".npz header of 60 KB": (one(header(literal=str(PLAIN).ljust(60_000))), "damaged header"),
    ".npz 2.0, header of 4 GB": (one(b"\x93NUMPY\2\0" + b"\xff" * 4), "format 1.0"),
    ".npz 3.0": (one(npy(0, (3, 0))), "format 1.0"),
    ".npz 1 TiB": (one(header(shape=(2**38,))), "has .* where its shape needs 10995116"),
    ".npz 4 GiB": (one(GOOD, patch=field(24, "<L", 2**32 - 2)), "claim to hold 4294967294"),
    ".npz overflow": (one(header(shape=(2**33, 2**33))), "shape needs"),
    ".npz empty shape": (one(header(shape=(2**70, 0))), "shape of no weights"),
    ".npz negative shape": (one(header(shape=(-1, 3))), "shape of no weights"),
    ".npz 9 dimensions": (one(header(shape=(1,) * 9)), "shape of no weights"),
    ".npz tail": (one(GOOD + b"\0"), "a has 141 bytes where its shape needs 140"),
    ".npz bomb": (one(lambda: npy(np.zeros(2**23)), method=zipfile.ZIP_DEFLATED), "claim to hold"),
    ".npz bomb that lies": (one(lambda: header() + bytes(2**26), **LIES), "a is damaged: not of"),
    ".npz junk behind": (one(JUNK, patch=AS_DEFLATED), "does not end where its bytes do"),
    ".npz short": (one(header(), **LIES), "a is damaged: not of"),
    ".npz 1,000,000 members": (lambda path: many(path, 10**6), "a directory of 57000000 bytes"),
    ".npz 18,000 members": (lambda path: many(path, 18_000), "not where the directory says"),
    ".npz overlapping": (overlapping, "a overlaps"),
    ".npz into the directory": (one(header(shape=(9,)), **LONG), "a overlaps"),
    ".npz twice": (two(lambda raw: raw.replace(b"b.npy", b"a.npy")), "a is there twice"),
    ".npz two names": (two(lambda raw: raw.replace(b"b.npy", b"c.npy", 1)), "b is not where"),
    ".npz swallowed": (two(lambda raw: raw.replace(b"\2\0\2\0", b"\3\0\3\0")), "end is damaged"),
    ".npz no array": (zipped({"a.txt": GOOD}), "a.txt is no array"),
    ".npz encrypted": (one(GOOD, patch=field(8, "<H", 1)), "a is encrypted"),
    ".npz bzip2": (one(GOOD, method=zipfile.ZIP_BZIP2), "neither stored nor deflated"),
    ".npz bytes behind": (one(GOOD, patch=lambda raw: raw + b"\0"), "end is damaged"),
    ".npz cut comment": (one(GOOD, comment=b"abc", patch=lambda raw: raw[:-2]), "end is damaged"),
    ".safetensors text": (lambda path: path.write_text("not tensors, but a text"), "header of"),
    ".safetensors empty": (lambda path: path.touch(), "8 bytes"),
    ".safetensors folder": (lambda path: path.mkdir(), "not a regular file"),
    ".safetensors header of 1 TiB": (tensors({}, length=2**40), "header of 1099511627776"),
    ".safetensors header of 3 MiB": (tensors(b"{}" + b" " * 3 * 2**20), "header of 3145730"),
    ".safetensors no JSON": (tensors(b"hello"), "invalid JSON"),
    ".safetensors nested": (tensors(b'{"a":' + b"[" * 10**6), "invalid JSON"),
    ".safetensors overlapping": (tensors({"a": F32, "b": tensor(4, 12)}, 12), "invalid offset"),
    ".safetensors escape": (tensors({"\x1b[1m\n": tensor(4, 12)}), "invalid offset"),
    ".safetensors hole": (tensors({"a": F32, "b": tensor(9, 17)}, 17), "invalid offset"),
    ".safetensors tail": (tensors({"a": F32}, 9), "not fully covered"),
    ".safetensors overflow": (tensors({"a": tensor(shape=(2**40, 2**40))}), "overflow"),
    ".safetensors empty shape": (
        tensors({"a": tensor(0, 0, shape=(2**60, 0))}, 0),
        "of no weights",
    ),
    ".safetensors 9 dimensions": (tensors({"a": tensor(0, 4, shape=[1] * 9)}, 4), "of no weights"),
    ".safetensors odd": (tensors({"a": tensor(dtype="O")}), "unknown variant"),
    ".safetensors list": (noted(vit_jax=sealed("[1]")), "metadata is no JSON object"),
    ".safetensors cut metadata": (noted(vit_jax=sealed("{")), "metadata is no JSON object"),
    ".safetensors number": (noted(vit_jax_crc32c="1"), "checksums is no JSON object"),
    ".safetensors others": (noted(vit_jax_crc32c='{"b":1}'), "checksums are of other arrays"),
    ".safetensors checksum": (noted(vit_jax_crc32c='{"a":1}'), "a is damaged: its checksum"),
}
for odd in ["|O", "<c8", [("x", "V2")], ">f4", "|S5", "<U4", "|V3", "<M8", ("<f2", (1,))]:
    HOSTILE[f".npz of {odd}"] = one(header(odd)), "a holds"
for text in (b"", b"{", b"[1]", b"\xff{}", b"[" * 60_000):
    note = b"vit_jax:%08x:" % google_crc32c.value(text) + text
    HOSTILE[f".npz vit_jax:{text[:9]}"] = one(GOOD, comment=note), "metadata is no"
    HOSTILE[f".npz flipped {text[:9]}"] = one(GOOD, comment=note + b" "), "metadata is damaged"
for name in ["../../x", "/abs", "a//b", "a/./b", "a/..", "a/", "", "a\\b", "C:a", "é", "a\n"]:
    HOSTILE[f".npz {name!a}"] = zipped({f"{name}.npy": GOOD}), "is no name of an array"
    HOSTILE[f".safetensors {name!a}"] = tensors({name: F32}), "is no name of an array"
for size in (201, 300):
    HOSTILE[f".npz name of {size}"] = zipped({f"{'a' * size}.npy": GOOD}), "is no name of an array"
    HOSTILE[f".safetensors name of {size}"] = tensors({"a" * size: F32}), "is no name of an array"


@pytest.mark.parametrize("title", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path, title):
    make, words = HOSTILE[title]
    path = tmp_path / f"x{title.split()[0]}"
    make(path)
    assert re.search(rf"not a readable \{path.suffix} file \(.*{words}", refusal(path))
    assert os.listdir(tmp_path) == [path.name]


def test_a_pickle_that_is_loaded_leaves_a_marker(tmp_path):
    pickled(tmp_path / "x.npz")
    np.load(tmp_path / "x.npz", allow_pickle=True)["a"]
    assert (tmp_path / "marker").exists()


@both
def test_a_missing_file_and_another_kind_are_refused(tmp_path, suffix):
    assert refusal(tmp_path / f"none{suffix}").endswith("no such file.")
    assert "end in .npz or .safetensors; pickles are not read" in refusal(tmp_path / "vit.pth")


@pytest.mark.parametrize("name", ["x.npz", "deflated.npz", "x.safetensors"])
def test_a_cut_or_flipped_file_is_refused_or_harmless(tmp_path, name):
    path = tmp_path / name
    np.savez_compressed(path, **ARRAYS) if name.startswith("deflated") else write(path)
    whole, refused = path.read_bytes(), 0
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert "not a readable" in refusal(path, open_archive), size
    for at, byte in enumerate(whole):
        path.write_bytes(whole[:at] + bytes([byte ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            assert_same(read(path), ARRAYS)
            assert open_archive(path).metadata in ({}, METADATA)  # Or not known as ours.
        except CheckpointError:
            refused += 1
    assert refused > len(whole) / 2


PROGRAM = """
import pathlib, resource, sys
from vit_jax.weights.archive import CheckpointError, open_archive

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

before = peak()
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        archive = open_archive(path)
        for name in archive.entries:
            archive.read(name)
    except CheckpointError:
        print(peak() - before)
bytearray(100 * 2**20)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others count memory in other units")
def test_no_hostile_file_takes_64_mb(tmp_path):
    for i, (title, (make, _)) in enumerate(HOSTILE.items()):
        make(tmp_path / f"{i:03}{title.split()[0]}")
    # A small process between: a child's peak begins with that of the process it was forked from.
    command = ["sh", "-c", '"$@"; exit $?', "-", sys.executable, "-c", PROGRAM, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *rises, control = map(float, done.stdout.split())
    assert len(rises) == len(HOSTILE)
    assert max(rises) <= 64 < control  # The ruler measures.
