"""The section `model` of a config: its fields, defaults, meaning and allowed values."""

import dataclasses

from vit_jax.config.fields import field

FROM_NAME = "; None takes it from the name (Table 1)."


@dataclasses.dataclass(frozen=True)
class Model:
    """config.model: the options of `create_model`, under the same names."""

    name: str = field(
        "vit_b16", "Name of a model (`vit_jax.list_models()`); auto for the model of `init.path`."
    )
    patch: int | None = field(
        None, "Patch side in pixels; None takes it from the name.", least=1, most=2**10
    )
    num_layers: int | None = field(None, "Number of layers" + FROM_NAME, least=1, most=2**10)
    hidden_size: int | None = field(None, "Width D" + FROM_NAME, least=1, most=2**16)
    mlp_size: int | None = field(None, "Width of the MLP" + FROM_NAME, least=1, most=2**18)
    num_heads: int | None = field(None, "Number of heads" + FROM_NAME, least=1, most=2**10)
    pool: str = field(
        "token",
        "Pooling: class token, mean of patches (Figure 9), attention pooling, or token and mean.",
        choices=("token", "gap", "map", "token_gap"),
    )
    class_token: bool | None = field(
        None, "Add a class token; None adds one if the pooling needs it."
    )
    distill_token: bool = field(
        False,
        "Add a distillation token with its own head; pooling and logits are means of those of the "
        "class token and of this token (arXiv:2012.12877).",
    )
    projection: int | None = field(
        None,
        "Width of a linear map without bias after pooling (CLIP, arXiv:2103.00020).",
        least=1,
        most=2**16,
    )
    pre_logits: bool = field(False, "Add a tanh layer before the head (pre-training, section 3.1).")
    dropout: float = field(0.0, "Dropout rate (Table 3).", least=0, most=0.99)
    drop_path: float = field(
        0.0, "Rate of stochastic depth at the last layer; linear in depth.", least=0, most=0.99
    )
    mlp: str = field("mlp", "MLP of a layer.", table="vit_jax.models.layers:MLPS")
    mlp_norm: bool = field(
        False, "Apply LayerNorm before the last layer of the MLP (EVA-02, arXiv:2303.11331)."
    )
    gelu: str = field(
        "tanh",
        "GELU by tanh, as in the official code; exact (erf), as in timm; or x sigmoid(1.702 x) "
        "(quick), as in CLIP.",
        choices=("tanh", "erf", "quick"),
    )
    norm_eps: float = field(
        1e-6, "Epsilon of LayerNorm; 1e-12 in Hugging Face's ViT.", above=0, most=1
    )
    pos_embed: str = field(
        "learned",
        "Position embedding (Table 8); sincos (arXiv:2205.01580) and sincos_mae (arXiv:2111.06377) "
        "are fixed; rope rotates queries and keys (arXiv:2104.09864), learned_rope does both.",
        choices=(
            *("learned", "learned_2d", "relative", "sincos", "sincos_mae"),
            *("none", "rope", "learned_rope"),
        ),
    )
    rope: str = field(
        "dinov3",
        "Angles of rotary positions, for a pos_embed with rope.",
        table="vit_jax.models.rope:ROPES",
    )
    pos_embed_at: str = field(
        "stem",
        "Where position embeddings are added: once (stem), before every layer with separate "
        "embeddings (layers), or before every layer with the same embedding (shared); Table 8.",
        choices=("stem", "layers", "shared"),
    )
    pos_embed_std: float | None = field(
        0.02,
        "Standard deviation of initial position embeddings; None for 1/sqrt(D) (big_vision).",
        above=0,
        most=1,
    )
    registers: int = field(0, "Number of register tokens (arXiv:2309.16588).", least=0, most=2**12)
    layer_scale: float | None = field(
        None, "Initial value of LayerScale (arXiv:2103.17239); None switches it off.", least=0
    )
    pre_norm: bool = field(
        False, "Apply LayerNorm before the first layer (CLIP, arXiv:2103.00020)."
    )
    fc_norm: bool = field(
        False, "Apply the last LayerNorm after pooling instead of before (arXiv:2111.06377)."
    )
    patch_bias: bool = field(True, "Add a bias to the patch embeddings.")
    qkv_bias: str = field(
        "qkv",
        "Biases of queries, keys and values: all, all but those of the keys, or none.",
        choices=("qkv", "qv", "none"),
    )
    qk_norm: bool = field(False, "Apply LayerNorm to queries and keys (arXiv:2302.05442).")
    pixel_stats: str = field(
        "half",
        "Mean and standard deviation that pixels are normalised with.",
        choices=("half", "imagenet", "clip", "unit"),
    )
    head_std: float = field(
        0.0,
        "Standard deviation of the initial kernel of the head; 0 for zeros. Linear probes of "
        "arXiv:2111.06377 have 0.01.",
        least=0,
        most=1,
    )
    head_norm: bool = field(
        False,
        "Standardise the input of the head by mean and variance over training images, measured "
        "before the first step: the BatchNorm of linear probes (arXiv:2111.06377).",
    )
    head_bias: float = field(
        0.0, "Initial bias of the head: -10 or -6.9 for the sigmoid loss (arXiv:2106.10270)."
    )
    dtype: str = field(
        "float32",
        "Dtype of the computation; auto is bfloat16 on accelerators and float32 on CPUs.",
        choices=("auto", "float32", "bfloat16"),
    )
    scan: bool = field(False, "Compile one layer and loop over it, which compiles L times less.")
    remat: str = field(
        "none",
        "What the backward pass recomputes to save memory: nothing, everything except matrix "
        "products (dots), or everything (full).",
        choices=("none", "dots", "full"),
    )
    kernels: str = field(
        "auto",
        "Implementation of matrix products and attention: plain (XLA's defaults), cpu (fastest on "
        "CPUs) or cudnn (attention by cuDNN); auto is cpu on CPUs and plain elsewhere.",
        choices=("auto", "plain", "cpu", "cudnn"),
    )
