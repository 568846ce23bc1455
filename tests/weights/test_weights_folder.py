"""Sharded folders: equal to one file, and refused if a part is missing."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.support import peer_weights
from tests.support.runs import run_main
from vit_jax import main
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.weights import load
from vit_jax.weights.weights_folder import INDEX, open_weights

CONFIG = peer_weights.HF_CONFIG | {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
}
TENSORS = peer_weights.as_huggingface(peer_weights.timm_weights(), root="vit.")


def shards(folder, count=3, index=True):
    """A Hugging Face folder in shards; returns the file of each tensor."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    file_of = {tensor: names[i % count] for i, tensor in enumerate(TENSORS)}
    for name in names:
        part = {tensor: TENSORS[tensor] for tensor in TENSORS if file_of[tensor] == name}
        safetensors.numpy.save_file(part, folder / name)
    if index:
        content = {"metadata": {"total_size": 1}, "weight_map": file_of}
        (folder / INDEX).write_text(json.dumps(content))
    return file_of


def one_file(folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    safetensors.numpy.save_file(TENSORS, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("index", [True, False, "empty"])
def test_sharded_folder_has_the_parameters_of_one_file(tmp_path, index, capsys):
    shards(tmp_path / "sharded", index=index)
    if index == "empty":
        (tmp_path / "sharded" / INDEX).write_text("{}")
    expected = load.load(one_file(tmp_path / "one"))
    loaded = load.load(tmp_path / "sharded")
    assert loaded.model == expected.model
    params = trees.flatten(loaded.params())
    for name, array in trees.flatten(expected.params()).items():
        assert params[name].tobytes() == array.tobytes()
    assert main.run(["inspect", str(tmp_path / "sharded"), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["leaves"]) == set(TENSORS)


def error_of(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("index", [True, False])
def test_missing_shard_is_named(tmp_path, index):
    shards(tmp_path / "x", index=index)
    (tmp_path / "x" / "model-00002-of-00003.safetensors").unlink()
    message = error_of(tmp_path / "x")
    assert "1 of 3 shards are missing, such as model-00002-of-00003.safetensors" in message


def test_one_shard_alone_names_its_folder(tmp_path):
    shards(tmp_path / "x")
    path = tmp_path / "x" / "model-00002-of-00003.safetensors"
    message = error_of(path)
    assert message == f"{path} is one of 3 shards of a model; give their folder, {tmp_path / 'x'}."
    assert run_main("inspect", path).error.endswith("shards of a model; give their folder, "
        f"{tmp_path / 'x'}.")  # fmt: skip


def test_index_that_contradicts_the_shards_is_refused(tmp_path):
    file_of = shards(tmp_path / "x")
    first, *others = file_of
    for content, expected in (
        ({**file_of, "more": file_of[first]}, "more is in no shard"),
        ({name: file_of[name] for name in others}, f"{first} is not in {INDEX}"),
        ({first: "../../secret.safetensors"}, "weight_map does not name .safetensors files"),
        ({first: "pytorch_model.bin"}, "weight_map does not name .safetensors files"),
        ("text", "weight_map does not name .safetensors files"),
    ):
        (tmp_path / "x" / INDEX).write_text(json.dumps({"weight_map": content}))
        assert expected in error_of(tmp_path / "x")
    (tmp_path / "x" / INDEX).write_text("{}")
    double = {first: TENSORS[first], "more": np.ones(1, np.float32)}
    safetensors.numpy.save_file(double, tmp_path / "x" / "model-00002-of-00003.safetensors")
    assert f"{first} is in model-00001-of-00003.safetensors too" in error_of(tmp_path / "x")


def test_damaged_shard_is_named(tmp_path):
    shards(tmp_path / "x")
    path = tmp_path / "x" / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert f"{path}: not a readable .safetensors file" in error_of(tmp_path / "x")


def test_one_file_takes_precedence_over_shards(tmp_path):
    folder = one_file(tmp_path / "x")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert set(open_weights(folder).arrays) == set(TENSORS)
