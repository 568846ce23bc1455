"""Name tables of PyTorch checkpoints: timm and Hugging Face."""

import dataclasses

from vit_jax.weights.tensor_layouts import ATTENTION, BLOCK, CLS, POSITIONS, UNIT, Row

_OLD_HF = ("attention.attention.{name}", "attention.output.dense")
_NEW_HF = ("attention.{letter}_proj", "attention.o_proj")
_HF_NORMS = ("layernorm_before", "layernorm_after")


def _torch_norm(tensor: str, param: str) -> list[Row]:
    return [Row(f"{tensor}.weight", (f"{param}/scale",)), Row(f"{tensor}.bias", (f"{param}/bias",))]


def _torch_dense(tensor: str, param: str, layout: str = "linear") -> list[Row]:
    return [
        Row(f"{tensor}.weight", (f"{param}/kernel",), layout),
        Row(f"{tensor}.bias", (f"{param}/bias",)),
    ]


def _torch_heads(tensor: str, param: str, names: tuple[str, ...], layout: str) -> list[Row]:
    return [
        Row(f"{tensor}.{end}", tuple(f"{param}/{name}/{leaf}" for name in names), layout)
        for end, leaf in (("weight", "kernel"), ("bias", "bias"))
    ]


def _torch_out(tensor: str, param: str) -> list[Row]:
    return [
        Row(f"{tensor}.weight", (f"{param}/out/kernel",), "heads_out"),
        Row(f"{tensor}.bias", (f"{param}/out/bias",)),
    ]


def _torch_units(unit: str) -> list[Row]:
    rows = []
    for n in (1, 2, 3):
        rows.append(Row(f"{unit}.conv{n}.weight", (f"{UNIT}/conv{n}/kernel",), "conv"))
        rows += _torch_norm(f"{unit}.norm{n}", f"{UNIT}/gn{n}")
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
        *_torch_dense("patch_embed.proj", "embedding", "conv"),
        *_torch_norm("blocks.{i}.norm1", f"{BLOCK}/LayerNorm_0"),
        *_torch_heads("blocks.{i}.attn.qkv", ATTENTION, ("query", "key", "value"), "qkv"),
        Row("blocks.{i}.attn.q_norm.weight", (f"{ATTENTION}/query_ln/scale",)),
        Row("blocks.{i}.attn.k_norm.weight", (f"{ATTENTION}/key_ln/scale",)),
        *_torch_out("blocks.{i}.attn.proj", ATTENTION),
        Row("blocks.{i}.ls1.gamma", (f"{BLOCK}/LayerScale_0/scale",)),
        *_torch_norm("blocks.{i}.norm2", f"{BLOCK}/LayerNorm_1"),
        *_torch_dense("blocks.{i}.mlp.fc1", f"{BLOCK}/MlpBlock_0/Dense_0"),
        *_torch_dense("blocks.{i}.mlp.fc2", f"{BLOCK}/MlpBlock_0/Dense_1"),
        Row("blocks.{i}.ls2.gamma", (f"{BLOCK}/LayerScale_1/scale",)),
        *_torch_norm("norm", "Transformer/encoder_norm"),
        *_torch_dense("pre_logits.fc", "pre_logits"),
        *_torch_dense("head", "head"),
        Row("attn_pool.latent", (f"{pool}/probe",)),
        *_torch_heads("attn_pool.q", attention, ("query",), "heads"),
        *_torch_heads("attn_pool.kv", attention, ("key", "value"), "kv"),
        *_torch_out("attn_pool.proj", attention),
        *_torch_norm("attn_pool.norm", f"{pool}/LayerNorm_0"),
        *_torch_dense("attn_pool.mlp.fc1", f"{pool}/MlpBlock_0/Dense_0"),
        *_torch_dense("attn_pool.mlp.fc2", f"{pool}/MlpBlock_0/Dense_1"),
        Row(f"{stem}.stem.conv.weight", ("conv_root/kernel",), "conv"),
        *_torch_norm(f"{stem}.stem.norm", "gn_root"),
        *_torch_units(f"{stem}.stages.{{b0}}.blocks.{{u0}}"),
        *_torch_norm(f"{stem}.stages.{{b0}}.blocks.{{u0}}.downsample.norm", f"{UNIT}/gn_proj"),
    ]
    return tuple(rows)


