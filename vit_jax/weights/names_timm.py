"""Name tables of timm's checkpoints."""

from vit_jax.weights.names_torch import dense, heads, norm, out
from vit_jax.weights.tensor_layouts import ATTENTION, BLOCK, CLS, POSITIONS, UNIT, Row


def _units(unit: str) -> list[Row]:
    rows = []
    for n in (1, 2, 3):
        rows.append(Row(f"{unit}.conv{n}.weight", (f"{UNIT}/conv{n}/kernel",), "conv"))
        rows += norm(f"{unit}.norm{n}", f"{UNIT}/gn{n}")
    rows.append(Row(f"{unit}.downsample.conv.weight", (f"{UNIT}/conv_proj/kernel",), "conv"))
    return rows


def timm_vit() -> tuple[Row, ...]:
    """Returns the rows of timm's VisionTransformer, with or without a ResNet stem."""
    pool, stem = "MAPHead_0", "patch_embed.backbone"
    attention = f"{pool}/MultiHeadDotProductAttention_0"
    rows = [
        Row("cls_token", (CLS,)),
        Row("reg_token", ("registers",)),
        Row("pos_embed", (POSITIONS,)),
        *dense("patch_embed.proj", "embedding", "conv"),
        *norm("blocks.{i}.norm1", f"{BLOCK}/LayerNorm_0"),
        *heads("blocks.{i}.attn.qkv", ATTENTION, ("query", "key", "value"), "qkv"),
        Row("blocks.{i}.attn.q_norm.weight", (f"{ATTENTION}/query_ln/scale",)),
        Row("blocks.{i}.attn.k_norm.weight", (f"{ATTENTION}/key_ln/scale",)),
        *out("blocks.{i}.attn.proj", ATTENTION),
        Row("blocks.{i}.ls1.gamma", (f"{BLOCK}/LayerScale_0/scale",)),
        *norm("blocks.{i}.norm2", f"{BLOCK}/LayerNorm_1"),
        *dense("blocks.{i}.mlp.fc1", f"{BLOCK}/MlpBlock_0/Dense_0"),
        *dense("blocks.{i}.mlp.fc2", f"{BLOCK}/MlpBlock_0/Dense_1"),
        Row("blocks.{i}.ls2.gamma", (f"{BLOCK}/LayerScale_1/scale",)),
        *norm("norm", "Transformer/encoder_norm"),
        *dense("pre_logits.fc", "pre_logits"),
        *dense("head", "head"),
        Row("attn_pool.latent", (f"{pool}/probe",)),
        *heads("attn_pool.q", attention, ("query",), "heads"),
        *heads("attn_pool.kv", attention, ("key", "value"), "kv"),
        *out("attn_pool.proj", attention),
        *norm("attn_pool.norm", f"{pool}/LayerNorm_0"),
        *dense("attn_pool.mlp.fc1", f"{pool}/MlpBlock_0/Dense_0"),
        *dense("attn_pool.mlp.fc2", f"{pool}/MlpBlock_0/Dense_1"),
        Row(f"{stem}.stem.conv.weight", ("conv_root/kernel",), "conv"),
        *norm(f"{stem}.stem.norm", "gn_root"),
        *_units(f"{stem}.stages.{{b0}}.blocks.{{u0}}"),
        *norm(f"{stem}.stages.{{b0}}.blocks.{{u0}}.downsample.norm", f"{UNIT}/gn_proj"),
    ]
    return tuple(rows)


def timm_bit() -> tuple[Row, ...]:
    """Returns the rows of timm's ResNetV2 with BiT weights."""
    return (
        Row("stem.conv.weight", ("conv_root/kernel",), "conv"),
        *_units("stages.{b0}.blocks.{u0}"),
        *norm("norm", "gn_final"),
        *dense("head.fc", "head", "torch_conv_of_linear"),
    )
