"""Files of original releases are read back bit for bit, with the options of their family."""

import numpy as np
import pytest

from tests.support.original_files import (
    BLOCK,
    GATED,
    POSITIONS,
    SQUARE,
    TEXT,
    dense,
    flat_params,
    norm,
    open_clip,
    qkv,
    save,
    text_tower,
    timm_like,
)
from tests.support.tiny import tiny
from vit_jax import create_model
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.weights import load
from vit_jax.weights.archive import write_npz
from vit_jax.weights.reader import open_weights_file


def assert_reads(where, p, model):
    """The file has the parameters bit for bit, and gives the model."""
    loaded = load.load(where)
    actual = trees.flatten(loaded.params())
    assert set(actual) == set(p)
    for name, array in p.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
    options = ("gelu", "norm_eps", "pixel_stats", "pos_embed", "rope", "mlp", "mlp_norm")
    options += ("qkv_bias", "registers", "pool", "fc_norm", "pre_norm", "projection")
    for name in options:
        assert getattr(loaded.model.config, name) == getattr(model.config, name), name
    return loaded


def pack(p, i) -> dict:
    """Gate and value of layer i in one tensor."""
    block = f"{BLOCK.format(i)}/MlpBlock_0"
    parts = [dense(p, f"{block}/{name}", "x") for name in ("Dense_gate", "Dense_0")]
    return {end: np.concatenate([part[f"x.{end}"] for part in parts]) for end in ("weight", "bias")}


def dino_2(registers=0, is_gated=False, **changes):
    options = {"gelu": "erf", "layer_scale": 1.0, "pixel_stats": "imagenet"}
    options |= {"registers": registers, **SQUARE, **(GATED if is_gated else {}), **changes}
    model = tiny(**options)
    p = flat_params(model)
    mlp = {"Dense_1": "mlp.w3"} if is_gated else {"Dense_0": "mlp.fc1", "Dense_1": "mlp.fc2"}
    stored = timm_like(p, mlp) | norm(p, "Transformer/encoder_norm", "norm")
    stored |= {"pos_embed": p[POSITIONS], "mask_token": np.ones((1, 32), np.float32)}
    for i in (0, 1):
        for leaf, end in (("kernel", "weight"), ("bias", "bias")):
            stored[f"blocks.{i}.attn.qkv.{end}"] = np.concatenate(qkv(p, BLOCK.format(i), leaf))
        if is_gated:
            stored |= {f"blocks.{i}.mlp.w12.{end}": a for end, a in pack(p, i).items()}
    if registers:
        stored["register_tokens"] = p["registers"]
    return model, p, stored


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("is_gated", [False, True], ids=["mlp", "gated"])
def test_dinov2_is_read(tmp_path, registers, is_gated):
    model, p, stored = dino_2(registers, is_gated)
    path = save(tmp_path / "dinov2_vits14.safetensors", stored)
    assert_reads(f"{path}:num_heads=2", p, model)


def test_tips_in_pytorch_is_read(tmp_path):
    model, p, stored = dino_2(registers=1, pixel_stats="unit")
    loaded = assert_reads(f"{save(tmp_path / 'tips.npz', stored)}:num_heads=2", p, model)
    assert loaded.weights.metadata.family == "tips"
    assert (loaded.recipe.crop, loaded.recipe.resample) == ("resize", "antialias")


