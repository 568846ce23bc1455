"""Models as timm builds them: the call, the tensors, and what timm does not have."""

import json
import re
import types
from functools import partial

import jax
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.support.golden_outputs import params_of, photo_pixels
from tests.support.timm_cases import GOLDEN, MODELS, SIDE
from tests.support.tiny import assert_same_model, tiny
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import trees
from vit_jax.models.registry import param_shapes
from vit_jax.weights import load, write_timm, writer
from vit_jax.weights.metadata import WeightsMetadata

WIDE = {"image_size": (8, 12), "gelu": "erf"}


def timm_call(model) -> dict:
    """Arguments of the call in timm, with the names of its functions."""
    models = types.SimpleNamespace(
        VisionTransformer=dict,
        VisionTransformerDistilled=partial(dict, {"class": "Distilled"}),
        Eva=partial(dict, {"class": "Eva"}),
        ResNetV2=lambda **options: options,
        vision_transformer_hybrid=types.SimpleNamespace(_resnetv2=lambda layers: layers),
    )
    layers = types.SimpleNamespace(HybridEmbed=dict, StdConv2d=dict, SwiGLUPacked="packed")
    torch = types.SimpleNamespace(nn=types.SimpleNamespace(LayerNorm=dict))
    timm = types.SimpleNamespace(models=models, layers=layers)
    return eval(write_timm.constructor(model), {"timm": timm, "torch": torch, "partial": partial})


def test_timm_constructor_has_all_sizes():
    assert timm_call(tiny(**WIDE, num_layers=3)) == {
        "img_size": (8, 12),
        "patch_size": 4,
        "num_classes": 5,
        "global_pool": "token",
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gelu": "tanh"}, {"act_layer": "gelu_tanh"}),
        ({"pool": "gap"}, {"global_pool": "avg", "class_token": False, "fc_norm": False}),
        ({"pool": "map"}, {"global_pool": "map", "class_token": False}),
        ({"registers": 4}, {"reg_tokens": 4, "no_embed_class": True}),
        ({"layer_scale": 1e-5}, {"init_values": 1e-5}),
        ({"pos_embed": "none"}, {"pos_embed": "none"}),
        ({"gelu": "quick"}, {"act_layer": "quick_gelu"}),
        ({"pool": "gap", "fc_norm": True}, {"global_pool": "avg", "class_token": False}),
        ({"fc_norm": True}, {"fc_norm": True}),
        ({"pre_norm": True, "patch_bias": False}, {"pre_norm": True}),
        ({"qkv_bias": "none"}, {"qkv_bias": False}),
        ({"distill_token": True}, {"class": "Distilled"}),
        ({"mlp_norm": True}, {"scale_mlp_norm": True}),
        ({"mlp": "glu"}, {"mlp_ratio": 4.0, "mlp_layer": "packed"}),
        ({"mlp": "swiglu"}, {"mlp_ratio": 4.0, "mlp_layer": "packed", "act_layer": "silu"}),
    ],
)
def test_timm_constructor_has_the_options_of_the_model(options, expected):
    base = timm_call(tiny(**WIDE))
    assert timm_call(tiny(**WIDE | options)) == base | expected


DINO_3_ROPE = {"rope_type": "dinov3", "rope_temperature": 100.0, "rope_rotate_half": True}
EVA_02_ROPE = {"ref_feat_shape": (16, 16)}  # 224 / 14: timm's entry points have it.
ROTARY = {"class": "Eva", "use_rot_pos_emb": True}
NO_POSITIONS = {"use_abs_pos_emb": False}
SWIGLU = {"mlp": "swiglu", "pos_embed": "rope"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"qkv_bias": "qv"}, {"class": "Eva"}),
        ({"pos_embed": "learned_rope", "qkv_bias": "qv"}, ROTARY | DINO_3_ROPE),
        ({"pos_embed": "rope"}, ROTARY | DINO_3_ROPE | NO_POSITIONS | {"attn_type": "rope"}),
        (
            SWIGLU | {"qkv_bias": "none", "registers": 4, "layer_scale": 1.0},
            ROTARY
            | DINO_3_ROPE
            | NO_POSITIONS
            | {"qkv_bias": False, "num_reg_tokens": 4, "no_embed_class": True, "init_values": 1.0}
            | {"swiglu_mlp": True, "swiglu_align_to": 1},
        ),
        (
            SWIGLU | {"qkv_bias": "qv", "rope": "eva02"},
            ROTARY | EVA_02_ROPE | NO_POSITIONS | {"swiglu_mlp": True},
        ),
        (
            SWIGLU | {"qkv_bias": "qv", "rope": "eva02", "mlp_norm": True},
            ROTARY
            | EVA_02_ROPE
            | NO_POSITIONS
            | {"swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False},
        ),
        ({"qkv_bias": "qv", "fc_norm": True}, {"class": "Eva", "use_fc_norm": True}),
        (
            {"qkv_bias": "qv", "pre_norm": True, "patch_bias": False},
            {"class": "Eva", "use_pre_transformer_norm": True},
        ),
    ],
)
def test_timm_constructor_of_eva_has_the_options_of_the_model(options, expected):
    assert timm_call(tiny(**WIDE | options)) == timm_call(tiny(**WIDE)) | expected


