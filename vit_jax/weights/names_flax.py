"""Name tables of Flax checkpoints: this package, the official code, big_vision and BiT."""

from vit_jax.weights.tensor_layouts import BLOCK, CLS, POSITIONS, UNIT, Row

LINEN = (
    "MultiHeadDotProductAttention_0",
    "LayerNorm_1",
    "MlpBlock_0",
)  # This package and big_vision.
PUBLISHED = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")


def flax_block(mha: str, norm: str, mlp: str, block: str = BLOCK) -> list[Row]:
    """Returns the rows of an encoder layer, given the names of its parts and of the layer."""
    modules = [
        ("LayerNorm_0", "LayerNorm_0", ("scale", "bias")),
        (norm, "LayerNorm_1", ("scale", "bias")),
        *(
            (f"{mlp}/{name}", f"MlpBlock_0/{name}", ("kernel", "bias"))
            for name in ("Dense_0", "Dense_1", "Dense_gate")
        ),
        (f"{mlp}/LayerNorm_0", "MlpBlock_0/LayerNorm_0", ("scale", "bias")),
        *((f"LayerScale_{n}", f"LayerScale_{n}", ("scale",)) for n in (0, 1)),
    ]
    for name in ("query", "key", "value", "out"):
        param = f"MultiHeadDotProductAttention_0/{name}"
        modules.append((f"{mha}/{name}", param, ("kernel", "bias")))
    for name in ("query_ln", "key_ln"):
        modules.append((f"{mha}/{name}", f"MultiHeadDotProductAttention_0/{name}", ("scale",)))
    modules.append((f"{mha}/relative", "MultiHeadDotProductAttention_0/relative", ()))
    rows = [
        Row(f"{block}/{tensor}/{leaf}", (f"{BLOCK}/{param}/{leaf}",))
        for tensor, param, leaves in modules
        for leaf in leaves
    ]
    relative = "MultiHeadDotProductAttention_0/relative/relative_embedding"
    return [*rows, Row(f"{block}/{mha}/relative/relative_embedding", (f"{BLOCK}/{relative}",))]


def _same_names(*names: str) -> list[Row]:
    return [Row(name, (name,)) for name in names]


def _flax_outer() -> list[Row]:
    """Rows of everything but encoder layers, position embeddings and ResNet stem."""
    pool = "MAPHead_0"
    attention = f"{pool}/MultiHeadDotProductAttention_0"
    modules = ["embedding", "pre_logits", "head", "head_dist", f"{pool}/MlpBlock_0/Dense_0"]
    modules += [f"{pool}/MlpBlock_0/Dense_1"]
    modules += [f"{attention}/{name}" for name in ("query", "key", "value", "out")]
    rows = _same_names(*(f"{module}/{leaf}" for module in modules for leaf in ("kernel", "bias")))
    rows += _same_names(CLS, "dist_token", "registers", "projection/kernel", f"{pool}/probe")
    rows += _same_names(f"{attention}/query_ln/scale", f"{attention}/key_ln/scale")
    norms = ("Transformer/pre_norm", "Transformer/encoder_norm", "fc_norm", f"{pool}/LayerNorm_0")
    for norm in norms:
        rows += _same_names(f"{norm}/scale", f"{norm}/bias")
    return rows


def _flax_positions() -> list[Row]:
    """Rows of position embeddings: at the stem, and at each layer (Table 8)."""
    modules = ("Transformer/posembed_input", "Transformer/posembed_{i}")
    leaves = ("pos_embedding", "x_embedding", "y_embedding")
    return _same_names(*(f"{module}/{leaf}" for module in modules for leaf in leaves))


def _flax_stem() -> list[Row]:
    """Rows of the ResNet before a hybrid."""
    convs = ("conv1", "conv2", "conv3", "conv_proj")
    norms = ("gn1", "gn2", "gn3", "gn_proj")
    rows = _same_names("conv_root/kernel", *(f"{UNIT}/{conv}/kernel" for conv in convs))
    for norm in ("gn_root", *(f"{UNIT}/{norm}" for norm in norms)):
        rows += [Row(f"{norm}/{leaf}", (f"{norm}/{leaf}",), "vector") for leaf in ("scale", "bias")]
    return rows


def bit_npz() -> tuple[Row, ...]:
    """Returns the rows of the published BiT ResNets."""
    root, unit, conv = "resnet", "resnet/block{b}/unit{u:02d}", "standardized_conv2d/kernel"
    rows = [Row(f"{root}/root_block/{conv}", ("conv_root/kernel",))]
    norms = [(f"{root}/group_norm", "gn_final")]
    for n, letter in enumerate("abc", 1):
        rows.append(Row(f"{unit}/{letter}/{conv}", (f"{UNIT}/conv{n}/kernel",)))
        norms.append((f"{unit}/{letter}/group_norm", f"{UNIT}/gn{n}"))
    rows.append(Row(f"{unit}/a/proj/{conv}", (f"{UNIT}/conv_proj/kernel",)))
    for tensor, param in norms:
        rows.append(Row(f"{tensor}/gamma", (f"{param}/scale",)))
        rows.append(Row(f"{tensor}/beta", (f"{param}/bias",)))
    rows.append(Row(f"{root}/head/conv2d/kernel", ("head/kernel",), "conv_of_linear"))
    rows.append(Row(f"{root}/head/conv2d/bias", ("head/bias",)))
    return tuple(rows)


def flax_vit(spelling: tuple[str, str, str]) -> tuple[Row, ...]:
    """Returns the rows of a ViT or hybrid, with blocks named as in LINEN or PUBLISHED."""
    return (*flax_block(*spelling), *_flax_outer(), *_flax_positions(), *_flax_stem())


def big_vision() -> tuple[Row, ...]:
    """Returns the rows of a big_vision ViT; its class token has no position embedding."""
    return (*flax_block(*LINEN), *_flax_outer(), Row("pos_embedding", (POSITIONS,)))
