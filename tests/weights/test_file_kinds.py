"""Files and folders that people have instead of weights: what they are, and what to do."""

import ast
import glob
import gzip
import io
import pathlib
import pickle
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from vit_jax.errors import CheckpointError
from vit_jax.weights import load
from vit_jax.weights.archive import open_archive
from vit_jax.weights.file_kinds import pickle_error


def torch_zip() -> bytes:
    """First member of a file of `torch.save`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("pytorch_model/data.pkl", pickle.dumps({}))
    return stream.getvalue()


def tensors(header_size: int = 0) -> bytes:
    """A .safetensors file, with a header of at least a number of bytes."""
    return safetensors.numpy.save({"a": np.ones(2, np.float32)}, {"note": "x" * header_size})


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(2, np.float32))
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x.npz"))
    return stream.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 346293852\n"
PICKLE = "is a pickle, which can run code and is never read"
CASES = [
    ("x.safetensors", POINTER, "is a Git LFS pointer, not the file; run `git lfs pull`."),
    ("x.npz", POINTER, "is a Git LFS pointer"),
    ("pytorch_model.bin", POINTER, "is a Git LFS pointer"),
    ("x.safetensors", b"", "is empty; copy or download the file again."),
    ("x.npz", b"", "is empty; copy or download the file again."),
    ("x.pth", b"", "is empty; copy or download the file again."),
    ("x.safetensors", b"\n <!DOCTYPE html><title>Log in", "is a web page, not weights; download"),
    ("x.npz", b"<?xml version='1.0'?><Error>", "is a web page"),
    ("x.safetensors", b'{"error": "gated"}', "is a JSON file, not weights."),
    ("x.safetensors", torch_zip(), PICKLE),
    ("x.npz", torch_zip(), PICKLE),
    ("x.npz", pickle.dumps({"a": 1}), PICKLE),
    ("pytorch_model.bin", b"PK\3\4 no model", PICKLE),
    ("x.ckpt", b"anything", PICKLE),
    ("x.safetensors", arrays(), "is an .npz file; give it this suffix."),
    ("x.bin", arrays(), "is an .npz file; give it this suffix."),
    ("x.npz", tensors(), "is a .safetensors file; give it this suffix."),
    ("x.pt", tensors(), "is a .safetensors file; give it this suffix."),
    ("x.npz", np.lib.format.magic(1, 0), "is one array of numpy"),
    ("x.npz", gzip.compress(b"x", mtime=0), "is compressed; unpack it."),
    ("x.npz.gz", gzip.compress(b"x", mtime=0), "is compressed; unpack it."),
    ("x.npz", tar(), "is a tar file; unpack it."),
    ("model.h5", b"\x89HDF\r\n", "is an HDF5 file of Keras"),
    ("x.gguf", b"GGUF\3", "is a GGUF file"),
    ("x.txt", b"hello", "unsupported suffix; expected .npz or .safetensors"),
]


@pytest.mark.parametrize(("name", "content", "expected"), CASES)
def test_file_that_is_no_weights_is_named_with_a_remedy(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_archive(path)
    assert f"{path}" in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_headers_of_any_length_are_recognised(tmp_path):
    sizes = {}  # Low bytes of the length: those of `{`, `<`, a pickle and a zip file too.
    for size in (*range(0, 1200, 8), 0x4B50 - 100, 0x5A42 - 100):
        content = tensors(size)
        sizes[content[:2]] = content
    for first in (b"\x80\x02", b"\x80\x03"):
        assert first in sizes
    for content in sizes.values():
        (tmp_path / "x.safetensors").write_bytes(content)
        assert list(open_archive(tmp_path / "x.safetensors").arrays) == ["a"]


def test_pickle_remedy_names_the_files(tmp_path):
    for name, new in (("pytorch_model.bin", "model"), ("vit.pth", "vit")):
        (tmp_path / name).write_bytes(torch_zip())
        with pytest.raises(CheckpointError) as caught:
            load.load(tmp_path / name)
        code = str(caught.value).partition('python -c "')[2].removesuffix('"')
        compile(code, "remedy", "exec")
        assert f"{str(tmp_path / name)!r}" in code
        assert f"{tmp_path / new!s}.safetensors" in code


def test_pickle_remedy_of_a_shard_saves_all_shards(tmp_path):
    folder = tmp_path / "a [folder]"
    folder.mkdir()
    for k in (1, 2):
        (folder / f"pytorch_model-0000{k}-of-00002.bin").write_bytes(torch_zip())
    with pytest.raises(CheckpointError) as caught:
        load.load(folder)
    code = str(caught.value).partition('python -c "')[2].removesuffix('"')
    compile(code, "remedy", "exec")
    files = code.partition("glob.glob(")[2].partition(") for w")[0]
    found = glob.glob(ast.literal_eval(files))
    assert sorted(found) == [str(path) for path in sorted(folder.iterdir())]
    assert "p[:-4] + '.safetensors'" in code


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pytorch_model.bin"], PICKLE),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], PICKLE),
        (
            ["vit.safetensors", "pytorch_model.bin"],
            "contains vit.safetensors; give the file",
        ),
        (["a.npz", "b.npz"], "contains a.npz, b.npz; give the file"),
        (["tf_model.h5"], "contains no checkpoint; it contains config.json, tf_model.h5"),
    ],
)
def test_folder_without_weights_says_what_to_do(tmp_path, names, expected):
    for name in ("config.json", *names):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        load.load(tmp_path)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "keys", [(), ("model",), ("target_encoder",), ("teacher",), ("model", "state_dict")]
)
def test_pickle_command_saves_the_weights_beside_the_state_of_a_training(monkeypatch, keys):
    tensor = types.SimpleNamespace(clone=lambda: types.SimpleNamespace(contiguous=lambda: "a"))
    content = {"a": tensor, "epoch": 3}
    for key in keys:
        content = {"student": {"b": tensor}, "encoder": {"b": tensor}, key: content}
    saved = {}
    torch = types.SimpleNamespace(
        load=lambda *_, weights_only: content if weights_only else None,
        is_tensor=lambda value: value is tensor,
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    safetensors_torch = types.SimpleNamespace(save_file=lambda w, path: saved.update({path: w}))
    monkeypatch.setitem(sys.modules, "safetensors.torch", safetensors_torch)
    monkeypatch.setattr(safetensors, "torch", safetensors_torch, raising=False)
    message = str(pickle_error(pathlib.Path("w.pth")))
    exec(message.partition('python -c "')[2].removesuffix('"'), {})
    assert saved == {"w.safetensors": {"a": "a"}}