@pytest.mark.parametrize(
    "name",
    ["dinov3_s16", "dinov3_splus16", "eva02_ti14", "eva02_b14"],
)
def test_tensors_of_eva_have_the_names_of_its_published_sizes(name):
    model = vit_jax.create_model(name, num_layers=1, num_classes=0, qkv_bias="qv")
    stored = writer.plan_export("safetensors", model, param_shapes(model)).rows
    found = {tensor.removeprefix("blocks.0.") for tensor in stored if "blocks.0." in tensor}
    block = {f"{n}.{end}" for n in ("norm1", "norm2", "attn.proj") for end in ("weight", "bias")}
    assert (
        found - block
        == {
            "dinov3_s16": words("gamma_1 gamma_2", QKV, "mlp.fc1:", "mlp.fc2:"),
            "dinov3_splus16": words("gamma_1 gamma_2", QKV, "mlp.fc1_g: mlp.fc1_x: mlp.fc2:"),
            "eva02_ti14": words(QKV, "mlp.fc1: mlp.fc2:"),
            "eva02_b14": words(
                "attn.q_proj: attn.k_proj.weight attn.v_proj:",
                "mlp.fc1_g: mlp.fc1_x: mlp.norm: mlp.fc2:",
            ),
        }[name]
    )


QKV = "attn.qkv.weight attn.q_bias attn.v_bias"


def words(*texts):
    """Names of tensors; a colon stands for the weight and the bias."""
    names = [name for text in texts for name in text.split()]
    return {
        name.replace(":", f".{end}")
        for name in names
        for end in (("weight", "bias") if name.endswith(":") else ("",))
    }


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pool": "token_gap"}, "pool='token_gap'"),
        ({"projection": 3}, "projection=3"),
        ({"patch_bias": False}, "patch_bias=False without pre_norm"),
        ({"pre_norm": True}, "pre_norm with patch_bias"),
        ({"distill_token": True, "registers": 1}, "distill_token with registers"),
        ({"distill_token": True, "qkv_bias": "qv"}, "distill_token with qkv_bias='qv'"),
        ({"pos_embed": "rope", "gelu": "tanh"}, "gelu='tanh' with"),
        ({"pos_embed": "rope", "mlp": "glu"}, "mlp='glu' with"),
    ],
)
def test_models_that_timm_does_not_have_are_refused(options, text):
    with pytest.raises(ConfigError, match=re.escape(f"timm does not support {text}")):
        write_timm.format_name(tiny(**WIDE | options))


@pytest.mark.parametrize(
    ("name", "options", "is_folded"),
    [
        ("vit_ti16", {}, False),
        ("deit3_s16", {}, True),
        ("vit_ti16", {"registers": 2}, True),
        ("vit_ti16", {"registers": 2, "pool": "gap"}, False),
        ("dinov3_s16", {}, False),
    ],
)
def test_class_token_of_deit3_and_beside_registers_has_no_position(name, options, is_folded):
    assert write_timm.folds_cls(vit_jax.create_model(name, **options)) == is_folded


def test_timm_constructor_gives_epsilon_stem_and_bit():
    assert timm_call(tiny(**WIDE, norm_eps=1e-12))["norm_layer"]() == {"eps": 1e-12}
    hybrid = timm_call(vit_jax.create_model("r50_b16", gelu="erf"))
    assert hybrid["patch_size"] == 1
    assert hybrid["embed_layer"]() == {"backbone": (3, 4, 9)}
    bit = timm_call(vit_jax.create_model("bit_r101x3", num_classes=7))
    assert (bit["layers"], bit["width_factor"], bit["num_classes"]) == ((3, 4, 23, 3), 3, 7)


def test_mlp_ratio_gives_the_mlp_size_that_timm_computes():
    for hidden_size, mlp_size in ((1152, 4304), (8, 12), (768, 3072), (48, 161), (7, 29)):
        assert int(hidden_size * write_timm.mlp_ratio(mlp_size, hidden_size)) == mlp_size


# Files in timm's form.


def written(path, model, has_metadata=True):
    """A file of timm's names; without metadata, as timm itself writes it."""
    params = params_of(model)
    plan = writer.plan_export("safetensors", model, param_shapes(model))
    writer.write(plan, path, model, params, WeightsMetadata(), "")
    if not has_metadata:
        safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)
    return params


