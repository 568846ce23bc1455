"""Encoders equal those of timm: tokens, pooled features, gradients, and files both ways (PyTorch).

Deselected by default: `pytest -m parity` after `pip install -e '.[dev,parity]'`. With `-s`, one
line of a table for each encoder.
"""

import dataclasses
import json
import os
from functools import partial

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import vit_jax
from tests.support.golden_outputs import params_of, photo_pixels
from tests.support.timm_cases import GOLDEN, MODELS, SIDE
from tests.support.tiny import assert_same_model, tiny
from vit_jax.models import trees
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.weights import write_timm, writer
from vit_jax.weights.infer_model import infer_model_options
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.reader import open_weights_file

pytestmark = pytest.mark.parity
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # Of the largest value.
GRID = (8, 10)  # Patches along height and width; not square, so that axes are not exchanged.


@dataclasses.dataclass(frozen=True)
class Case:
    """An encoder here and in timm.

    Attributes:
      name: name of the model here.
      peer: name of the model in timm.
      options: options of `create_model` that differ from those of the name.
      peer_options: arguments of timm's `create_model` that differ from those of the name.
    """

    name: str
    peer: str
    options: dict = dataclasses.field(default_factory=dict)
    peer_options: dict = dataclasses.field(default_factory=dict)


def two_layers(name: str, peer: str, **options) -> Case:
    """The full width of a large model, in two layers; timm has no number of heads in its file."""
    return Case(name, peer, {"num_layers": 2, **options}, {"depth": 2})


MEAN = {"pool": "gap", "class_token": True}  # timm's default for its class Eva.
DINO_3 = MEAN | {"qkv_bias": "none"}
EVA = MEAN | {"fc_norm": True, "gelu": "erf", "qkv_bias": "qv", "pixel_stats": "clip"}
ROPE = {"pos_embed": "rope", "rope": "eva02", "gelu": "erf", "qkv_bias": "qv", "registers": 1}
HEADS = {"num_classes": 10}

CASES = {
    "ViT B/16": Case("vit_b16", "vit_base_patch16_224", {"gelu": "erf"}),
    "DINOv2 S/14": Case("dinov2_s14", "vit_small_patch14_dinov2"),
    "DINOv2 g/14, 2 layers": two_layers("dinov2_g14", "vit_giant_patch14_dinov2"),
    "DINOv2 B/14 with registers": Case("dinov2_reg_b14", "vit_base_patch14_reg4_dinov2"),
    "DINOv2 g/14 with registers, 2 layers": two_layers(
        "dinov2_reg_g14", "vit_giant_patch14_reg4_dinov2"
    ),
    "DINOv3 S/16": Case("dinov3_s16", "vit_small_patch16_dinov3", DINO_3),
    "DINOv3 S/16 with biases": Case("dinov3_s16", "vit_small_patch16_dinov3_qkvb", MEAN),
    "DINOv3 S+/16": Case("dinov3_splus16", "vit_small_plus_patch16_dinov3", DINO_3),
    "DINOv3 B/16": Case("dinov3_b16", "vit_base_patch16_dinov3", DINO_3),
    "DINOv3 H+/16, 2 layers": two_layers(
        "dinov3_hplus16", "vit_huge_plus_patch16_dinov3", **DINO_3
    ),
    "DINOv3 7B/16, 2 layers": two_layers("dinov3_7b16", "vit_7b_patch16_dinov3", **DINO_3),
    "SigLIP B/16": Case("siglip_b16", "vit_base_patch16_siglip_224", {"gelu": "erf"}),
    "SigLIP 2 B/32": Case("siglip2_b32", "vit_base_patch32_siglip_256"),
    "SigLIP So400m/14, 2 layers": two_layers(
        "siglip_so400m14", "vit_so400m_patch14_siglip_384", gelu="erf"
    ),
    "SigLIP 2 g-opt/16, 2 layers": two_layers("siglip2_gopt16", "vit_giantopt_patch16_siglip_256"),
    "CLIP B/16": Case("clip_b16", "vit_base_patch16_clip_quickgelu_224"),
    "OpenCLIP B/16": Case("openclip_b16", "vit_base_patch16_clip_224"),
    "OpenCLIP G/14, 2 layers": two_layers("openclip_gg14", "vit_gigantic_patch14_clip_224"),
    "MAE B/16": Case("mae_b16", "vit_base_patch16_224.mae"),
    "MAE B/16 of its fine-tuning": Case(
        "mae_b16", "vit_base_patch16_224.mae", MEAN | {"fc_norm": True}, {"global_pool": "avg"}
    ),
    "MAE H/14, 2 layers": two_layers("mae_h14", "vit_huge_patch14_224.mae"),
    "DeiT S/16": Case("deit_s16", "deit_small_patch16_224"),
    "DeiT S/16 distilled": Case("deit_distilled_s16", "deit_small_distilled_patch16_224"),
    "DeiT B/16 distilled, with heads": Case(
        "deit_distilled_b16", "deit_base_distilled_patch16_224", HEADS, HEADS
    ),
    "DeiT III S/16": Case("deit3_s16", "deit3_small_patch16_224"),
    "DeiT III H/14, 2 layers": two_layers("deit3_h14", "deit3_huge_patch14_224"),
    "EVA-02 Ti/14": Case("eva02_ti14", "eva02_tiny_patch14_224"),
    "EVA-02 S/14": Case("eva02_s14", "eva02_small_patch14_224"),
    "EVA-02 B/14": Case("eva02_b14", "eva02_base_patch14_224"),
    "EVA-02 L/14, 2 layers": two_layers("eva02_l14", "eva02_large_patch14_224"),
    "EVA g/14, 2 layers": two_layers("vit_g14", "eva_giant_patch14_224", **EVA),
    "TIPS v2 B/14": Case("tips_b14", "vit_base_patch14_reg1_tipsv2"),
    "TIPS v2 g/14, 2 layers": two_layers("tips_g14", "vit_giant_patch14_reg1_tipsv2"),
    "I-JEPA H/14, 2 layers": two_layers("ijepa_h14", "vit_huge_patch14_gap_224"),
    "I-JEPA g/16, 2 layers": two_layers("ijepa_g16", "vit_giant_patch16_gap_224"),
    "timm's ViT M/16 with rotary positions": Case(
        "vit_m16",
        "vit_medium_patch16_rope_reg1_gap_256",
        {"pool": "gap", "fc_norm": True, "layer_scale": 1e-5} | ROPE,
    ),
}


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


