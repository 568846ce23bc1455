"""Logits equal those of timm and Hugging Face, with weights in both directions (PyTorch).

Deselected by default: `pytest -m parity` after
`pip install -e '.[dev,parity]'` and `pip install --no-deps timm torchvision`.
"""

import json
import os

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.support.golden_outputs import CASES, GOLDEN, params_of, photo_pixels
from tests.support.tiny import assert_same_model
from vit_jax.models import trees
from vit_jax.weights import writer
from vit_jax.weights.infer_model import infer_model_options
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.reader import open_weights_file

pytestmark = pytest.mark.parity
TOLERANCE = 2e-4  # Of the largest logit.
CLASSES = 10

# Title -> (name here, name in timm, options of timm, options of create_model).
MODELS = {
    "Ti/16": ("vit_ti16", "vit_tiny_patch16_224", {}, {}),
    "S/16": ("vit_s16", "vit_small_patch16_224", {}, {}),
    "B/16": ("vit_b16", "vit_base_patch16_224", {}, {}),
    "B/32": ("vit_b32", "vit_base_patch32_224", {}, {}),
    "L/16": ("vit_l16", "vit_large_patch16_224", {}, {}),
    "R+Ti/16": ("r_ti16", "vit_tiny_r_s16_p8_224", {}, {}),
    "R26+S/32": ("r26_s32", "vit_small_r26_s32_224", {}, {}),
    "R50+B/16": ("r50_b16", "vit_base_r50_s16_224", {}, {}),
    "BiT-R50x1": ("bit_r50x1", "resnetv2_50x1_bit", {}, {}),
}


@pytest.fixture(scope="module")
def torch():
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    yield torch
    torch.set_grad_enabled(True)  # For the other files of this run.


@pytest.fixture(scope="module")
def pixels(photos) -> np.ndarray:
    """Two real photos as the models' input, 2 224 224 3 in [-1, 1]."""
    resized = [Image.fromarray(photo).resize((224, 224)) for photo in photos]
    return np.stack([np.asarray(image, np.float32) / 127.5 - 1 for image in resized])


def randomize(torch, model) -> None:
    """Sets random weights with which every tensor affects the logits."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = parameter.ndim == 1 and name.endswith(("weight", "gamma", "lambda1"))
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        noise = torch.randn(parameter.shape, generator=generator) * (0.5 / fan_in**0.5)
        if "pos_embed" in name or "position" in name or "token" in name:
            noise = torch.randn(parameter.shape, generator=generator) * 0.5
        if parameter.ndim == 4 and ("conv" in name or "convolution" in name):
            # Standardization removes the scale except for epsilon, which differs: the official code
            # adds 1e-5 to the standard deviation, timm 1e-8 to the variance.
            noise = noise * 1000
        parameter.copy_(noise + (1.0 if scale else 0.0))


def match_group_norms(model, eps: float) -> None:
    """Sets epsilon of GroupNorm: 1e-5 in timm's hybrids, 1e-6 in the official code."""
    for module in model.modules():
        if type(module).__name__.startswith("GroupNorm"):
            module.eps = eps


def run(torch, model, pixels) -> np.ndarray:
    return model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()


def outputs_of(model, params, pixels) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)({"params": params}, pixels))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, in units of the largest logit."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def report(record_property, title: str, peer: str, read: float, written: float) -> None:
    record_property("parity", (title, peer, read, written))
    print(f"\nparity | {title} | {peer} | {read:.1e} | {written:.1e}")


@pytest.mark.parametrize("title", MODELS)
def test_timm_logits_equal_both_ways(torch, title, pixels, tmp_path, record_property):
    import safetensors.torch
    import timm

    name, timm_name, timm_options, options = MODELS[title]
    peer = timm.create_model(timm_name, num_classes=CLASSES, **timm_options).eval()
    if name.startswith("r"):
        match_group_norms(peer, 1e-6)
    randomize(torch, peer)
    expected = run(torch, peer, pixels)
    path = tmp_path / "source.safetensors"
    safetensors.torch.save_file(peer.state_dict(), path)

    gelu = {} if name.startswith("bit") else {"gelu": "erf"}
    model = vit_jax.create_model(name, num_classes=CLASSES, **gelu, **options)
    params = vit_jax.load_params(path, model)
    read = difference(outputs_of(model, params, pixels), expected)
    heads = None if name.startswith("bit") else model.size.num_heads
    file = open_weights_file(path, given=WeightsMetadata(pixel_stats="half", num_heads=heads))
    assert vit_jax.create_model(**infer_model_options(file)).grid == model.grid

    flat = trees.flatten(params)
    plan = writer.plan_export("safetensors", model, {k: v.shape for k, v in flat.items()})
    writer.write(plan, tmp_path / "written.safetensors", model, flat, WeightsMetadata(), "")
    fresh = timm.create_model(
        timm_name, num_classes=CLASSES, checkpoint_path=str(tmp_path / "written.safetensors"),
        **timm_options,
    ).eval()  # fmt: skip
    for key, value in peer.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key]), key
    if name.startswith("r"):
        match_group_norms(fresh, 1e-6)
    written = difference(run(torch, fresh, pixels), expected)
    report(record_property, title, "timm", read, written)
    assert max(read, written) <= TOLERANCE


