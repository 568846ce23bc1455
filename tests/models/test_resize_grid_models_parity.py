"""Features at other image sizes than those of the weights, against timm and transformers.

Each model interpolates its position embeddings by its own code, or computes rotary positions.
Deselected by default: `pytest -m parity -s` after `pip install -e '.[dev,parity]'`.
"""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.support.golden_outputs import params_of
from vit_jax.models import trees
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.weights.convert import convert

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5  # Of the largest feature.
NEW_GRIDS = ((24, 24), (10, 19))  # Of 16x16 patches, or 14x14: larger, and not square.
RULES = {"timm": "bicubic_antialias", "transformers": "bicubic"}
TWO = {"num_layers": 2, "num_classes": 0}


class Case(NamedTuple):
    """An encoder of two layers.

    Attributes:
      name: its name here.
      peer: name of its model in timm, or '' for the model of transformers.
      size: side in pixels of the weights.
      rule: rule of the peer's code, if it is not that of all its models; None for rotary alone.
    """

    name: str
    peer: str
    size: int
    rule: str | None = ""


CASES = {
    "DINO S/16, timm": Case("dino_s16", "vit_small_patch16_224", 224),
    "DINOv2 S/14, transformers": Case("dinov2_s14", "", 224),
    "DINOv2 S/14, timm": Case("dinov2_s14", "vit_small_patch14_dinov2", 224),
    "DINOv2 S/14 with registers, transformers": Case("dinov2_reg_s14", "", 224, "auto"),
    "DINOv2 S/14 with registers, timm": Case(
        "dinov2_reg_s14", "vit_small_patch14_reg4_dinov2", 224, "auto"
    ),
    "DINOv3 S/16, transformers": Case("dinov3_s16", "", 256, None),
    "DINOv3 S/16, timm": Case("dinov3_s16", "vit_small_patch16_dinov3_qkvb", 256, None),
    "EVA-02 Ti/14, timm": Case("eva02_ti14", "eva02_tiny_patch14_224", 224),
    "CLIP B/16, transformers": Case("clip_b16", "", 224),
    "OpenCLIP B/16, timm": Case("openclip_b16", "vit_base_patch16_clip_224", 224, "auto"),
    "SigLIP B/16, transformers": Case("siglip_b16", "", 224),
    "SigLIP B/16, timm": Case("siglip_b16", "vit_base_patch16_siglip_224", 224),
    "DeiT III S/16, timm": Case("deit3_s16", "deit3_small_patch16_224", 224),
    "DeiT S/16 distilled, transformers": Case("deit_distilled_s16", "", 224, "auto"),
    "MAE B/16, timm": Case("mae_b16", "vit_base_patch16_224", 224),
    "I-JEPA H/14, transformers": Case("ijepa_h14", "", 224, "auto"),
}


@pytest.fixture(scope="module")
def torch():
    import torch

    with torch.no_grad():
        yield torch


def photo_of(photos, size) -> np.ndarray:
    height, width = size
    resized = [Image.fromarray(photo).resize((width, height)) for photo in photos]
    return np.stack([np.asarray(image, np.float32) / 127.5 - 1 for image in resized])


def timm_tokens(torch, case, path, pixels) -> np.ndarray:
    import safetensors.torch
    import timm

    options = {"depth": 2, "num_classes": 0, "img_size": case.size, "dynamic_img_size": True}
    tensors = safetensors.torch.load_file(path)
    if case.name.startswith("siglip"):
        options["act_layer"] = "gelu_tanh"
    if case.name.startswith("deit3"):  # timm's own weights have no position of the class token.
        options["no_embed_class"] = tensors["pos_embed"].shape[1] == 14 * 14
    model = timm.create_model(case.peer, **options).eval()
    model.load_state_dict(tensors)
    return model.forward_features(pixels).numpy()


def transformers_tokens(torch, case, folder, pixels) -> np.ndarray:
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    is_flexible = case.name.startswith(("dinov2", "dinov3"))
    options = {} if is_flexible else {"interpolate_pos_encoding": True}
    tokens = model(pixel_values=pixels, **options).last_hidden_state
    return (model.post_layernorm(tokens) if "clip_" in case.name else tokens).numpy()


@pytest.mark.parametrize("title", CASES)
def test_tokens_at_other_sizes_equal_those_of_the_peer(torch, title, photos, tmp_path):
    case = CASES[title]
    peer = "timm" if case.peer else "transformers"
    model = vit_jax.create_model(case.name, image_size=case.size, **TWO)
    params = params_of(model)
    vit_jax.save_params(tmp_path / "x.npz", model, trees.unflatten(params))
    path = tmp_path / ("x.safetensors" if case.peer else "folder")
    convert(str(tmp_path / "x.npz"), str(path))
    rule = RULES[peer] if case.rule == "" else case.rule or "auto"
    for grid in (model.grid, *NEW_GRIDS):
        size = tuple(side * model.patch_size for side in grid)
        new = vit_jax.create_model(case.name, image_size=size, **TWO)
        read = vit_jax.load_params(path, new, resize=True, resize_rule=rule)
        images = photo_of(photos, size)
        encode = jax.jit(
            lambda p, x, new=new: new.apply(
                {"params": p}, x, method=lambda m, x: m.encode(m.embed(x))
            )
        )
        actual = np.asarray(encode(read, images))
        mean, deviation = (np.float32(values) for values in PIXEL_STATS[model.config.pixel_stats])
        pixels = ((images + 1) / 2 - mean) / deviation
        pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        tokens_of = timm_tokens if case.peer else transformers_tokens
        expected = tokens_of(torch, case, path, pixels)
        assert actual.shape == expected.shape
        difference = float(np.abs(actual - expected).max() / np.abs(expected).max())
        print(f"\nresolution | {title} | {grid[0]}x{grid[1]} | {difference:.1e}")
        assert difference < TOLERANCE
