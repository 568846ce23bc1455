"""Models as timm builds them: which class, which of its arguments, and which table of names."""

from vit_jax.config import registry
from vit_jax.errors import ConfigError
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights import formats
from vit_jax.weights.config_timm import TIMM_POOLS

POOLS = {pool: name for name, pool in TIMM_POOLS.items()}
EPS = formats.FORMATS[formats.TIMM].norm_eps  # Of LayerNorm.
GELUS = {"erf": None, "tanh": "gelu_tanh", "quick": "quick_gelu"}
ROPES = {  # Arguments of Eva for a row of `models.rope.ROPES`.
    "dinov3": {"rope_type": "dinov3", "rope_temperature": 100.0, "rope_rotate_half": True},
    "eva02": {"ref_feat_shape": (16, 16)},
}
POSITIONS = ("learned", "none", "rope", "learned_rope")


def format_name(model: ViT | BitResNet) -> str:
    """Returns the name of the table of a model.

    Raises:
      ConfigError: timm does not have the model.
    """
    if isinstance(model, BitResNet):
        return formats.TIMM_BIT
    check_support(model)
    config = model.config
    if not is_eva(model):
        return formats.TIMM_STEM if model.stem and not model.stem.units else formats.TIMM
    if config.mlp == "mlp" or (config.rope == "eva02" and not config.mlp_norm):
        return formats.TIMM_EVA
    has_separate_qkv = config.mlp_norm and config.qkv_bias == "qv"  # Keys never have a bias there.
    return formats.TIMM_EVA_SEPARATE if has_separate_qkv else formats.TIMM_EVA_SPLIT


def is_eva(model: ViT) -> bool:
    """Returns True for a model of timm's class Eva; False for VisionTransformer."""
    return "rope" in model.config.pos_embed or model.config.qkv_bias == "qv"


def folds_cls(model: ViT | BitResNet) -> bool:
    """Returns True if timm has no position embedding for the class token of a model.

    The class token and its position embedding are then one tensor. timm's models with registers
    are so, and those of DeiT III.
    """
    if isinstance(model, BitResNet) or not model.has_cls or "learned" not in model.config.pos_embed:
        return False
    return bool(model.config.registers) or model.config.name.startswith("deit3_")


NO_HEAD_HINT = "; --no_head omits pre_logits and the head"


def check_support(model: ViT) -> None:
    """Raises ConfigError for a model that timm does not have."""
    config, in_eva = model.config, is_eva(model)
    for is_unsupported, option in (
        (config.pre_logits, f"pre_logits{NO_HEAD_HINT}"),
        (config.projection, f"projection={config.projection}"),
        (config.pool not in POOLS, f"pool={config.pool!r}"),
        (config.pos_embed not in POSITIONS, f"pos_embed={config.pos_embed!r}"),
        (config.pos_embed_at != "stem", f"pos_embed_at={config.pos_embed_at!r}"),
        (config.qk_norm, "qk_norm without bias"),
        (registry.is_user_defined(config.mlp), f"mlp={config.mlp!r}"),
        (config.pre_norm and config.patch_bias, "pre_norm with patch_bias"),
        (not config.pre_norm and not config.patch_bias, "patch_bias=False without pre_norm"),
        (config.distill_token and config.registers, "distill_token with registers"),
        (in_eva and config.distill_token, "distill_token with qkv_bias='qv' or rotary positions"),
        (in_eva and model.stem, "a ResNet before an encoder with rotary positions"),
        (in_eva and config.rope not in ROPES, f"rope={config.rope!r}"),
        (in_eva and config.mlp == "glu", "mlp='glu' with qkv_bias='qv' or rotary positions"),
        (
            in_eva and config.mlp == "mlp" and config.gelu != "erf",
            f"gelu={config.gelu!r} with qkv_bias='qv' or rotary positions",
        ),
    ):
        if is_unsupported:
            raise ConfigError(f"timm does not support {option}.")


