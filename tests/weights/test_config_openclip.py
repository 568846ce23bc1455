"""The open_clip_config.json beside open_clip_model.safetensors."""

import json

import jax
import numpy as np
import pytest

from tests.support.original_files import open_clip, save, text_tower
from tests.support.peer_weights import IMAGES, D, M, outputs, some, timm_weights
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.weights import load
from vit_jax.weights.config_openclip import from_openclip

VISION = {"image_size": 12, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}
VISION |= {"mlp_ratio": 2.0}
CONFIG = {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "quick_gelu": True, "text_cfg": {}}}
PREPROCESSING = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}


def changed(model=None, vision=None, preprocessing=None) -> dict:
    cfg = CONFIG["model_cfg"] | (model or {}) | {"vision_cfg": VISION | (vision or {})}
    return {"model_cfg": cfg, "preprocess_cfg": preprocessing or {}}


def folder_of(path, config):
    _, p, stored = open_clip()
    save(path / "open_clip_model.safetensors", stored | text_tower())
    (path / "open_clip_config.json").write_text(json.dumps(config))
    return p


def test_folder_of_open_clip_has_all_options(tmp_path, capsys):
    p = folder_of(tmp_path, changed())
    loaded = load.load(tmp_path)
    config = loaded.model.config
    assert (config.gelu, config.pixel_stats, config.norm_eps) == ("quick", "clip", 1e-5)
    assert (loaded.model.size.num_heads, loaded.model.image_size) == (2, (12, 12))
    assert (config.projection, loaded.weights.metadata.family) == (24, "clip")
    recipe = loaded.recipe
    assert (recipe.crop, recipe.crop_fraction, recipe.resample) == ("timm", 1.0, "bicubic")
    for name, array in trees.flatten(loaded.params()).items():
        np.testing.assert_array_equal(array, p[name])
    assert "assumed norm_eps=1e-05 (CLIP (OpenAI))" in capsys.readouterr().err


def test_from_openclip_reads_activation_and_preprocessing():
    metadata = from_openclip(changed({"quick_gelu": False}, None, PREPROCESSING), "x")
    assert (metadata.gelu, metadata.pixel_stats, metadata.resample) == ("erf", "half", "antialias")
    squashed = from_openclip(changed(preprocessing={"resize_mode": "squash"}), "x")
    assert squashed.crop == "timm_squash"


def test_from_openclip_of_a_trunk_of_timm_has_the_activation_of_timm():
    vision = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"}
    metadata = from_openclip({"model_cfg": {"vision_cfg": vision}}, "x")
    assert (metadata.gelu, metadata.num_heads, metadata.image_size) == ("erf", None, (224, 224))
    vision = {"timm_model_name": "beit_base_patch16_224"}
    with pytest.raises(CheckpointError, match=r"architecture 'beit_base_patch16_224' .* is not"):
        from_openclip({"model_cfg": {"vision_cfg": vision}}, "x")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"vision": {"pool_type": "avg"}}, "vision_cfg.pool_type 'avg' .*; expected 'tok'"),
        ({"vision": {"attentional_pool": True}}, "vision_cfg.attentional_pool True"),
        ({"vision": {"qk_norm": True}}, "vision_cfg.qk_norm True .* is not supported"),
        ({"vision": {"head_width": 24}}, "head_width 24 .* does not divide the width 32"),
        ({"vision": {"layers": 3}}, "vision_cfg.layers is 3, the tensors have layers 2"),
        ({"vision": {"width": 64}}, "vision_cfg.width is 64, the tensors have width 32"),
        ({"vision": {"mlp_ratio": 4.0}}, "vision_cfg.mlp_ratio is 4.0"),
        ({"vision": {"image_size": 16}}, "image_size 16x16 contradicts 9 position embeddings"),
        ({"vision": {"image_size": "big"}}, "invalid metadata: image_size"),
        ({"vision": {"width": None}}, "open_clip_config.json: invalid value"),
        ({"model": {"embed_dim": 25}}, "model_cfg.embed_dim is 25"),
        ({"preprocessing": {"resize_mode": "longest"}}, "resize_mode 'longest'"),
        ({"preprocessing": {"interpolation": "random"}}, "interpolation 'random'"),
        ({"preprocessing": {"mean": [1, 2, 3], "std": [1, 1, 1]}}, "pixel statistics of mean"),
    ],
)
def test_config_that_is_not_supported_or_contradicts_the_tensors_is_rejected(
    tmp_path, changes, text
):
    folder_of(tmp_path, changed(**changes))
    with pytest.raises(CheckpointError, match=text) as caught:
        load.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [{}, {"model_cfg": []}, {"model_cfg": {"vision_cfg": 1}}])
def test_config_without_vision_cfg_is_rejected(tmp_path, config):
    folder_of(tmp_path, config)
    with pytest.raises(CheckpointError, match="has no model_cfg with a vision_cfg"):
        load.load(tmp_path)


def test_model_safetensors_is_read_before_open_clips(tmp_path):
    folder_of(tmp_path, changed())
    save(tmp_path / "model.safetensors", {"x": np.ones(1, np.float32)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: unknown format"):
        load.load(tmp_path)


def test_trunk_of_timm_in_open_clip_has_the_options_of_its_architecture(tmp_path):
    w = timm_weights(positions=6, head=0)
    del w["cls_token"]
    sizes = {"q": (D, D), "kv": (2 * D, D), "proj": (D, D), "norm": (D,)}
    for name, shape in (sizes | {"mlp.fc1": (M, D), "mlp.fc2": (D, M)}).items():
        w |= {f"attn_pool.{name}.weight": some(*shape), f"attn_pool.{name}.bias": some(shape[0])}
    w["attn_pool.latent"] = some(1, 1, D)
    stored = {f"visual.trunk.{name}": array for name, array in w.items()}
    stored |= {"text.positional_embedding": some(4, 8), "logit_scale": some(), "logit_bias": some()}
    save(tmp_path / "open_clip_model.safetensors", stored)
    vision = {"timm_model_name": "vit_base_patch16_siglip_224", "image_size": [8, 12]}
    config = {"model_cfg": {"vision_cfg": vision}, "preprocess_cfg": PREPROCESSING}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    loaded = load.load(f"{tmp_path}:num_heads=2")
    assert (loaded.model.config.pool, loaded.model.config.pixel_stats) == ("map", "half")
    assert loaded.weights.metadata.family == "siglip"
    assert len(loaded.weights_file.other_tower) == 3
    features = np.asarray(jax.jit(loaded.model.apply)({"params": loaded.params()}, IMAGES))
    np.testing.assert_allclose(features, outputs(w, IMAGES, pool="map"), atol=1e-5)