def build(torch, title: str):
    """The model here, and timm's with random weights of which each shows in the outputs."""
    import timm

    case = CASES[title]
    options = {"num_classes": 0} | case.options
    patch = vit_jax.create_model(case.name).patch_size
    size = tuple(side * patch for side in GRID)
    model = vit_jax.create_model(case.name, image_size=size, **options)
    torch.manual_seed(0)
    peer_options = {"num_classes": 0} | case.peer_options
    peer = timm.create_model(case.peer, img_size=size, **peer_options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            is_token = any(part in name for part in ("token", "pos_embed", "latent"))
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            scale = 0.5 if is_token else 0.5 / fan_in**0.5
            parameter += scale * torch.randn(parameter.shape, generator=generator)
            if "gamma" in name or "ls1" in name:  # LayerScale starts at 1e-5.
                parameter += 0.5
    return model, peer


def normalized(photos, size: tuple[int, int], pixel_stats: str) -> np.ndarray:
    """Two real photos B H W 3, normalised."""
    height, width = size
    images = [Image.fromarray(photo).resize((width, height)) for photo in photos]
    mean, deviation = np.array(PIXEL_STATS[pixel_stats])
    return ((np.stack(images) / 255 - mean) / deviation).astype(np.float32)


def peer_outputs(peer, x) -> dict:
    """Tokens, and pooled features or logits, of pixels B 3 H W."""
    tokens = peer.forward_features(x)
    return {"tokens": tokens, "pooled": peer.forward_head(tokens)}


def own_outputs(model, params, pixels) -> dict:
    """Tokens, and pooled features or logits, of normalised pixels B H W 3."""
    model = model.clone(config=dataclasses.replace(model.config, pixel_stats="half"))
    patches = model.apply({"params": params}, pixels, method="embed")
    tokens = model.apply({"params": params}, patches, method="encode")
    return {"tokens": tokens, "pooled": model.apply({"params": params}, pixels)}


def compare(torch, model, params, peer, pixels) -> dict[str, float]:
    """The largest difference of each output, and of the gradients, over the largest value."""
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = peer_outputs(peer, x)
    rng = np.random.default_rng(0)
    weights = {  # Of the outputs in the loss.
        name: rng.standard_normal(output.shape).astype(np.float32)
        for name, output in expected.items()
    }
    loss = sum(
        (output * torch.from_numpy(weights[name])).sum() for name, output in expected.items()
    )
    loss.backward()
    expected = {name: output.detach().numpy() for name, output in expected.items()}

    @jax.jit
    def outputs_and_gradient(params, pixels):
        def loss(pixels):
            found = own_outputs(model, params, pixels)
            return sum((found[name] * w).sum() for name, w in weights.items()), found

        gradient, found = jax.grad(loss, has_aux=True)(pixels)
        return found, gradient

    found, gradient = outputs_and_gradient(params, pixels)
    first = model.num_prefix_tokens
    differences = {
        "patches": difference(found["tokens"][:, first:], expected["tokens"][:, first:]),
        "pooled": difference(found["pooled"], expected["pooled"]),
        "gradient": difference(gradient, x.grad.numpy().transpose(0, 2, 3, 1)),
    }
    if first:
        prefix = (tokens[:, :first] for tokens in (found["tokens"], expected["tokens"]))
        differences["class"] = difference(*prefix)
    return differences


def difference(found, expected) -> float:
    assert found.shape == expected.shape
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def built_by(torch, model):
    """The model that the code in a model card builds in timm."""
    import timm

    names = {"timm": timm, "torch": torch, "partial": partial}
    return eval(write_timm.constructor(model), names).eval()


@pytest.mark.parametrize("title", CASES)
def test_encoder_equals_timm(torch, title, photos, tmp_path, record_property):
    from safetensors.torch import load_file
    from timm.models import save_for_hf

    model, peer = build(torch, title)
    source, written = tmp_path / "source", tmp_path / "written.safetensors"
    save_for_hf(peer, source, safe_serialization=True)
    given = WeightsMetadata(num_heads=model.size.num_heads)
    file = open_weights_file(source, given=given)
    found = vit_jax.create_model(**infer_model_options(file))
    # Trained LayerScale does not show its initial value.
    unseen = {"layer_scale": model.config.layer_scale}
    assert_same_model(found.clone(config=dataclasses.replace(found.config, **unseen)), model)
    params = vit_jax.load_params(f"{source}:num_heads={model.size.num_heads}", found)
    pixels = normalized(photos, model.image_size, found.config.pixel_stats)
    errors = compare(torch, found, params, peer, pixels)
    gradient = errors.pop("gradient")

    arrays = trees.flatten(params)
    plan = writer.plan_export("safetensors", found, {n: a.shape for n, a in arrays.items()})
    writer.write(plan, written, found, arrays, WeightsMetadata(), "")
    before = safetensors.numpy.load_file(source / "model.safetensors")
    after = safetensors.numpy.load_file(written)
    assert set(after) == set(before)
    for name, array in before.items():
        assert after[name].tobytes() == array.tobytes(), name
    type(peer).load_state_dict(peer, load_file(written), strict=True)
    fresh = built_by(torch, found)
    fresh.load_state_dict(load_file(written), strict=True)
    with torch.no_grad():
        x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        for name, output in peer_outputs(peer, x).items():
            assert torch.equal(output, peer_outputs(fresh, x)[name]), name

    worst = max(errors.values())
    record_property("parity", (title, CASES[title].peer, len(before), worst, gradient))
    print(
        f"\nparity | {title} | {CASES[title].peer} | {len(before)} | {worst:.1e} | {gradient:.1e}"
    )
    assert worst <= TOLERANCE
    assert gradient <= GRADIENT_TOLERANCE


def test_golden_outputs_equal_those_of_timm(torch, photos, tmp_path):
    from safetensors.torch import load_file

    computed = {}
    for title, (options, class_name) in MODELS.items():
        model = tiny(image_size=SIDE, **options)
        path, arrays = tmp_path / f"{len(computed)}.safetensors", params_of(model)
        plan = writer.plan_export("safetensors", model, {n: a.shape for n, a in arrays.items()})
        writer.write(plan, path, model, arrays, WeightsMetadata(), "")
        peer = built_by(torch, model)
        assert type(peer).__name__ == class_name
        peer.load_state_dict(load_file(path), strict=True)
        pixels = torch.from_numpy(photo_pixels(photos, SIDE).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            computed[title] = np.round(peer(pixels).double().numpy(), 6).tolist()
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(computed) + "\n")
    kept = json.loads(GOLDEN.read_text())
    assert set(kept) == set(computed)
    for title, outputs in computed.items():
        np.testing.assert_allclose(kept[title], outputs, rtol=1e-5, atol=1e-5, err_msg=title)