def rename(rows: tuple[Row, ...], *changes: tuple[str, str]) -> tuple[Row, ...]:
    """Returns the rows with (old, new) parts of tensor names replaced."""
    for old, new in changes:
        rows = tuple(dataclasses.replace(row, tensor=row.tensor.replace(old, new)) for row in rows)
    return rows


def timm_bit() -> tuple[Row, ...]:
    """Returns the rows of timm's ResNetV2 with BiT weights."""
    return (
        Row("stem.conv.weight", ("conv_root/kernel",), "conv"),
        *_torch_units("stages.{b0}.blocks.{u0}"),
        *_torch_norm("norm", "gn_final"),
        *_torch_dense("head.fc", "head", "torch_conv_of_linear"),
    )


def _huggingface(block: str, attention: str, out: str, mlp: tuple[str, str], norms) -> tuple:
    rows = [
        Row("embeddings.cls_token", (CLS,)),
        Row("embeddings.position_embeddings", (POSITIONS,)),
        *_torch_dense("embeddings.patch_embeddings.projection", "embedding", "conv"),
        *_torch_norm("layernorm", "Transformer/encoder_norm"),
        *_torch_dense("classifier", "head"),
        *_torch_out(f"{block}.{out}", ATTENTION),
    ]
    for name in ("query", "key", "value"):
        tensor = attention.format(name=name, letter=name[0])
        rows += _torch_heads(f"{block}.{tensor}", ATTENTION, (name,), "heads")
    for n in (0, 1):
        rows += _torch_norm(f"{block}.{norms[n]}", f"{BLOCK}/LayerNorm_{n}")
        rows += _torch_dense(f"{block}.{mlp[n]}", f"{BLOCK}/MlpBlock_0/Dense_{n}")
    return tuple(rows)


def huggingface_bit() -> tuple[Row, ...]:
    """Returns the rows of Hugging Face's Bit."""
    rows = rename(
        timm_bit(),
        ("stem.conv.", "embedder.convolution."),
        ("stages.{b0}.blocks.", "encoder.stages.{b0}.layers."),
    )
    kept = tuple(row for row in rows if not row.tensor.startswith("head."))
    return (*kept, *_torch_dense("classifier.1", "head"))


def huggingface_vit(version: int) -> tuple[Row, ...]:
    """Returns the rows of Hugging Face's ViT, with the names of transformers 4 or 5."""
    if version < 5:
        mlp = ("intermediate.dense", "output.dense")
        rows = _huggingface("encoder.layer.{i}", *_OLD_HF, mlp, _HF_NORMS)
    else:
        rows = _huggingface("layers.{i}", *_NEW_HF, ("mlp.fc1", "mlp.fc2"), _HF_NORMS)
    return (*rows, *_torch_dense("pooler.dense", "pre_logits"))


def huggingface_dino(version: int) -> tuple[Row, ...]:
    """Returns the rows of Hugging Face's DINOv2, with the names of transformers 4 or 5."""
    names = _OLD_HF if version < 5 else _NEW_HF
    block = "encoder.layer.{i}"
    return (
        *_huggingface(block, *names, ("mlp.fc1", "mlp.fc2"), ("norm1", "norm2")),
        Row("embeddings.register_tokens", ("registers",)),
        Row(f"{block}.layer_scale1.lambda1", (f"{BLOCK}/LayerScale_0/scale",)),
        Row(f"{block}.layer_scale2.lambda1", (f"{BLOCK}/LayerScale_1/scale",)),
    )