def test_tips_in_flax_is_read(tmp_path):
    options = {"gelu": "tanh", "pixel_stats": "unit", "registers": 1}
    model = tiny(**options, **SQUARE, **GATED)
    p = flat_params(model)
    p[POSITIONS][:, 0] = 0  # Class tokens have none.
    tokens = "encoder/ToTokenSequence_0"
    stored = {
        f"{tokens}/cls": np.concatenate([p["cls"], p["registers"]], axis=1),
        f"{tokens}/posembed_input": p[POSITIONS][:, 1:].reshape(1, 3, 3, -1),
        f"{tokens}/embedding/kernel": p["embedding/kernel"],
        f"{tokens}/embedding/bias": p["embedding/bias"],
    }
    for name, array in p.items():
        if "encoderblock" in name:
            name = name.replace("Transformer/", "encoder/transformer/")
            for old, new in (("gate", 0), ("1", 2), ("0", 1)):
                name = name.replace(f"MlpBlock_0/Dense_{old}/", f"FFNSwiGluFused_0/Dense_{new}/")
            stored[name] = array
    for leaf in ("scale", "bias"):
        stored[f"encoder/encoder_norm/{leaf}"] = p[f"Transformer/encoder_norm/{leaf}"]
    loaded = assert_reads(save(tmp_path / "tips.npz", stored), p, model)
    assert loaded.weights.metadata.family == "tips"


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_gated", [False, True], ids=["mlp", "gated"])
def test_dinov3_is_read(tmp_path, has_bias, is_gated):
    options = {"gelu": "erf", "layer_scale": 1.0, "pixel_stats": "imagenet", "norm_eps": 1e-5}
    options |= {"pos_embed": "rope", "registers": 4, "qkv_bias": "qv" if has_bias else "none"}
    model = tiny(**options, **SQUARE, **(GATED if is_gated else {}))
    p = flat_params(model)
    mlp = {"Dense_0": "mlp.fc1", "Dense_1": "mlp.fc2"}
    if is_gated:
        mlp = {"Dense_gate": "mlp.w1", "Dense_0": "mlp.w2", "Dense_1": "mlp.w3"}
    stored = timm_like(p, mlp) | norm(p, "Transformer/encoder_norm", "norm")
    stored |= norm(p, "Transformer/encoder_norm", "local_cls_norm")  # Of the training.
    stored |= {"storage_tokens": p["registers"], "mask_token": np.ones((1, 32), np.float32)}
    stored["rope_embed.periods"] = np.ones(4, np.float32)
    for i in (0, 1):
        prefix = f"blocks.{i}.attn.qkv"
        stored[f"{prefix}.weight"] = np.concatenate(qkv(p, BLOCK.format(i), "kernel"))
        if has_bias:
            q, v = qkv(p, BLOCK.format(i), "bias")
            stored[f"{prefix}.bias"] = np.concatenate([q, np.ones_like(q), v])
            stored[f"{prefix}.bias_mask"] = np.concatenate([q * 0 + 1, q * 0, v * 0 + 1])
    path = save(tmp_path / "dinov3_vits16.safetensors", stored)
    assert_reads(f"{path}:num_heads=2,image_size=12", p, model)


@pytest.mark.parametrize("is_separate", [False, True], ids=["fused", "separate"])
@pytest.mark.parametrize("last_norm", ["norm", "fc_norm"])
def test_eva02_is_read(tmp_path, is_separate, last_norm):
    options = {"pixel_stats": "clip", "pos_embed": "learned_rope", "rope": "eva02", "gelu": "erf"}
    options |= {"qkv_bias": "qv", "pool": "gap", "class_token": True, "fc_norm": True}
    model = tiny(**options, **SQUARE, **GATED, mlp_norm=is_separate)
    p = flat_params(model)
    mlp = {"Dense_1": "mlp.w3"}
    if is_separate:
        mlp |= {"Dense_gate": "mlp.w1", "Dense_0": "mlp.w2"}
    stored = timm_like(p, mlp) | norm(p, "fc_norm", last_norm) | {"pos_embed": p[POSITIONS]}
    stored |= {"mask_token": np.ones((1, 1, 32)), "lm_head.weight": np.ones((768, 32))}
    stored |= {"rope.freqs_cos": np.ones((9, 16)), "blocks.0.attn.rope.freqs_sin": np.ones((9, 16))}
    for i in (0, 1):
        prefix, weights = f"blocks.{i}.attn", qkv(p, BLOCK.format(i), "kernel")
        if is_separate:
            stored |= {f"{prefix}.{name}_proj.weight": w for name, w in zip("qkv", weights)}
            stored |= norm(p, f"{BLOCK.format(i)}/MlpBlock_0/LayerNorm_0", f"blocks.{i}.mlp.ffn_ln")
        else:
            stored[f"{prefix}.qkv.weight"] = np.concatenate(weights)
            stored |= {f"blocks.{i}.mlp.w12.{end}": a for end, a in pack(p, i).items()}
        q, v = qkv(p, BLOCK.format(i), "bias")
        stored |= {f"{prefix}.q_bias": q, f"{prefix}.v_bias": v}
    path = save(tmp_path / "eva02.safetensors", stored)
    assert_reads(f"{path}:num_heads=2", p, model)


@pytest.mark.parametrize("root", ["", "module."])
@pytest.mark.parametrize("projection", [24, None])
def test_open_clip_is_read_and_its_text_tower_listed(tmp_path, root, projection):
    model, p, stored = open_clip(projection, f"{root}visual.")
    path = save(tmp_path / "clip.safetensors", stored | text_tower(root))
    where = f"{path}:num_heads=2,gelu=quick,pixel_stats=clip"
    assert_reads(where, p, model)
    file = open_weights_file(path, given=load.resolve(where).given)
    assert set(file.other_tower) == {f"{root}{name}" for name in TEXT}


