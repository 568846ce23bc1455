"""Untrusted weights files are rejected in one line, with bounded memory, and run no code."""

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib

import google_crc32c
import numpy as np
import pytest

from tests.support.archive_files import (
    ARRAYS,
    METADATA,
    assert_same,
    header,
    npy,
    one,
    read,
    read_error,
    write,
    zipped,
)
from tests.support.runs import ROOT
from vit_jax.errors import CheckpointError
from vit_jax.weights.archive import open_archive

# Hostile files: title -> (function that writes the file, expected part of the message).


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
    ".npz folder": (lambda path: path.mkdir(), "not a regular file"),
    ".npz pipe": (os.mkfifo, "not a regular file"),
    ".npz pickle": (pickled, "a has dtype object"),
    ".npz code": (one(header(literal="__import__('os').abort()")), "damaged header"),
    ".npz nested": (one(header(literal="(" * 900)), "damaged header"),
    ".npz header of 2 KB": (one(header(literal=str(PLAIN).ljust(2000))), "damaged header"),
    ".npz header of 60 KB": (one(header(literal=str(PLAIN).ljust(60_000))), "damaged header"),
    ".npz 2.0, header of 4 GB": (one(b"\x93NUMPY\2\0" + b"\xff" * 4), "format 1.0"),
    ".npz 3.0": (one(npy(0, (3, 0))), "format 1.0"),
    ".npz 1 TiB": (one(header(shape=(2**38,))), "has .*; its shape needs 10995116"),
    ".npz 4 GiB": (one(GOOD, patch=field(24, "<L", 2**32 - 2)), "of 4294967294 bytes"),
    ".npz overflow": (one(header(shape=(2**33, 2**33))), "shape needs"),
    ".npz empty shape": (one(header(shape=(2**70, 0))), "expected at most 8 sizes"),
    ".npz negative shape": (one(header(shape=(-1, 3))), "expected at most 8 sizes"),
    ".npz 9 dimensions": (one(header(shape=(1,) * 9)), "expected at most 8 sizes"),
    ".npz tail": (one(GOOD + b"\0"), "a has 141 bytes; its shape needs 140"),
    ".npz bomb": (
        one(lambda: npy(np.zeros(2**23)), method=zipfile.ZIP_DEFLATED),
        "is truncated",
    ),
    ".npz bomb that lies": (one(lambda: header() + bytes(2**26), **LIES), "a is damaged: expected"),
    ".npz junk behind": (one(JUNK, patch=AS_DEFLATED), "does not end at the end of its member"),
    ".npz short": (one(header(), **LIES), "a is damaged: expected"),
    ".npz 1,000,000 members": (
        lambda path: many(path, 10**6),
        "its zip directory has 57000000 bytes",
    ),
    ".npz 18,000 members": (
        lambda path: many(path, 18_000),
        "is not at the offset",
    ),
    ".npz overlapping": (overlapping, "a overlaps"),
    ".npz into the directory": (one(header(shape=(9,)), **LONG), "a overlaps"),
    ".npz twice": (two(lambda raw: raw.replace(b"b.npy", b"a.npy")), "a occurs twice"),
    ".npz two names": (
        two(lambda raw: raw.replace(b"b.npy", b"c.npy", 1)),
        "b is not at",
    ),
    ".npz swallowed": (
        two(lambda raw: raw.replace(b"\2\0\2\0", b"\3\0\3\0")),
        "end record",
    ),
    ".npz no array": (zipped({"a.txt": GOOD}), "a.txt is not an .npy array"),
    ".npz encrypted": (one(GOOD, patch=field(8, "<H", 1)), "a is encrypted"),
    ".npz bzip2": (one(GOOD, method=zipfile.ZIP_BZIP2), "compressed by method 12"),
    ".npz bytes behind": (one(GOOD, patch=lambda raw: raw + b"\0"), "end record"),
    ".npz cut comment": (
        one(GOOD, comment=b"abc", patch=lambda raw: raw[:-2]),
        "end record",
    ),
    ".safetensors text": (lambda path: path.write_text("not tensors, but a text"), "header has"),
    ".safetensors folder": (lambda path: path.mkdir(), "not a regular file"),
    ".safetensors header of 1 TiB": (
        tensors({}, length=2**40),
        "header has 1099511627776 bytes; expected at most 10",
    ),
    ".safetensors header of 3 MiB": (
        tensors(b"{}" + b" " * 3 * 2**20),
        "header has 3145730 bytes; expected at most",
    ),
    ".safetensors no JSON": (tensors(b"hello"), "invalid JSON"),
    ".safetensors nested": (tensors(b'{"a":' + b"[" * 10**6), "invalid JSON"),
    ".safetensors overlapping": (tensors({"a": F32, "b": tensor(4, 12)}, 12), "invalid offset"),
    ".safetensors escape": (tensors({"\x1b[1m\n": tensor(4, 12)}), "invalid offset"),
    ".safetensors hole": (tensors({"a": F32, "b": tensor(9, 17)}, 17), "invalid offset"),
    ".safetensors tail": (tensors({"a": F32}, 9), "not fully covered"),
    ".safetensors overflow": (tensors({"a": tensor(shape=(2**40, 2**40))}), "overflow"),
    ".safetensors empty shape": (
        tensors({"a": tensor(0, 0, shape=(2**60, 0))}, 0),
        "expected at most 8 sizes",
    ),
    ".safetensors 9 dimensions": (
        tensors({"a": tensor(0, 4, shape=[1] * 9)}, 4),
        "expected at most 8 sizes",
    ),
    ".safetensors odd": (tensors({"a": tensor(dtype="O")}), "unknown variant"),
    ".safetensors list": (noted(vit_jax=sealed("[1]")), "metadata is not a JSON object"),
    ".safetensors cut metadata": (noted(vit_jax=sealed("{")), "metadata is not a JSON object"),
    ".safetensors number": (noted(vit_jax_crc32c="1"), "checksums is not a JSON object"),
    ".safetensors others": (noted(vit_jax_crc32c='{"b":1}'), "checksums does not match its arrays"),
    ".safetensors checksum": (noted(vit_jax_crc32c='{"a":1}'), "a is damaged: checksum"),
}
for odd in ["|O", "<c8", [("x", "V2")], ">f4", "|S5", "<U4", "|V3", "<M8", ("<f2", (1,))]:
    HOSTILE[f".npz of {odd}"] = one(header(odd)), "a has dtype"
