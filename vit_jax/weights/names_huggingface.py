"""Name tables of Hugging Face's checkpoints."""

from vit_jax.weights.names_timm import timm_bit
from vit_jax.weights.names_torch import dense, heads, norm, out, rename
from vit_jax.weights.tensor_layouts import ATTENTION, BLOCK, CLS, POSITIONS, Row

_OLD_HF = ("attention.attention.{name}", "attention.output.dense")
_NEW_HF = ("attention.{letter}_proj", "attention.o_proj")
_HF_NORMS = ("layernorm_before", "layernorm_after")


def _huggingface(block: str, attention: str, out_name: str, mlp: tuple[str, str], norms) -> tuple:
    rows = [
        Row("embeddings.cls_token", (CLS,)),
        Row("embeddings.position_embeddings", (POSITIONS,)),
        *dense("embeddings.patch_embeddings.projection", "embedding", "conv"),
        *norm("layernorm", "Transformer/encoder_norm"),
        *dense("classifier", "head"),
        *out(f"{block}.{out_name}", ATTENTION),
    ]
    for name in ("query", "key", "value"):
        tensor = attention.format(name=name, letter=name[0])
        rows += heads(f"{block}.{tensor}", ATTENTION, (name,), "heads")
    for n in (0, 1):
        rows += norm(f"{block}.{norms[n]}", f"{BLOCK}/LayerNorm_{n}")
        rows += dense(f"{block}.{mlp[n]}", f"{BLOCK}/MlpBlock_0/Dense_{n}")
    return tuple(rows)


def huggingface_bit() -> tuple[Row, ...]:
    """Returns the rows of Hugging Face's Bit."""
    rows = rename(
        timm_bit(),
        ("stem.conv.", "embedder.convolution."),
        ("stages.{b0}.blocks.", "encoder.stages.{b0}.layers."),
    )
    kept = tuple(row for row in rows if not row.tensor.startswith("head."))
    return (*kept, *dense("classifier.1", "head"))


def huggingface_vit(version: int) -> tuple[Row, ...]:
    """Returns the rows of Hugging Face's ViT, with the names of transformers 4 or 5."""
    if version < 5:
        mlp = ("intermediate.dense", "output.dense")
        rows = _huggingface("encoder.layer.{i}", *_OLD_HF, mlp, _HF_NORMS)
    else:
        rows = _huggingface("layers.{i}", *_NEW_HF, ("mlp.fc1", "mlp.fc2"), _HF_NORMS)
    return (*rows, *dense("pooler.dense", "pre_logits"))


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