@pytest.mark.parametrize("title", MODELS)
def test_written_file_is_read_back(title, tmp_path):
    model = tiny(**MODELS[title][0])
    params = written(path := tmp_path / "x.safetensors", model)
    loaded = load.load(path)
    assert_same_model(loaded.model, model)
    arrays = trees.flatten(loaded.params())
    assert set(arrays) == set(params)
    folded = ("cls", "Transformer/posembed_input/pos_embedding")
    for name, array in params.items():
        if not (model.config.registers and name in folded):
            assert arrays[name].tobytes() == array.tobytes(), name


GIVEN = "num_heads=2,image_size=8x12,pixel_stats=half"


@pytest.mark.parametrize(
    ("title", "option", "more"),
    [
        ("CLIP", "gelu", "gelu=quick"),
        ("SigLIP", "gelu", "gelu=tanh"),
        ("EVA", "pos_embed", "pos_embed=learned"),
        ("rotary positions, keys with bias", "pos_embed", "pos_embed=rope,rope=dinov3"),
        ("gate of GELU", "activation of the gated MLP", "mlp=glu,gelu=tanh"),
        ("DINOv2", "", ""),
        ("DINOv3", "", "pool=gap"),
        ("DINOv3, gated", "", "pool=gap"),
        ("EVA-02", "", ""),
        ("EVA-02, LayerNorm in the MLP", "", ""),
        ("MAE, fine-tuned", "", ""),
    ],
)
def test_file_without_metadata_is_asked_about_what_tensors_leave_open(
    title, option, more, tmp_path
):
    model = tiny(**MODELS[title][0])
    written(path := tmp_path / "x.safetensors", model, has_metadata=False)
    if option:
        with pytest.raises(CheckpointError, match=option):
            load.load(f"{path}:{GIVEN}")
    loaded = load.load(f"{path}:{GIVEN},{more}".strip(","))
    assert_same_model(loaded.model, model)


def test_rotary_positions_without_convention_are_asked_about(tmp_path):
    model = tiny(**MODELS["rotary positions, keys with bias"][0])
    written(path := tmp_path / "x.safetensors", model, has_metadata=False)
    with pytest.raises(CheckpointError, match=r"determine rope \(dinov3 or eva02\)"):
        load.load(f"{path}:{GIVEN},pos_embed=rope")


@pytest.mark.parametrize(
    ("title", "change", "text"),
    [
        ("EVA-02", {"blocks.0.attn.v_bias": None}, "key/bias is missing"),
        ("EVA-02", {"fc_norm.weight": None}, "encoder_norm/scale is missing"),
        ("EVA-02", {"blocks.1.mlp.fc1.weight": (127, 32)}, r"fc1.weight is \(127, 32\)"),
        ("EVA-02", {"blocks.1.mlp.fc1.weight": (64, 32)}, r"encoderblock_1/.* is \(32, 32\)"),
        ("EVA-02", {"blocks.0.attn.qkv.bias": (96,)}, "both map to .*query/bias"),
        ("EVA-02", {"blocks.0.attn.q_bias": (33,)}, "33 rows are not divisible by 2 heads"),
        ("DINOv3, gated", {"blocks.1.mlp.fc1_g.bias": None}, "Dense_gate/bias is missing"),
        ("DeiT", {"dist_token": None}, "8x12 contradicts 7 position embeddings"),
        ("DeiT", {"head_dist.bias": None}, "head_dist/bias is missing"),
        ("CLIP", {"norm_pre.bias": None}, "pre_norm/bias is missing"),
    ],
)
def test_damaged_file_is_refused_in_one_line(title, change, text, tmp_path):
    model = tiny(**MODELS[title][0])
    written(path := tmp_path / "x.safetensors", model, has_metadata=False)
    arrays = safetensors.numpy.load_file(path)
    for name, shape in change.items():
        arrays.pop(name, None)
        if shape:
            arrays[name] = np.ones(shape, np.float32)
    safetensors.numpy.save_file(arrays, path)
    gelu = f",gelu={model.config.gelu}"
    with pytest.raises(CheckpointError, match=text) as caught:
        load.load(f"{path}:{GIVEN}{gelu}").params()
    assert "\n" not in str(caught.value)


# Outputs of timm, which `test_write_timm_parity.py` stores.


@pytest.mark.parametrize("title", MODELS)
def test_outputs_equal_those_of_timm(title, photos):
    expected = np.array(json.loads(GOLDEN.read_text())[title])
    model = tiny(image_size=SIDE, **MODELS[title][0])
    params = trees.unflatten(params_of(model))
    outputs = np.asarray(jax.jit(model.apply)({"params": params}, photo_pixels(photos, SIDE)))
    # Outputs of the two photos differ by far more than the tolerance.
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()
    np.testing.assert_allclose(outputs, expected, atol=1e-5 * np.abs(expected).max())