def constructor(model: ViT | BitResNet) -> str:
    """Returns the call that builds a model in timm, with all arguments that the weights need."""
    if isinstance(model, BitResNet):
        return (
            f"timm.models.ResNetV2(layers={model.units}, width_factor={model.width}, "
            f"num_classes={model.num_classes}, stem_type='fixed', "
            "conv_layer=partial(timm.layers.StdConv2d, eps=1e-8))"
        )
    kind = _eva_arguments if is_eva(model) else _vit_arguments
    arguments, objects = kind(model)
    if model.config.norm_eps != EPS:
        objects["norm_layer"] = f"partial(torch.nn.LayerNorm, eps={model.config.norm_eps!r})"
    texts = [f"{name}={value!r}" for name, value in (_arguments(model) | arguments).items()]
    texts += [f"{name}={text}" for name, text in objects.items()]
    name = "Eva" if is_eva(model) else "VisionTransformer"
    name += "Distilled" if model.config.distill_token else ""
    return f"timm.models.{name}({', '.join(texts)})"


def _arguments(model: ViT) -> dict[str, object]:
    """Arguments that both classes have."""
    config, size = model.config, model.size
    arguments = {
        "img_size": model.image_size,
        "patch_size": model.patch_size,
        "num_classes": model.num_classes,
        "global_pool": POOLS[config.pool],
        "embed_dim": size.hidden_size,
        "depth": size.num_layers,
        "num_heads": size.num_heads,
        "mlp_ratio": mlp_ratio(size.mlp_size, size.hidden_size),
    }
    if not model.has_cls:
        arguments["class_token"] = False
    if folds_cls(model) or config.registers:
        arguments["no_embed_class"] = True
    if config.layer_scale is not None:
        arguments["init_values"] = config.layer_scale
    if config.qkv_bias == "none":
        arguments["qkv_bias"] = False
    return arguments


def _vit_arguments(model: ViT) -> tuple[dict[str, object], dict[str, str]]:
    """Arguments of VisionTransformer, and those that are Python code."""
    config, size, arguments, objects = model.config, model.size, {}, {}
    if config.fc_norm != (config.pool == "gap"):
        arguments["fc_norm"] = config.fc_norm
    if config.pos_embed == "none":
        arguments["pos_embed"] = "none"
    if config.registers:
        arguments["reg_tokens"] = config.registers
    if config.pre_norm:
        arguments["pre_norm"] = True
    if config.mlp_norm:
        arguments["scale_mlp_norm"] = True
    if config.mlp != "mlp":
        arguments["mlp_ratio"] = mlp_ratio(2 * size.mlp_size, size.hidden_size)
        objects["mlp_layer"] = "timm.layers.SwiGLUPacked"
    activation = GELUS[config.gelu] if config.mlp in ("mlp", "glu") else "silu"
    if activation:
        arguments["act_layer"] = activation
    if model.stem:
        backbone = f"timm.models.vision_transformer_hybrid._resnetv2({model.stem.units or ()})"
        objects["embed_layer"] = f"partial(timm.layers.HybridEmbed, backbone={backbone})"
    return arguments, objects


def _eva_arguments(model: ViT) -> tuple[dict[str, object], dict[str, str]]:
    """Arguments of Eva, and those that are Python code."""
    config, table, arguments = model.config, format_name(model), {}
    if config.fc_norm != (config.pool == "gap"):
        arguments["use_fc_norm"] = config.fc_norm
    if config.registers:
        arguments["num_reg_tokens"] = config.registers
    if config.pre_norm:
        arguments["use_pre_transformer_norm"] = True
    if config.qkv_bias == "qkv":
        arguments["attn_type"] = "rope"  # The attention whose keys have a bias.
    if config.mlp != "mlp":
        arguments["swiglu_mlp"] = True
    if config.mlp_norm:
        arguments["scale_mlp"] = True
    elif table == formats.TIMM_EVA_SPLIT:
        arguments["swiglu_align_to"] = 1
    if table == formats.TIMM_EVA_SEPARATE:
        arguments["qkv_fused"] = False
    if "learned" not in config.pos_embed:
        arguments["use_abs_pos_emb"] = False
    if "rope" in config.pos_embed:
        arguments |= {"use_rot_pos_emb": True} | ROPES[config.rope]
    return arguments, {}


def mlp_ratio(part: int, whole: int) -> float:
    """Returns the ratio from which timm computes `part` as int(whole * ratio)."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else (part + 0.5) / whole
