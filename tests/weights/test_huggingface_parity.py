"""Encoders equal those of transformers: tokens, pooled features, gradients, files both ways.

Deselected by default: `pytest -m parity` after `pip install -e '.[dev,parity]'`. With `-s`, one
line of a table for each encoder.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable

import jax
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.support.golden_outputs import params_of, photo_pixels
from tests.support.huggingface_cases import GOLDEN, MODELS, SIDE
from tests.support.tiny import assert_same_model, tiny
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.weights import load, writer
from vit_jax.weights.infer_model import infer_model_options
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.reader import open_weights_file

pytestmark = pytest.mark.parity
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # Of the largest value.
TWO = {"num_layers": 2}


@dataclasses.dataclass(frozen=True)
class Case:
    """An encoder here and in transformers.

    Attributes:
      name: name of the model here.
      peer: class in transformers.
      config: arguments of its configuration class beside the sizes, which follow from ours.
      options: options of `create_model`.
      pixel_stats: statistics in the preprocessor_config.json.
    """

    name: str
    peer: str
    config: dict = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)
    pixel_stats: str = "imagenet"


SILU = {"use_gated_mlp": True, "hidden_act": "silu"}
NO_BIAS = {"query_bias": False, "value_bias": False}
REGISTERS = {"num_register_tokens": 4}
EPS = {"layer_norm_eps": 1e-6}
MAE = EPS | {"mask_ratio": 0.0}
HALF = {"pixel_stats": "half"}
OPENCLIP = {"hidden_act": "gelu"}

CASES = {
    "DINOv2 S/14": Case("dinov2_s14", "Dinov2Model"),
    "DINOv2 g/14, 2 layers": Case("dinov2_g14", "Dinov2Model", {"use_swiglu_ffn": True}, TWO),
    "DINOv2 S/14 with registers": Case("dinov2_reg_s14", "Dinov2WithRegistersModel"),
    "DINOv2 g/14 with registers, 2 layers": Case(
        "dinov2_reg_g14", "Dinov2WithRegistersModel", {"use_swiglu_ffn": True}, TWO
    ),
    "DINOv3 S/16": Case("dinov3_s16", "DINOv3ViTModel", REGISTERS),
    "DINOv3 S+/16": Case("dinov3_splus16", "DINOv3ViTModel", REGISTERS | SILU),
    "DINOv3 H+/16, 2 layers": Case("dinov3_hplus16", "DINOv3ViTModel", REGISTERS | SILU, TWO),
    "DINOv3 7B/16, 2 layers": Case(
        "dinov3_7b16", "DINOv3ViTModel", REGISTERS | SILU | NO_BIAS, TWO
    ),
    "SigLIP B/16": Case("siglip_b16", "SiglipVisionModel", **HALF),
    "SigLIP 2 So400m/14, 2 layers": Case(
        "siglip2_so400m14", "SiglipVisionModel", options=TWO, **HALF
    ),
    "SigLIP L/16 of two towers, 2 layers": Case("siglip_l16", "SiglipModel", options=TWO, **HALF),
    "CLIP B/16": Case("clip_b16", "CLIPVisionModel", pixel_stats="clip"),
    "CLIP L/14 with projection, 2 layers": Case(
        "clip_l14",
        "CLIPVisionModelWithProjection",
        {"projection_dim": 768},
        TWO | {"projection": 768},
        "clip",
    ),
    "CLIP B/32 of two towers, 2 layers": Case(
        "clip_b32", "CLIPModel", {"projection_dim": 512}, TWO | {"projection": 512}, "clip"
    ),
    "OpenCLIP H/14, 2 layers": Case(
        "openclip_h14", "CLIPVisionModel", OPENCLIP, TWO, pixel_stats="clip"
    ),
    "MSN S/16, 2 layers": Case("deit_s16", "ViTMSNModel", EPS, TWO),
    "MAE B/16": Case("mae_b16", "ViTMAEModel", MAE),
    "MAE H/14 with decoder, 2 layers": Case("mae_h14", "ViTMAEForPreTraining", MAE, TWO),
    "DeiT S/16 distilled": Case("deit_distilled_s16", "DeiTModel", EPS),
    "DeiT B/16 distilled with heads, 2 layers": Case(
        "deit_distilled_b16",
        "DeiTForImageClassificationWithTeacher",
        EPS | {"num_labels": 10},
        TWO | {"num_classes": 10},
    ),
    "I-JEPA H/14, 2 layers": Case("ijepa_h14", "IJepaModel", EPS, TWO),
    "I-JEPA g/16 with head, 2 layers": Case(
        "ijepa_g16",
        "IJepaForImageClassification",
        EPS | {"num_labels": 10},
        TWO | {"num_classes": 10},
    ),
    "SigLIP B/16 with head, 2 layers": Case(
        "siglip_b16",
        "SiglipForImageClassification",
        {"num_labels": 10},
        TWO | {"num_classes": 10, "pool": "gap", "gelu": "tanh"},
        "half",
    ),
}
READ_ONLY = ("SiglipForImageClassification",)  # It is not written.
TINY = {"num_layers": 2, "hidden_size": 32, "num_heads": 2}


def tiny_sizes(case: Case) -> dict:
    """Sizes of a small model with an MLP size that the configuration class can express."""
    is_dino_gated = case.config.get("use_swiglu_ffn")
    return TINY | {"mlp_size": 88 if is_dino_gated else 128}


@pytest.fixture(scope="module")
def torch():
    import torch

    torch.manual_seed(0)
    return torch


def build(title: str, **sizes):
    """The model here, and the random model of transformers with another value in every tensor.

    Args:
      title: key of `CASES`.
      sizes: options of the model that replace those of its name.
    """
    import torch
    import transformers as hf

    case = CASES[title]
    side = 8 * vit_jax.create_model(case.name).patch_size
    options = {"num_classes": 0, "image_size": side} | case.options | sizes
    model = vit_jax.create_model(case.name, **options)
    size = model.size
    config = {
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "intermediate_size": size.mlp_size,
        "image_size": side,
        "patch_size": model.patch_size,
        **case.config,
    }
    if "Dinov2" in case.peer:
        del config["intermediate_size"]
    peer_class = getattr(hf, case.peer)
    config_class = peer_class.config_class
    if case.peer in ("SiglipModel", "CLIPModel", "SiglipForImageClassification"):
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text |= {"intermediate_size": 16, "vocab_size": 50}
        outer = {key: config[key] for key in ("projection_dim", "num_labels") if key in config}
        config = outer | {"vision_config": config, "text_config": text}
    peer = peer_class(config_class(**config)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            scale = 0.1 if parameter.ndim < 2 else 0.3 / parameter[0].numel() ** 0.5
            if any(part in name for part in ("token", "position", "class_embedding")):
                scale = 0.5
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model, peer


def tower_of(peer):
    """The encoder inside of a model with a head, or with a tower of texts."""
    for name in ("vision_model", "deit", "ijepa", "vit", "dinov2"):
        peer = getattr(peer, name, peer)
    return peer


def peer_outputs(torch, peer, pixels, pixel_stats: str) -> Callable[[], dict]:
    """Tokens and pooled features or logits of the peer; gradients flow to the pixels."""
    mean, std = (torch.tensor(each)[:, None, None] for each in PIXEL_STATS[pixel_stats])
    x = ((pixels.permute(0, 3, 1, 2) + 1) / 2 - mean) / std
    encoder = tower_of(peer)
    kind = type(peer).__name__
    extra = {}
    if "MAE" in kind:  # Keeps all patches in their order.
        count = encoder.embeddings.patch_embeddings.num_patches
        extra["noise"] = torch.arange(count)[None].repeat(len(x), 1).float()
    found = encoder(x, **extra)
    tokens = found.last_hidden_state
    if "CLIP" in kind:
        tokens = encoder.post_layernorm(tokens)
    pooled = found.pooler_output if "pooler_output" in found else None
    if "Classification" in kind:
        pooled = peer(x).logits
    elif "WithProjection" in kind:
        pooled = peer(x).image_embeds
    elif kind == "CLIPModel":
        pooled = peer.visual_projection(pooled)
    elif "DeiT" in kind:
        pooled = (tokens[:, 0] + tokens[:, 1]) / 2
    elif "IJepa" in kind:
        pooled = tokens.mean(1)
    elif pooled is None:
        pooled = tokens[:, 0]
    return {"tokens": tokens, "pooled": pooled}


def own_outputs(model, params, pixels) -> dict:
    def call(method, *args):
        return model.apply({"params": params}, *args, method=method)

    tokens = call("encode", call("embed", pixels))
    return {"tokens": tokens, "pooled": model.apply({"params": params}, pixels)}


def compare(torch, model, params, peer, photos, pixel_stats) -> dict[str, float]:
    """The largest differences of tokens, pooled features and gradients, over the largest value."""
    pixels = photo_pixels(photos, model.image_size[0])
    leaf = torch.from_numpy(pixels).requires_grad_()
    expected = peer_outputs(torch, peer, leaf, pixel_stats)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(value.shape).astype(np.float32)
        for name, value in expected.items()
    }
    sum(
        (value * torch.from_numpy(weights[name])).sum() for name, value in expected.items()
    ).backward()

    @jax.jit
    def outputs_and_gradient(params, pixels):
        def loss(pixels):
            found = own_outputs(model, params, pixels)
            return sum((found[name] * w).sum() for name, w in weights.items()), found

        gradient, found = jax.grad(loss, has_aux=True)(pixels)
        return found, gradient

    found, gradient = outputs_and_gradient(params, pixels)
    first = model.num_prefix_tokens
    tokens, own = expected["tokens"].detach().numpy(), np.asarray(found["tokens"])
    differences = {"patches": difference(own[:, first:], tokens[:, first:])}
    if first:
        differences["class"] = difference(own[:, :1], tokens[:, :1])
    differences["pooled"] = difference(found["pooled"], expected["pooled"].detach().numpy())
    differences["gradient"] = difference(gradient, leaf.grad.numpy())
    return differences


def difference(a, b) -> float:
    assert a.shape == b.shape
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())


def save_preprocessor(folder, pixel_stats: str, side: int) -> None:
    mean, std = PIXEL_STATS[pixel_stats]
    values = {"image_processor_type": "ViTImageProcessor", "image_mean": mean, "image_std": std}
    values["size"] = {"height": side, "width": side}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def stored(folder, ignored=()) -> dict[str, np.ndarray]:
    """Tensors of the tower of images, without its prefix."""
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    return {
        name.removeprefix("vision_model.").removeprefix("vit."): array
        for name, array in arrays.items()
        if name not in ignored
    }


def write(folder, model, params) -> None:
    flat = trees.flatten(params)
    plan = writer.plan_export("huggingface", model, {k: v.shape for k, v in flat.items()})
    folder.mkdir()
    writer.write(plan, folder, model, flat, WeightsMetadata(crop="resize"), "# card")


def load_peer(folder):
    """The model of transformers that a folder names; its tensors are exactly those of the class."""
    import transformers as hf

    (class_name,) = json.loads((folder / "config.json").read_text())["architectures"]
    extra = {"add_pooling_layer": False} if class_name in ("ViTModel", "DeiTModel") else {}
    peer, loading = getattr(hf, class_name).from_pretrained(
        folder, output_loading_info=True, **extra
    )
    assert not any(loading.values()), loading
    return peer.eval()


@pytest.mark.parametrize("title", CASES)
def test_encoder_equals_transformers(torch, title, photos, tmp_path, record_property):
    case = CASES[title]
    model, peer = build(title)
    source, written = tmp_path / "source", tmp_path / "written"
    peer.save_pretrained(source)
    save_preprocessor(source, case.pixel_stats, model.image_size[0])
    file = open_weights_file(source)
    # Trained LayerScale does not show its initial value.
    scale = {"layer_scale": model.config.layer_scale}
    assert_same_model(vit_jax.create_model(**infer_model_options(file) | scale), model)
    params = vit_jax.load_params(source, model)
    read = compare(torch, model, params, peer, photos, case.pixel_stats)
    line = " | ".join(f"{name} {value:.1e}" for name, value in read.items())
    print(f"\nparity | {title} | {case.peer} | {line}")
    record_property("parity", (title, case.peer, read))
    assert max(v for name, v in read.items() if name != "gradient") <= TOLERANCE
    assert read["gradient"] <= GRADIENT_TOLERANCE

    if case.peer in READ_ONLY:
        return
    write(written, model, params)
    before = stored(source, (*file.ignored, *file.other_tower))
    after = stored(written, open_weights_file(written).ignored)
    assert set(after) == set(before)
    for name, array in before.items():
        assert after[name].tobytes() == array.tobytes(), name
    fresh = load_peer(written)
    again = compare(torch, model, params, fresh, photos, case.pixel_stats)
    assert max(v for name, v in again.items() if name != "gradient") <= TOLERANCE


@pytest.mark.parametrize("title", CASES)
def test_state_dict_and_half_precision_shards_are_read(torch, title, tmp_path):
    import safetensors.torch

    model, peer = build(title, **tiny_sizes(CASES[title]))
    peer.to(torch.bfloat16)
    for name, shards in (("one", {}), ("shards", {"max_shard_size": "20KB"})):
        peer.save_pretrained(tmp_path / name, **shards)
        save_preprocessor(tmp_path / name, CASES[title].pixel_stats, model.image_size[0])
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 1
    # Names of version 5 are those of the modules, which its files do not have.
    names = {name: array.contiguous() for name, array in peer.state_dict().items()}
    (tmp_path / "names").mkdir()
    safetensors.torch.save_file(names, tmp_path / "names" / "model.safetensors")
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / "names" / file).write_text((tmp_path / "one" / file).read_text())
    one, *others = (
        trees.flatten(vit_jax.load_params(tmp_path / name, model))
        for name in ("one", "shards", "names")
    )
    for params in others:
        assert set(params) == set(one)
        for name, array in one.items():
            assert params[name].tobytes() == array.tobytes(), name
    kernel = peer.state_dict()[
        next(name for name in names if "patch_embedding" in name and "weight" in name)
    ]
    expected = kernel.float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(one["embedding/kernel"], expected)


@pytest.mark.parametrize("files", ["pytorch_model.bin", "pytorch_model-{}-of-00002.bin"])
def test_command_in_the_error_of_pickles_saves_their_tensors(torch, files, tmp_path):
    peer = build("CLIP B/16", **tiny_sizes(CASES["CLIP B/16"]))[1]
    peer.config.save_pretrained(tmp_path)
    state = [*peer.state_dict().items()]
    parts = {files.format(f"{k:05}"): dict(state[k - 1 :: 2]) for k in (1, 2)}
    if len(parts) == 1:
        parts = {files: dict(state)}
    for name, part in parts.items():
        torch.save(part, tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        load.load(tmp_path)
    subprocess.run([sys.executable, "-c", command_of(caught.value)], check=True)
    assert len(load.load(f"{tmp_path}:pixel_stats=clip").weights_file.rows) == len(state)


def command_of(error) -> str:
    return str(error).partition('python -c "')[2].removesuffix('"')


def test_golden_outputs_equal_those_of_transformers(torch, photos, tmp_path):
    computed = {}
    for title, (options, class_name) in MODELS.items():
        model = tiny(image_size=SIDE, **options)
        folder = tmp_path / str(len(computed))
        write(folder, model, trees.unflatten(params_of(model)))
        peer = load_peer(folder)
        assert type(peer).__name__ == class_name
        pixels = torch.from_numpy(photo_pixels(photos, SIDE))
        with torch.no_grad():
            found = peer_outputs(torch, peer, pixels, model.config.pixel_stats)["pooled"]
        computed[title] = np.round(found.double().numpy(), 6).tolist()
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(computed) + "\n")
    kept = json.loads(GOLDEN.read_text())
    assert set(kept) == set(computed)
    for title, outputs in computed.items():
        np.testing.assert_allclose(kept[title], outputs, rtol=1e-5, atol=1e-5, err_msg=title)
