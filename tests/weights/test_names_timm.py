"""Tensor names and layouts of timm's models, which are written out here from timm's source."""

import numpy as np
import pytest

from vit_jax.weights import formats
from vit_jax.weights.names_timm import has_gated_fc1
from vit_jax.weights.tensor_layouts import params_to_tensor, tensor_to_params

ATTENTION, MLP = "MultiHeadDotProductAttention_0", "MlpBlock_0"
OUTER = {
    "cls_token": "cls",
    "dist_token": "dist_token",
    "reg_token": "registers",
    "pos_embed": "Transformer/posembed_input/pos_embedding",
    "patch_embed.proj.weight": "embedding/kernel",
    "norm_pre.weight": "Transformer/pre_norm/scale",
    "norm.bias": "Transformer/encoder_norm/bias",
    "fc_norm.weight": "fc_norm/scale",
    "head.bias": "head/bias",
    "head_dist.weight": "head_dist/kernel",
    "attn_pool.latent": "MAPHead_0/probe",
}
LAYER = {"norm2.bias": "LayerNorm_1/bias", "attn.proj.weight": f"{ATTENTION}/out/kernel"}
FUSED = {"attn.qkv.weight": [f"{ATTENTION}/{name}/kernel" for name in ("query", "key", "value")]}
PLAIN = {"mlp.fc1.weight": [f"{MLP}/Dense_0/kernel"], "mlp.fc1.bias": [f"{MLP}/Dense_0/bias"]}
PACKED = {"mlp.fc1.weight": [f"{MLP}/Dense_gate/kernel", f"{MLP}/Dense_0/kernel"]}
SPLIT = {"mlp.fc1_g.bias": [f"{MLP}/Dense_gate/bias"], "mlp.fc1_x.bias": [f"{MLP}/Dense_0/bias"]}
NORM = {"mlp.norm.weight": [f"{MLP}/LayerNorm_0/scale"]}
GAMMAS = {f"gamma_{n}": [f"LayerScale_{n - 1}/scale"] for n in (1, 2)}
TWO_BIASES = {f"attn.{name[0]}_bias": [f"{ATTENTION}/{name}/bias"] for name in ("query", "value")}
SEPARATE = {
    "attn.q_proj.bias": [f"{ATTENTION}/query/bias"],
    "attn.k_proj.weight": [f"{ATTENTION}/key/kernel"],
}
VIT = FUSED | {f"ls{n}.gamma": [f"LayerScale_{n - 1}/scale"] for n in (1, 2)}
EVA = FUSED | GAMMAS | TWO_BIASES


@pytest.mark.parametrize(
    ("format", "gated", "layer"),
    [
        (formats.TIMM, False, VIT | PLAIN),
        (formats.TIMM, True, VIT | PACKED),
        (formats.TIMM_EVA, False, EVA | PLAIN),
        (formats.TIMM_EVA, True, EVA | PACKED),
        (formats.TIMM_EVA_SPLIT, False, EVA | SPLIT | NORM),
        (formats.TIMM_EVA_SEPARATE, False, GAMMAS | SEPARATE | SPLIT | NORM),
    ],
)
def test_table_is_one_to_one(format, gated, layer):
    block = "Transformer/encoderblock_7"
    params_of = {name: [param] for name, param in OUTER.items()}
    params_of |= {f"blocks.7.{name}": [f"{block}/{param}"] for name, param in LAYER.items()}
    params_of |= {
        f"blocks.7.{name}": [f"{block}/{param}" for param in params]
        for name, params in layer.items()
    }
    table = formats.FORMATS[format]
    for tensor, params in params_of.items():
        row = formats.row_of_tensor(table, tensor, gated)
        assert row is not None, tensor
        assert list(row.params) == params
    every_param = [param for params in params_of.values() for param in params]
    rows, unknown = formats.rows_of_params(table, every_param)
    assert not unknown
    assert {row.tensor: list(row.params) for row in rows} == params_of


def test_biases_of_all_three_projections_are_one_tensor():
    block = f"Transformer/encoderblock_0/{ATTENTION}"
    names = [f"{block}/{name}/bias" for name in ("query", "key", "value")]
    for format in (formats.TIMM, formats.TIMM_EVA):
        rows, unknown = formats.rows_of_params(formats.FORMATS[format], names)
        assert ([row.tensor for row in rows], unknown) == (["blocks.0.attn.qkv.bias"], [])
    _, unknown = formats.rows_of_params(formats.FORMATS[formats.TIMM], [names[0], names[2]])
    assert unknown == [names[0], names[2]]


@pytest.mark.parametrize("end", ["weight", "bias"])
def test_gate_is_the_first_half_of_fc1(end):
    # timm's SwiGLUPacked: x1, x2 = fc1(x).chunk(2, -1); silu(x1) * x2.
    random = np.random.default_rng(0)
    tensor = random.normal(size=(6, 4)[: 1 + (end == "weight")])
    row = formats.row_of_tensor(formats.FORMATS[formats.TIMM], f"blocks.0.mlp.fc1.{end}", True)
    gate, value = tensor_to_params(row, tensor, num_heads=1)
    x = random.normal(size=4) if end == "weight" else np.ones(())
    np.testing.assert_allclose([x @ gate, x @ value] if x.ndim else [gate, value],
                               np.split(tensor @ x if x.ndim else tensor, 2))  # fmt: skip
    np.testing.assert_array_equal(params_to_tensor(row, [gate, value]), tensor)


def test_has_gated_fc1_compares_outputs_of_fc1_with_inputs_of_fc2():
    shapes = {"blocks.0.mlp.fc1.weight": (12, 4), "blocks.0.mlp.fc2.weight": (4, 6)}
    assert has_gated_fc1(shapes)
    assert not has_gated_fc1(shapes | {"blocks.0.mlp.fc2.weight": (4, 12)})
    assert not has_gated_fc1({})


@pytest.mark.parametrize(
    ("format", "names"),
    [
        (formats.TIMM, ["attn.qkv.weight", "attn.qkv.bias", "mlp.fc1.weight", "ls1.gamma"]),
        (formats.TIMM, ["attn.qkv.weight", "mlp.fc1.weight"]),
        (formats.TIMM_EVA, ["attn.qkv.weight", "attn.q_bias", "mlp.fc1.weight"]),
        (formats.TIMM_EVA, ["attn.qkv.weight", "mlp.fc1.weight", "gamma_1"]),
        (formats.TIMM_EVA_SPLIT, ["attn.qkv.weight", "mlp.fc1_g.weight", "gamma_1"]),
        (formats.TIMM_EVA_SEPARATE, ["attn.q_proj.weight", "mlp.fc1_g.weight", "mlp.norm.bias"]),
    ],
)
def test_detect_formats_finds_the_table_of_most_names(format, names):
    names = ["patch_embed.proj.weight", *(f"net.blocks.0.{name}" for name in names)]
    detected = formats.detect_formats([f"net.{names[0]}", *names[1:]])
    assert (detected[0][0].name, detected[0][1]) == (format, "net.")
