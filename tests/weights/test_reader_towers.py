"""Files with an image tower beside another one: what is read, listed and rejected."""

import json

import numpy as np
import pytest

from tests.support.tiny import some_params, tiny
from vit_jax import main
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.weights import load
from vit_jax.weights.reader import open_weights_file

POSITIONS = "Transformer/posembed_input/pos_embedding"


def flat_params(model) -> dict[str, np.ndarray]:
    return trees.flatten(some_params(model))


def read(where) -> dict[str, np.ndarray]:
    return dict(open_weights_file(where).read())


def assert_same_bits(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


# SigLIP and LiT: the ViT of big_vision beside a text tower.

TEXT_TOWER = {
    "txt/Encoder_0/encoderblock_0/MlpBlock_0/Dense_0/kernel": (8, 16),
    "txt/Embed_0/embedding": (32, 8),
    "txt/pos_embedding": (1, 4, 8),
    "t": (1,),
    "b": (1,),
}


def two_towers(model, root) -> dict[str, np.ndarray]:
    """Parameters as big_vision stores them; `root` precedes the names."""
    arrays = flat_params(model)
    stored = {f"{root}img/{name}": array for name, array in arrays.items()}
    stored[f"{root}img/pos_embedding"] = stored.pop(f"{root}img/{POSITIONS}")
    return stored | {f"{root}{name}": np.ones(s, np.float32) for name, s in TEXT_TOWER.items()}


@pytest.mark.parametrize("root", ["", "params/"])
@pytest.mark.parametrize("is_scanned", [False, True], ids=["unrolled", "scanned"])
def test_image_tower_of_two_is_read_and_the_other_one_listed(tmp_path, root, is_scanned):
    model = tiny(pool="map", num_classes=0, image_size=8)
    stored = two_towers(model, root)
    if is_scanned:
        for name in [name for name in stored if "encoderblock_0/" in name and "img/" in name]:
            layers = [stored.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(2)]
            stored[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    np.savez(tmp_path / "siglip.npz", **stored)
    file = open_weights_file(tmp_path / "siglip.npz")
    assert_same_bits(dict(file.read()), flat_params(model))
    assert file.other_tower == tuple(f"{root}{name}" for name in TEXT_TOWER)
    loaded = load.load(tmp_path / "siglip.npz")
    assert loaded.model.config.pool == "map"
    assert (loaded.recipe.crop, loaded.recipe.resample) == ("resize", "tf_bilinear_uint8")


def test_image_tower_of_lit_has_the_official_names_and_a_head(tmp_path):
    model = tiny(num_classes=5, image_size=8)
    stored = {f"img/{name}": array for name, array in flat_params(model).items()}
    stored |= {name: np.ones(s, np.float32) for name, s in TEXT_TOWER.items() if name != "b"}
    np.savez(tmp_path / "lit.npz", **stored)
    file = open_weights_file(tmp_path / "lit.npz")
    assert_same_bits(dict(file.read()), flat_params(model))
    assert (file.format.name, file.metadata.family) == ("Flax npz", None)
    assert load.load(tmp_path / "lit.npz").recipe.crop == "resize"


def test_text_tower_beside_the_root_of_the_image_tower_alone_is_ignored(tmp_path):
    stored = two_towers(tiny(pool="map", num_classes=0, image_size=8), "")
    stored = {name.removeprefix("img/"): array for name, array in stored.items()}
    np.savez(tmp_path / "x.npz", **stored)
    with pytest.raises(CheckpointError, match="txt/Embed_0/embedding is not a tensor of"):
        open_weights_file(tmp_path / "x.npz")


def test_inspect_lists_the_use_of_each_array(tmp_path, capsys):
    model = tiny(pool="map", num_classes=0, image_size=8)
    path = tmp_path / "siglip.npz"
    np.savez(path, **two_towers(model, "params/"))
    assert main.run(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["family"]) == ("big_vision npz", "siglip")
    assert found["parameters"] == trees.count(flat_params(model))
    others = {name for name, leaf in found["leaves"].items() if leaf.get("use") == "another tower"}
    assert others == {f"params/{name}" for name in TEXT_TOWER}
    assert main.run(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("another tower") for line in lines) == len(TEXT_TOWER)