for text in (b"", b"{", b"[1]", b"\xff{}", b"[" * 60_000):
    note = b"vit_jax:%08x:" % google_crc32c.value(text) + text
    HOSTILE[f".npz vit_jax:{text[:9]}"] = one(GOOD, comment=note), "metadata is not a"
    HOSTILE[f".npz flipped {text[:9]}"] = one(GOOD, comment=note + b" "), "metadata is damaged"
for name in ["../../x", "/abs", "a//b", "a/./b", "a/..", "a/", "", "a\\b", "C:a", "é", "a\n"]:
    HOSTILE[f".npz {name!a}"] = zipped({f"{name}.npy": GOOD}), "not a valid array name"
    HOSTILE[f".safetensors {name!a}"] = tensors({name: F32}), "not a valid array name"
for size in (201, 300):
    HOSTILE[f".npz name of {size}"] = (
        zipped({f"{'a' * size}.npy": GOOD}),
        "is not a valid array name",
    )
    HOSTILE[f".safetensors name of {size}"] = (
        tensors({"a" * size: F32}),
        "is not a valid array name",
    )


@pytest.mark.parametrize("title", HOSTILE)
def test_open_archive_or_read_rejects_hostile_files(tmp_path, title):
    make, words = HOSTILE[title]
    path = tmp_path / f"x{title.split()[0]}"
    make(path)
    assert re.search(rf"not a readable \{path.suffix} file \(.*{words}", read_error(path))
    assert os.listdir(tmp_path) == [path.name]


def test_marker_of_an_unpickled_file_exists(tmp_path):
    pickled(tmp_path / "x.npz")
    np.load(tmp_path / "x.npz", allow_pickle=True)["a"]
    assert (tmp_path / "marker").exists()


@pytest.mark.stress
@pytest.mark.parametrize("name", ["x.npz", "deflated.npz", "x.safetensors"])
def test_truncated_and_flipped_files_are_rejected_or_unchanged(tmp_path, name):
    path = tmp_path / name
    np.savez_compressed(path, **ARRAYS) if name.startswith("deflated") else write(path)
    content, num_rejected = path.read_bytes(), 0
    for size in range(1, len(content), 7):
        path.write_bytes(content[:size])
        assert "not a readable" in read_error(path, open_archive), size
    for at, byte in enumerate(content):
        path.write_bytes(content[:at] + bytes([byte ^ 1 << at % 8]) + content[at + 1 :])
        try:
            assert_same(read(path), ARRAYS)
            assert open_archive(path).metadata in ({}, METADATA)  # {} if the mark is flipped.
        except CheckpointError:
            num_rejected += 1
    assert num_rejected > len(content) / 2


PROGRAM = """
import pathlib, resource, sys
from vit_jax.weights.archive import CheckpointError, open_archive

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

before = peak()
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        archive = open_archive(path)
        for name in archive.arrays:
            archive.read(name)
    except CheckpointError:
        print(peak() - before)
bytearray(100 * 2**20)
print(peak() - before)
"""


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_hostile_files_take_at_most_64_mib(tmp_path):
    for i, (title, (make, _)) in enumerate(HOSTILE.items()):
        make(tmp_path / f"{i:03}{title.split()[0]}")
    # A shell starts the child: a process inherits the peak of the one that it is forked from.
    command = ["sh", "-c", '"$@"; exit $?', "-", sys.executable, "-c", PROGRAM, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *rises, control = map(float, done.stdout.split())
    assert len(rises) == len(HOSTILE)
    assert max(rises) <= 64 < control  # The control allocates 100 MiB.
