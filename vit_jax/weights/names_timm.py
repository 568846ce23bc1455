"""Name tables of timm's checkpoints."""

from collections.abc import Mapping

from vit_jax.weights.names_torch import dense, gated, heads, norm, of_decoder, out, rename
from vit_jax.weights.tensor_layouts import ATTENTION, BLOCK, CLS, POSITIONS, UNIT, Row

_LAYER, _MLP = "blocks.{i}", f"{BLOCK}/MlpBlock_0"
_QKV = ("query", "key", "value")
_FUSED = heads(f"{_LAYER}.attn.qkv", ATTENTION, _QKV, "qkv")
_PACKED_OR_PLAIN = [  # A gated MLP has gate and value in one tensor.
    *gated(f"{_LAYER}.mlp.fc1", _MLP),
    *dense(f"{_LAYER}.mlp.fc1", f"{_MLP}/Dense_0"),
]
_SPLIT = [
    *dense(f"{_LAYER}.mlp.fc1_g", f"{_MLP}/Dense_gate"),
    *dense(f"{_LAYER}.mlp.fc1_x", f"{_MLP}/Dense_0"),
]


def _units(unit: str) -> list[Row]:
    rows = []
    for n in (1, 2, 3):
        rows.append(Row(f"{unit}.conv{n}.weight", (f"{UNIT}/conv{n}/kernel",), "conv"))
        rows += norm(f"{unit}.norm{n}", f"{UNIT}/gn{n}")
    rows.append(Row(f"{unit}.downsample.conv.weight", (f"{UNIT}/conv_proj/kernel",), "conv"))
    return rows


def _outer() -> list[Row]:
    """Rows of everything but encoder layers and ResNet stem."""
    pool = "MAPHead_0"
    attention = f"{pool}/MultiHeadDotProductAttention_0"
    return [
        Row("cls_token", (CLS,)),
        Row("dist_token", ("dist_token",)),
        Row("reg_token", ("registers",)),
        Row("pos_embed", (POSITIONS,)),
        *dense("patch_embed.proj", "embedding", "conv"),
        *norm("norm_pre", "Transformer/pre_norm"),
        *norm("norm", "Transformer/encoder_norm"),
        *norm("fc_norm", "fc_norm"),
        *dense("pre_logits.fc", "pre_logits"),
        *dense("head", "head"),
        *dense("head_dist", "head_dist"),
        Row("attn_pool.latent", (f"{pool}/probe",)),
        *heads("attn_pool.q", attention, ("query",), "heads"),
        *heads("attn_pool.kv", attention, ("key", "value"), "kv"),
        *out("attn_pool.proj", attention),
        *norm("attn_pool.norm", f"{pool}/LayerNorm_0"),
        *dense("attn_pool.mlp.fc1", f"{pool}/MlpBlock_0/Dense_0"),
        *dense("attn_pool.mlp.fc2", f"{pool}/MlpBlock_0/Dense_1"),
    ]


def _block(scale: str, attention: list[Row], mlp: list[Row]) -> list[Row]:
    """Rows of an encoder layer, given its name of LayerScale, and the rows of two tensors."""
    return [
        *norm(f"{_LAYER}.norm1", f"{BLOCK}/LayerNorm_0"),
        *attention,
        Row(f"{_LAYER}.attn.q_norm.weight", (f"{ATTENTION}/query_ln/scale",)),
        Row(f"{_LAYER}.attn.k_norm.weight", (f"{ATTENTION}/key_ln/scale",)),
        *out(f"{_LAYER}.attn.proj", ATTENTION),
        Row(f"{_LAYER}.{scale.format(1)}", (f"{BLOCK}/LayerScale_0/scale",)),
        *norm(f"{_LAYER}.norm2", f"{BLOCK}/LayerNorm_1"),
        *mlp,
        *norm(f"{_LAYER}.mlp.norm", f"{_MLP}/LayerNorm_0"),
        *dense(f"{_LAYER}.mlp.fc2", f"{_MLP}/Dense_1"),
        Row(f"{_LAYER}.{scale.format(2)}", (f"{BLOCK}/LayerScale_1/scale",)),
    ]


def timm_vit() -> tuple[Row, ...]:
    """Returns the rows of timm's VisionTransformer, with or without a ResNet stem."""
    stem = "patch_embed.backbone"
    return (
        *_outer(),
        *_block("ls{}.gamma", _FUSED, _PACKED_OR_PLAIN),
        Row(f"{stem}.stem.conv.weight", ("conv_root/kernel",), "conv"),
        *norm(f"{stem}.stem.norm", "gn_root"),
        *_units(f"{stem}.stages.{{b0}}.blocks.{{u0}}"),
        *norm(f"{stem}.stages.{{b0}}.blocks.{{u0}}.downsample.norm", f"{UNIT}/gn_proj"),
    )


def mae_decoder() -> tuple[Row, ...]:
    """Returns the rows of the decoder in files of the code of MAE (arXiv:2111.06377)."""
    mlp = dense(f"{_LAYER}.mlp.fc1", f"{_MLP}/Dense_0")
    layers = rename(tuple(_block("ls{}.gamma", _FUSED, mlp)), ("blocks.", "decoder_blocks."))
    return of_decoder(
        (
            *dense("decoder_embed", "decoder_embed"),
            Row("mask_token", ("decoder_mask_token",)),
            Row("decoder_pos_embed", (POSITIONS,)),
            *layers,
            *norm("decoder_norm", "Transformer/encoder_norm"),
            *dense("decoder_pred", "decoder_pred"),
        )
    )


def timm_eva(*, has_separate_qkv: bool = False, has_split_mlp: bool = False) -> tuple[Row, ...]:
    """Returns the rows of timm's Eva.

    Args:
      has_separate_qkv: queries, keys and values are tensors of their own.
      has_split_mlp: gate and value of the MLP are tensors of their own.
    """
    attention = [
        *_FUSED,  # A bias of all three is one tensor; keys without bias leave two.
        Row(f"{_LAYER}.attn.q_bias", (f"{ATTENTION}/query/bias",), "heads"),
        Row(f"{_LAYER}.attn.v_bias", (f"{ATTENTION}/value/bias",), "heads"),
    ]
    if has_separate_qkv:
        attention = [
            row
            for name in _QKV
            for row in heads(f"{_LAYER}.attn.{name[0]}_proj", ATTENTION, (name,), "heads")
        ]
    mlp = _SPLIT if has_split_mlp else _PACKED_OR_PLAIN
    return (*_outer(), *_block("gamma_{}", attention, mlp))


def has_gated_fc1(shapes: Mapping[str, tuple]) -> bool:
    """Returns True if `fc1` of a layer has gate and value: twice the outputs that `fc2` takes.

    Args:
      shapes: shape by tensor name, without the prefix of the file.
    """
    first, second = (shapes.get(f"blocks.0.mlp.fc{n}.weight", ()) for n in (1, 2))
    return len(first) == len(second) == 2 and first[0] == 2 * second[1]


def timm_bit() -> tuple[Row, ...]:
    """Returns the rows of timm's ResNetV2 with BiT weights."""
    return (
        Row("stem.conv.weight", ("conv_root/kernel",), "conv"),
        *_units("stages.{b0}.blocks.{u0}"),
        *norm("norm", "gn_final"),
        *dense("head.fc", "head", "torch_conv_of_linear"),
    )
