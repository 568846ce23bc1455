"""Features of CLIP equal those of open_clip, also at another size.

Deselected by default: `pytest -m parity -s` after `pip install -e '.[dev,parity]'`.
"""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.weights import load

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5  # Of the largest feature.
TEXT = {"context_length": 7, "vocab_size": 49, "width": 64, "heads": 1, "layers": 1}
CASES = {  # Title -> size in open_clip, use of QuickGELU, name here.
    "CLIP B/32": ({"width": 768, "patch_size": 32}, True, "clip_b32"),
    "OpenCLIP B/16": ({"width": 768, "patch_size": 16}, False, "openclip_b16"),
    "OpenCLIP H/14": ({"width": 1280, "patch_size": 14, "head_width": 80}, False, "openclip_h14"),
}


@pytest.fixture(scope="module")
def torch():
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        yield torch


def build(torch, title, image_size):
    """A random model of open_clip with two layers, and its config."""
    from open_clip.model import CLIP

    vision, is_quick, _ = CASES[title]
    vision = vision | {"layers": 2, "image_size": image_size}
    model = CLIP(64, vision, TEXT, quick_gelu=is_quick).eval()
    for parameter in model.visual.parameters():  # Every tensor affects the features.
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": is_quick}
    return model, {"model_cfg": config, "preprocess_cfg": {}}


def compare(torch, model, params, peer, photos) -> float:
    """The largest difference of the features of two photos, relative to the largest feature."""
    height, width = model.image_size
    photos = [Image.fromarray(photo).resize((width, height)) for photo in photos]
    images = np.stack([np.asarray(image, np.float32) / 127.5 - 1 for image in photos])
    mean, deviation = (np.float32(values) for values in PIXEL_STATS["clip"])
    pixels = ((images + 1) / 2 - mean) / deviation
    expected = peer.encode_image(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
    actual = np.asarray(jax.jit(model.apply)({"params": params}, images))
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("title", CASES)
def test_features_equal_open_clip_at_two_sizes(torch, title, photos, tmp_path):
    import safetensors.torch
    from open_clip.model import resize_pos_embed

    peer, config = build(torch, title, 224)
    state = {name: tensor.contiguous() for name, tensor in peer.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    loaded = load.load(tmp_path)
    name = CASES[title][2]
    differences = [compare(torch, loaded.model, loaded.params(), peer, photos)]
    patch = loaded.model.patch_size
    size = (5 * patch, 11 * patch)
    other, _ = build(torch, title, size)
    resize_pos_embed(state, other)
    other.load_state_dict(state)
    options = {"num_layers": 2, "projection": 64, "num_classes": 0, "image_size": size}
    model = vit_jax.create_model(name, **options)
    params = vit_jax.load_params(tmp_path, model, resize=True)
    differences.append(compare(torch, model, params, other, photos))
    print(f"\nopen_clip | {title} | {differences[0]:.1e} | {differences[1]:.1e}")
    assert max(differences) < TOLERANCE
