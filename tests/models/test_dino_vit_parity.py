"""Projection heads beside lightly, and local crops beside timm (PyTorch).

Deselected by default: `pytest -m parity`. `UPDATE_GOLDEN=1 pytest -m parity -k golden` writes the
values of the default tests again.
"""

import os

import numpy as np
import pytest

from tests.support import prototype_cases as cases
from tests.support.golden_outputs import params_of
from tests.support.resize_cases import TORCH, torch_resize
from vit_jax import create_model, save_params
from vit_jax.models import trees
from vit_jax.models.pixel_stats import PIXEL_STATS

pytestmark = pytest.mark.parity


def head_logits(torch, has_scale):
    from lightly.models.modules.heads import DINOProjectionHead

    sizes, params = cases.HEAD, cases.head_params(has_scale)
    head = DINOProjectionHead(
        sizes["D"],
        sizes["hidden"],
        sizes["bottleneck"],
        sizes["prototypes"],
        norm_last_layer=not has_scale,
    )
    layers = [each for each in head.layers if isinstance(each, torch.nn.Linear)]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            layer.weight[:] = torch.tensor(params[f"layer_{i}/kernel"].T)
            layer.bias[:] = torch.tensor(params[f"layer_{i}/bias"])
        head.last_layer.weight_v[:] = torch.tensor(params["last_layer/kernel"].T)
        if has_scale:
            head.last_layer.weight_g[:, 0] = torch.tensor(params["last_layer/scale"])
        assert len(layers) == 3
        return head(torch.tensor(cases.head_tokens())).numpy()


def local_tokens(torch, name, folder):
    """Class tokens of timm's model of the local size, with positions resized as in DINO."""
    import safetensors.torch
    import timm

    title, options = cases.LOCAL_MODELS[name]
    options = cases.LOCAL | options
    model = create_model(title, num_classes=0, image_size=cases.GLOBAL_SIZE, **options)
    path = folder / "model.safetensors"
    save_params(path, model, trees.unflatten(params_of(model)))
    tensors = safetensors.torch.load_file(path)
    first = tensors["pos_embed"].shape[1] - model.grid[0] * model.grid[1]
    grid = tensors["pos_embed"][0, first:].reshape(*model.grid, -1).numpy()
    sides = tuple(side // cases.LOCAL["patch"] for side in cases.LOCAL_SIZE)
    resized = torch_resize(torch, grid, sides, **TORCH["bicubic_offset"])
    resized = torch.tensor(resized.reshape(1, -1, grid.shape[-1]))
    tensors["pos_embed"] = torch.cat([tensors["pos_embed"][:, :first], resized], 1)
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=cases.LOCAL_SIZE,
        patch_size=cases.LOCAL["patch"],
        embed_dim=cases.LOCAL["hidden_size"],
        depth=cases.LOCAL["num_layers"],
        num_heads=cases.LOCAL["num_heads"],
        mlp_ratio=cases.LOCAL["mlp_size"] / cases.LOCAL["hidden_size"],
        num_classes=0,
        init_values=1.0 if model.config.layer_scale else None,
        reg_tokens=model.config.registers,
        no_embed_class=first == 0,
    ).eval()
    theirs.load_state_dict(tensors)
    mean, deviation = (np.float32(values) for values in PIXEL_STATS[model.config.pixel_stats])
    pixels = ((cases.local_images() + 1) / 2 - mean) / deviation
    with torch.no_grad():
        pixels = torch.tensor(pixels.transpose(0, 3, 1, 2).astype(np.float32))
        return theirs.forward_features(pixels)[:, 0].numpy()


def test_golden_file_has_the_results_of_lightly_and_timm(tmp_path):
    import torch

    results = {f"head-{has_scale}": head_logits(torch, has_scale) for has_scale in (False, True)}
    for name in cases.LOCAL_MODELS:
        results[f"local-{name}"] = local_tokens(torch, name, tmp_path)
    stored = dict(np.load(cases.GOLDEN)) if cases.GOLDEN.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        stored |= results
        np.savez_compressed(cases.GOLDEN, **stored)
    assert set(results) <= set(stored)
    for name, result in results.items():
        np.testing.assert_allclose(stored[name], result, atol=1e-5, err_msg=name)
