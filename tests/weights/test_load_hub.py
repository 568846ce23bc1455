"""Whole repositories of encoders on the Hugging Face hub, read by their hf:// name."""

import importlib.util
import json

import numpy as np
import pytest
import safetensors.numpy

from tests.support.hub import run_beside_a_hub
from tests.support.original_files import flat_params, open_clip, save, text_tower
from vit_jax import create_model
from vit_jax.models import trees
from vit_jax.weights import save as save_lib
from vit_jax.weights.convert import convert

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec("huggingface_hub"), reason="needs huggingface_hub"
    ),
]
LOAD = """
import sys, numpy, vit_jax
from vit_jax.models import trees
loaded = vit_jax.load(sys.argv[1])
params = trees.flatten(loaded.params)
total = sum(float(numpy.abs(array.astype(numpy.float64)).sum()) for array in params.values())
print(loaded.model.config.name, loaded.model.image_size, len(params), repr(total))
"""
TINY = {"num_layers": 2, "hidden_size": 64, "mlp_size": 128, "num_heads": 2, "num_classes": 0}


def shard(folder):
    """Splits model.safetensors of a folder into two files and an index."""
    path = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    names, weight_map = sorted(arrays), {}
    for n, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{n:05}-of-00002.safetensors"
        safetensors.numpy.save_file({name: arrays[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    path.unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["dinov2_reg_s14", "dinov3_splus16", "siglip_b16"])
def test_sharded_repository_of_transformers_is_loaded(tmp_path, name):
    model = create_model(name, image_size=32 if name.endswith("16") else 28, **TINY)
    params = flat_params(model)
    save_lib.save_params(tmp_path / "x.npz", model, trees.unflatten(params))
    convert(str(tmp_path / "x.npz"), str(tmp_path / "folder"))
    shard(tmp_path / "folder")
    files = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    printed = run_beside_a_hub(tmp_path, files, LOAD, "hf://owner/name")
    _, height, width, count, total = printed.split()
    assert f"{height} {width}" == str(model.image_size)
    assert int(count) == len(params)
    expected = sum(float(np.abs(array.astype(np.float64)).sum()) for array in params.values())
    assert float(total) == pytest.approx(expected, rel=1e-6)


def test_repository_of_open_clip_is_loaded(tmp_path):
    _, p, stored = open_clip()
    save(tmp_path / "x.safetensors", stored | text_tower())
    vision = {"image_size": 12, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision | {"mlp_ratio": 2.0}}}
    files = {
        "open_clip_model.safetensors": (tmp_path / "x.safetensors").read_bytes(),
        "open_clip_config.json": json.dumps(config).encode(),
    }
    for url in ("hf://owner/name", "hf://owner/name/open_clip_model.safetensors"):
        printed = run_beside_a_hub(tmp_path, files, LOAD, url)
        assert printed.split()[3] == str(len(p))
