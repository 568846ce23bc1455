"""Name tables of Hugging Face's checkpoints.

Version 5 of transformers renames tensors as it reads and writes files, so that files have the names
of version 4. The names of version 5 are those of a `state_dict`.
"""

from vit_jax.weights.names_timm import timm_bit
from vit_jax.weights.names_torch import dense, gated, heads, norm, of_decoder, out, rename
from vit_jax.weights.tensor_layouts import ATTENTION, BLOCK, CLS, POSITIONS, Row

_MLP = f"{BLOCK}/MlpBlock_0"
_QKV = ("query", "key", "value")
_ATTENTION_4 = ("attention.attention.{name}", "attention.output.dense")
_ATTENTION_5 = ("attention.{letter}_proj", "attention.o_proj")
_GATED = {"gate_proj": "Dense_gate", "up_proj": "Dense_0", "down_proj": "Dense_1"}


def _block(block: str, attention: tuple[str, str], norms: tuple[str, str]) -> list[Row]:
    """The rows of a layer except those of its MLP; each of its biases may be absent."""
    rows = out(f"{block}.{attention[1]}", ATTENTION)
    for name in _QKV:
        tensor = attention[0].format(name=name, letter=name[0])
        rows += heads(f"{block}.{tensor}", ATTENTION, (name,), "heads")
    for n in (0, 1):
        rows += norm(f"{block}.{norms[n]}", f"{BLOCK}/LayerNorm_{n}")
    return rows


def _mlp(block: str, names: tuple[str, str], param: str = _MLP) -> list[Row]:
    return [row for n in (0, 1) for row in dense(f"{block}.{names[n]}", f"{param}/Dense_{n}")]


def _layer_scales(block: str) -> list[Row]:
    return [
        Row(f"{block}.layer_scale{n + 1}.lambda1", (f"{BLOCK}/LayerScale_{n}/scale",))
        for n in (0, 1)
    ]


def _gated_mlp(block: str) -> list[Row]:
    return [
        row for old, new in _GATED.items() for row in dense(f"{block}.mlp.{old}", f"{_MLP}/{new}")
    ]


def _packed_gated_mlp(block: str) -> list[Row]:
    mlp = f"{block}.mlp"
    return [*gated(f"{mlp}.weights_in", _MLP), *dense(f"{mlp}.weights_out", f"{_MLP}/Dense_1")]


_EMBEDDINGS = (
    Row("embeddings.cls_token", (CLS,)),
    Row("embeddings.position_embeddings", (POSITIONS,)),
    *dense("embeddings.patch_embeddings.projection", "embedding", "conv"),
    *norm("layernorm", "Transformer/encoder_norm"),
    *dense("classifier", "head"),
)


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
    """Returns the rows of ViT, ViTMAE and IJepa, with the names of transformers 4 or 5."""
    norms = ("layernorm_before", "layernorm_after")
    if version < 5:
        block, attention = "encoder.layer.{i}", _ATTENTION_4
        mlp = _mlp(block, ("intermediate.dense", "output.dense"))
    else:
        block, attention = "layers.{i}", _ATTENTION_5
        mlp = _mlp(block, ("mlp.fc1", "mlp.fc2"))
    pooler = dense("pooler.dense", "pre_logits")
    return (*_EMBEDDINGS, *_block(block, attention, norms), *mlp, *pooler)


def huggingface_mae_decoder() -> tuple[Row, ...]:
    """Returns the rows of the decoder of ViTMAEForPreTraining, with the names of 4 and of 5.

    Files that version 5 writes have the names of version 4, with another name of the layers.
    """
    norms, layers = ("layernorm_before", "layernorm_after"), []
    blocks = ("decoder.decoder_layers.{i}", "decoder.decoder_encoder.layer.{i}")
    for block in blocks:
        layers += _block(block, _ATTENTION_4, norms)
        layers += _mlp(block, ("intermediate.dense", "output.dense"))
    layers += _block(blocks[0], _ATTENTION_5, norms)
    layers += _mlp(blocks[0], ("mlp.fc1", "mlp.fc2"))
    return of_decoder(
        (
            *dense("decoder.decoder_embed", "decoder_embed"),
            Row("decoder.mask_token", ("decoder_mask_token",)),
            Row("decoder.decoder_pos_embed", (POSITIONS,)),
            *layers,
            *norm("decoder.decoder_norm", "Transformer/encoder_norm"),
            *dense("decoder.decoder_pred", "decoder_pred"),
        )
    )