@pytest.mark.parametrize("title", MODELS)
def test_timm_reads_written_npz(torch, title, pixels, tmp_path):
    import timm

    name, timm_name, timm_options, options = MODELS[title]
    gelu = {} if name.startswith("bit") else {"gelu": "erf"}
    model = vit_jax.create_model(name, num_classes=CLASSES, **gelu, **options)
    peer = timm.create_model(timm_name, num_classes=CLASSES, **timm_options).eval()
    randomize(torch, peer)
    source = tmp_path / "source.safetensors"
    import safetensors.torch

    safetensors.torch.save_file(peer.state_dict(), source)
    flat = trees.flatten(vit_jax.load_params(source, model))
    plan = writer.plan_export("npz", model, {k: v.shape for k, v in flat.items()})
    writer.write(plan, tmp_path / "written.npz", model, flat, WeightsMetadata(), "")
    fresh = timm.create_model(timm_name, num_classes=CLASSES, **timm_options).eval()
    fresh.load_pretrained(str(tmp_path / "written.npz")) if hasattr(
        fresh, "load_pretrained"
    ) else timm.models.load_checkpoint(fresh, str(tmp_path / "written.npz"))
    for key, value in peer.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key]), key


HF_SIZES = {
    "Ti/16": ("vit_ti16", {"hidden_size": 192, "num_attention_heads": 3}),
    "S/16": ("vit_s16", {"hidden_size": 384, "num_attention_heads": 6}),
    "B/16": ("vit_b16", {"hidden_size": 768, "num_attention_heads": 12}),
    "B/32": ("vit_b32", {"hidden_size": 768, "num_attention_heads": 12, "patch_size": 32}),
    "L/16": (
        "vit_l16",
        {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24},
    ),
}


def huggingface(title: str):
    """A model of Hugging Face and the same model of this package."""
    import transformers as hf

    if title == "BiT-R50x1":
        config = hf.BitConfig(layer_type="preactivation", num_labels=CLASSES)
        return hf.BitForImageClassification(config), vit_jax.create_model(
            "bit_r50x1", num_classes=CLASSES
        )
    if title.startswith("DINOv2"):
        sizes = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 224}
        sizes |= {"patch_size": 14, "num_labels": CLASSES}
        options = {"layer_scale": 1.0, "pool": "token_gap", "gelu": "erf"}
        if "registers" in title:
            peer = hf.Dinov2WithRegistersForImageClassification(
                hf.Dinov2WithRegistersConfig(**sizes)
            )
            options |= {"registers": 4}
        else:
            peer = hf.Dinov2ForImageClassification(hf.Dinov2Config(**sizes))
        return peer, vit_jax.create_model("vit_s14", num_classes=CLASSES, **options)
    name, sizes = HF_SIZES[title]
    sizes = {"intermediate_size": 4 * sizes["hidden_size"], "num_labels": CLASSES} | sizes
    peer = hf.ViTForImageClassification(hf.ViTConfig(**sizes))
    options = {"gelu": "erf", "norm_eps": 1e-12}
    return peer, vit_jax.create_model(name, num_classes=CLASSES, **options)