def test_image_tower_of_clip_alone_is_read(tmp_path):
    model, p, stored = open_clip(root="")
    path = save(tmp_path / "visual.safetensors", stored)
    assert_reads(f"{path}:num_heads=2,gelu=quick,pixel_stats=clip", p, model)


def test_clip_asks_for_its_gelu(tmp_path):
    path = save(tmp_path / "clip.safetensors", open_clip()[2])
    with pytest.raises(CheckpointError, match=r"cannot infer .*gelu \(quick in OpenAI") as caught:
        load.load(f"{path}:num_heads=2,pixel_stats=clip")
    assert str(caught.value).endswith(f"as in {path}:gelu=quick.")


def test_unknown_tensor_beside_the_image_tower_is_rejected(tmp_path):
    stored = open_clip()[2] | {"audio.conv1.weight": np.ones(3, np.float32)}
    path = save(tmp_path / "clip.safetensors", stored)
    with pytest.raises(CheckpointError, match=r"audio\.conv1\.weight is not a tensor of"):
        load.load(f"{path}:num_heads=2,gelu=quick,pixel_stats=clip")


def test_mae_is_read_without_its_decoder(tmp_path):
    model = tiny(gelu="erf", pixel_stats="imagenet", **SQUARE)
    p = flat_params(model)
    stored = timm_like(p, {"Dense_0": "mlp.fc1", "Dense_1": "mlp.fc2"})
    stored |= norm(p, "Transformer/encoder_norm", "norm") | {"pos_embed": p[POSITIONS]}
    for i in (0, 1):
        for leaf, end in (("kernel", "weight"), ("bias", "bias")):
            stored[f"blocks.{i}.attn.qkv.{end}"] = np.concatenate(qkv(p, BLOCK.format(i), leaf))
    decoder = {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 10, 16)}
    decoder |= {"decoder_blocks.0.attn.qkv.weight": (48, 16), "decoder_pred.bias": (48,)}
    stored |= {name: np.ones(shape, np.float32) for name, shape in decoder.items()}
    path = save(tmp_path / "mae.safetensors", stored)
    loaded = assert_reads(f"{path}:num_heads=2", p, model)
    assert loaded.weights.metadata.family == "mae"
    assert set(loaded.weights_file.ignored) == set(decoder)


def test_model_of_a_published_size_has_the_name_of_its_family(tmp_path):
    model = create_model("dinov2_reg_s14", num_classes=0, image_size=28)
    p = flat_params(model)
    ours = {"family": "dinov2_reg", "image_size": [28, 28], "num_heads": 6, "gelu": "erf"}
    write_npz(tmp_path / "x.npz", p.items(), ours | {"pixel_stats": "imagenet", "norm_eps": 1e-6})
    config = load.load(tmp_path / "x.npz").model.config
    assert config == model.config
    other = ours | {"pixel_stats": "half", "norm_eps": 1e-6}
    write_npz(tmp_path / "y.npz", p.items(), other)
    config = load.load(tmp_path / "y.npz").model.config
    assert (config.name, config.pixel_stats) == ("vit_s14", "half")


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("class_embedding", (1, 32), "is (1, 32), which has the wrong number of axes"),
        ("positional_embedding", (10,), "is (10,), which has the wrong number of axes"),
        ("transformer.resblocks.0.attn.in_proj_bias", (97,), "does not result in an equal div"),
        ("proj", (24,), "projection/kernel is (24,) in the weights and (32, 24) in the model"),
        ("proj", (32, 0), "expected non-empty floats"),
    ],
)
def test_damaged_tensor_of_clip_is_rejected_in_one_line(tmp_path, name, shape, text):
    stored = open_clip()[2] | {f"visual.{name}": np.ones(shape, np.float32)}
    path = save(tmp_path / "clip.safetensors", stored)
    with pytest.raises(CheckpointError) as caught:
        load.load(f"{path}:num_heads=2,gelu=quick,pixel_stats=clip")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_registers_of_no_published_model_leave_the_family_open(tmp_path):
    path = save(tmp_path / "x.safetensors", dino_2(registers=2)[2])
    with pytest.raises(CheckpointError, match=r"cannot infer pixel_stats.* or the family"):
        load.load(f"{path}:num_heads=2")
    loaded = load.load(f"{path}:num_heads=2,family=dinov2_reg")
    assert loaded.model.config.pixel_stats == "imagenet"
