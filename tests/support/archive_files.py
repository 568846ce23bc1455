"""Untrusted weights files for tests: writers, byte-level builders, and comparisons."""

import io
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from vit_jax.errors import CheckpointError
from vit_jax.weights.archive import open_archive, write_npz, write_safetensors

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


def write_with_library(path, arrays):
    """Writes with numpy or the safetensors library."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        safetensors.numpy.save_file(arrays, path)
    return path


def read(path):
    archive = open_archive(path)
    return {name: archive.read(name) for name in archive.arrays}


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (np.float32, array.shape)
        assert actual[name].tobytes() == array.tobytes(), name


def read_error(path, act=read):
    with pytest.raises(CheckpointError) as caught:
        act(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()  # No newline, no escape that a terminal would obey.
    assert len(message) < len(str(path)) + 250
    return message


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