@pytest.mark.parametrize("title", [*HF_SIZES, "BiT-R50x1", "DINOv2 S/14", "DINOv2 S/14, registers"])
def test_huggingface_logits_equal_both_ways(torch, title, pixels, tmp_path, record_property):
    peer, model = huggingface(title)
    peer.eval()
    randomize(torch, peer)
    expected = run(torch, lambda x: peer(x).logits, pixels)
    peer.save_pretrained(tmp_path / "source")
    # The pixels are normalised already, whatever the statistics of the family.
    params = vit_jax.load_params(f"{tmp_path / 'source'}:pixel_stats=half", model)
    read = difference(outputs_of(model, params, pixels), expected)
    given = WeightsMetadata(pixel_stats="half")
    options = infer_model_options(open_weights_file(tmp_path / "source", given=given))
    assert_same_model(vit_jax.create_model(**options), model)

    flat = trees.flatten(params)
    plan = writer.plan_export("huggingface", model, {k: v.shape for k, v in flat.items()})
    titles = tuple(f"kind {k}" for k in range(CLASSES))
    metadata = WeightsMetadata(classes=titles, crop="resize", resample="antialias")
    (tmp_path / "written").mkdir()
    writer.write(plan, tmp_path / "written", model, flat, metadata, "# card")
    fresh, loading = type(peer).from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not any(loading.values()), loading
    written = difference(run(torch, lambda x: fresh.eval()(x).logits, pixels), expected)
    assert fresh.config.id2label[3] == "kind 3"
    assert open_weights_file(tmp_path / "written").metadata.classes == titles
    assert json.loads((tmp_path / "written" / "preprocessor_config.json").read_text())["do_resize"]
    report(record_property, title, "Hugging Face", read, written)
    assert max(read, written) <= TOLERANCE


def test_huggingface_version_5_names_are_read(torch, pixels, tmp_path):
    import safetensors.torch

    peer, model = huggingface("Ti/16")
    randomize(torch, peer)
    safetensors.torch.save_file(peer.state_dict(), tmp_path / "new.safetensors")
    peer.save_pretrained(tmp_path / "old")
    new = trees.flatten(vit_jax.load_params(tmp_path / "new.safetensors", model))
    old = trees.flatten(vit_jax.load_params(tmp_path / "old", model))
    assert set(new) == set(old)
    for name, array in old.items():
        np.testing.assert_array_equal(new[name], array, err_msg=name)


def golden_peer(title: str):
    """The model of a golden case and its peer."""
    import timm
    import transformers as hf

    kind, peer_name, (name, options) = CASES[title]
    model = vit_jax.create_model(name, **options)
    if kind == "timm" and name.startswith("bit"):
        return model, timm.create_model(peer_name, num_classes=5)
    if kind == "timm":
        extras = {"act_layer": "gelu_tanh"} if options["gelu"] == "tanh" else {}
        if model.config.pool != "token":
            pool = {"gap": "avg"}.get(model.config.pool, "map")
            extras |= {"class_token": False, "global_pool": pool}
            extras |= {"fc_norm": False}
        if model.config.registers:
            extras |= {"reg_tokens": 4, "no_embed_class": True, "init_values": 1.0}
        return model, timm.create_model(
            peer_name, num_classes=5, depth=2, img_size=options["image_size"], **extras
        )
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 2}
    sizes |= {"image_size": options["image_size"], "patch_size": 16, "num_labels": 5}
    if peer_name == "Dinov2":
        return model, hf.Dinov2ForImageClassification(hf.Dinov2Config(**sizes))
    return model, hf.ViTForImageClassification(hf.ViTConfig(intermediate_size=768, **sizes))


def test_golden_outputs_equal_the_peers(torch, photos, tmp_path):
    import safetensors.torch

    computed = {}
    for title, (kind, _, (name, _)) in CASES.items():
        model, peer = golden_peer(title)
        flat = params_of(model)
        shapes = {key: array.shape for key, array in flat.items()}
        plan = writer.plan_export("safetensors" if kind == "timm" else "huggingface", model, shapes)
        path = tmp_path / f"{len(computed)}.safetensors"
        if kind != "timm":
            path.mkdir()
        writer.write(plan, path, model, flat, WeightsMetadata(), "")
        weights = path if kind == "timm" else path / "model.safetensors"
        state = safetensors.torch.load_file(weights)
        if kind == "timm":
            peer.load_state_dict(state, strict=True)
        else:
            peer = type(peer).from_pretrained(path)
        if name.startswith("r"):
            match_group_norms(peer, 1e-6)
        peer.eval()
        call = peer if kind == "timm" else (lambda x, peer=peer: peer(x).logits)
        computed[title] = run(torch, call, photo_pixels(photos)).astype(float).tolist()
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(computed, indent=1) + "\n")
    kept = json.loads(GOLDEN.read_text())
    for title, logits in computed.items():
        np.testing.assert_allclose(kept[title], logits, rtol=1e-4, atol=1e-4, err_msg=title)
