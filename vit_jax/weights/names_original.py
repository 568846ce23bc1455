"""Name tables of original releases in PyTorch and Flax whose names are not those of timm.

The code of MAE, DeiT, DeiT III and I-JEPA has the names of timm.
"""

from vit_jax.weights.names_flax import LINEN, flax_block
from vit_jax.weights.names_timm import timm_vit
from vit_jax.weights.names_torch import dense, gated, heads, norm, out, rename
from vit_jax.weights.tensor_layouts import ATTENTION, BLOCK, CLS, POSITIONS, Row

_LAYER, _MLP = "blocks.{i}", f"{BLOCK}/MlpBlock_0"
_QKV = ("query", "key", "value")
_SPLIT_MLP = (  # Gate, value and output of a gated MLP.
    *dense(f"{_LAYER}.mlp.w1", f"{_MLP}/Dense_gate"),
    *dense(f"{_LAYER}.mlp.w2", f"{_MLP}/Dense_0"),
    *dense(f"{_LAYER}.mlp.w3", f"{_MLP}/Dense_1"),
)
_PACKED_MLP = tuple(gated(f"{_LAYER}.mlp.w12", _MLP))  # Gate and value in one tensor.


def dino_2() -> tuple[Row, ...]:
    """Returns the rows of DINOv2, and of TIPS in PyTorch."""
    rows = rename(timm_vit(), ("reg_token", "register_tokens"))
    return (*rows, *_PACKED_MLP, *dense(f"{_LAYER}.mlp.w3", f"{_MLP}/Dense_1"))


def dino_3() -> tuple[Row, ...]:
    """Returns the rows of DINOv3, whose keys have a bias that is masked."""
    bias = f"{_LAYER}.attn.qkv.bias"
    params = tuple(f"{ATTENTION}/{name}/bias" for name in ("query", "value"))
    rows = rename(timm_vit(), ("reg_token", "storage_tokens"))
    kept = tuple(row for row in rows if row.tensor != bias)
    return (*kept, Row(bias, params, "qv_of_qkv"), *_SPLIT_MLP)


def eva_02() -> tuple[Row, ...]:
    """Returns the rows of EVA-02; its last LayerNorm is that of the pooled features, as in timm."""
    names = ("norm.weight", "norm.bias", f"{_LAYER}.attn.qkv.bias")
    kept = (row for row in timm_vit() if row.tensor not in names)
    attention = [
        Row(f"{_LAYER}.attn.{name[0]}_proj.weight", (f"{ATTENTION}/{name}/kernel",), "heads")
        for name in _QKV
    ]
    for name in ("query", "value"):
        tensor = f"{_LAYER}.attn.{name[0]}_bias"
        attention.append(Row(tensor, (f"{ATTENTION}/{name}/bias",), "heads"))
    inner = norm(f"{_LAYER}.mlp.ffn_ln", f"{_MLP}/LayerNorm_0")
    return (*kept, *norm("norm", "fc_norm"), *attention, *_PACKED_MLP, *_SPLIT_MLP, *inner)


def open_clip() -> tuple[Row, ...]:
    """Returns the rows of the image tower of OpenAI's CLIP and of open_clip."""
    layer = "transformer.resblocks.{i}"
    attention = f"{layer}.attn.in_proj"
    return (
        Row("class_embedding", (CLS,), "token"),
        Row("positional_embedding", (POSITIONS,), "table"),
        Row("conv1.weight", ("embedding/kernel",), "conv"),
        *norm("ln_pre", "Transformer/pre_norm"),
        *norm("ln_post", "Transformer/encoder_norm"),
        Row("proj", ("projection/kernel",)),
        *norm(f"{layer}.ln_1", f"{BLOCK}/LayerNorm_0"),
        *norm(f"{layer}.ln_2", f"{BLOCK}/LayerNorm_1"),
        *rename(tuple(heads(attention, ATTENTION, _QKV, "qkv")), ("in_proj.", "in_proj_")),
        *out(f"{layer}.attn.out_proj", ATTENTION),
        *dense(f"{layer}.mlp.c_fc", f"{_MLP}/Dense_0"),
        *dense(f"{layer}.mlp.c_proj", f"{_MLP}/Dense_1"),
    )


def tips() -> tuple[Row, ...]:
    """Returns the rows of TIPS in Flax: two class tokens, positions as a grid, no LayerScale."""
    tokens, gate = "ToTokenSequence_0", "transformer/encoderblock_{i}/FFNSwiGluFused_0"
    names = {"Dense_0": "Dense_gate", "Dense_1": "Dense_0", "Dense_2": "Dense_1"}
    return (
        Row(f"{tokens}/cls", (CLS, "registers"), "tokens"),
        Row(f"{tokens}/posembed_input", (POSITIONS,), "grid"),
        *(Row(f"{tokens}/embedding/{leaf}", (f"embedding/{leaf}",)) for leaf in ("kernel", "bias")),
        *flax_block(*LINEN, block="transformer/encoderblock_{i}"),
        *(
            Row(f"{gate}/{old}/{leaf}", (f"{_MLP}/{new}/{leaf}",))
            for old, new in names.items()
            for leaf in ("kernel", "bias")
        ),
        *(
            Row(f"encoder_norm/{leaf}", (f"Transformer/encoder_norm/{leaf}",))
            for leaf in ("scale", "bias")
        ),
    )