def huggingface_deit(version: int) -> tuple[Row, ...]:
    """Returns the rows of DeiT, whose distillation token has a head of its own."""
    vit = [row for row in huggingface_vit(version) if not row.tensor.startswith("pooler.")]
    return (
        *rename(tuple(vit), ("classifier.", "cls_classifier.")),
        Row("embeddings.distillation_token", ("dist_token",)),
        *dense("distillation_classifier", "head_dist"),
    )


def huggingface_dino(version: int, is_gated: bool = False) -> tuple[Row, ...]:
    """Returns the rows of Hugging Face's DINOv2, with the names of transformers 4 or 5.

    Args:
      version: of transformers.
      is_gated: the MLP is gated.
    """
    block = "encoder.layer.{i}"
    is_old = version < 5
    mlp = _mlp(block, ("mlp.fc1", "mlp.fc2"))
    if is_gated:
        mlp = _packed_gated_mlp(block) if is_old else _gated_mlp(block)
    return (
        *_EMBEDDINGS,
        *_block(block, _ATTENTION_4 if is_old else _ATTENTION_5, ("norm1", "norm2")),
        *mlp,
        Row("embeddings.register_tokens", ("registers",)),
        *_layer_scales(block),
    )


def huggingface_dino_3(version: int) -> tuple[Row, ...]:
    """Returns the rows of Hugging Face's DINOv3, with the names of transformers 4 or 5."""
    block = "layer.{i}" if version < 5 else "model.layer.{i}"
    return (
        Row("embeddings.cls_token", (CLS,)),
        Row("embeddings.register_tokens", ("registers",)),
        *dense("embeddings.patch_embeddings", "embedding", "conv"),
        *_block(block, _ATTENTION_5, ("norm1", "norm2")),
        *_gated_mlp(block),
        *_layer_scales(block),
        *norm("norm", "Transformer/encoder_norm"),
    )


def huggingface_clip() -> tuple[Row, ...]:
    """Returns the rows of the vision tower of CLIP."""
    return (
        Row("embeddings.class_embedding", (CLS,), "token"),
        *norm("pre_layrnorm", "Transformer/pre_norm"),
        *_tower(),
        Row("visual_projection.weight", ("projection/kernel",), "linear"),
    )


def huggingface_siglip() -> tuple[Row, ...]:
    """Returns the rows of the vision tower of SigLIP."""
    attention = "MAPHead_0/MultiHeadDotProductAttention_0"
    in_proj = heads("head.attention.in_proj", attention, _QKV, "qkv")
    return (
        *_tower(),
        *dense("classifier", "head"),
        Row("head.probe", ("MAPHead_0/probe",)),
        *rename(tuple(in_proj), ("in_proj.", "in_proj_")),
        *out("head.attention.out_proj", attention),
        *norm("head.layernorm", "MAPHead_0/LayerNorm_0"),
        *_mlp("head", ("mlp.fc1", "mlp.fc2"), "MAPHead_0/MlpBlock_0"),
    )


def _tower() -> list[Row]:
    block = "encoder.layers.{i}"
    return [
        Row("embeddings.position_embedding.weight", (POSITIONS,), "table"),
        *dense("embeddings.patch_embedding", "embedding", "conv"),
        *_block(
            block,
            ("self_attn.{letter}_proj", "self_attn.out_proj"),
            ("layer_norm1", "layer_norm2"),
        ),
        *_mlp(block, ("mlp.fc1", "mlp.fc2")),
        *norm("post_layernorm", "Transformer/encoder_norm"),
    ]
