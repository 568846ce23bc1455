"""The config.json beside weights of timm."""

import re

from vit_jax.errors import CheckpointError
from vit_jax.weights import image_processor
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.config_huggingface import HF_GELUS
from vit_jax.weights.metadata import WeightsMetadata, as_text
from vit_jax.weights.tensor_properties import (
    BIAS,
    GATE,
    NORMS,
    Claims,
    height_and_width,
    pixel_stats_name,
)

TIMM_POOLS = {"token": "token", "avg": "gap", "map": "map"}
TIMM = {"num_classes": "classes", "num_features": "width"}
_BEFORE, _POOLED, _IN_MLP = NORMS
TIMM_ARGUMENTS = {  # The same in model_args.
    "embed_dim": "width",
    "depth": "layers",
    "mlp_ratio": "MLP ratio",
    "patch_size": "patch side",
    "in_chans": "channels",
    "reg_tokens": "registers",
    "num_reg_tokens": "registers",
    "qkv_bias": BIAS,
    "num_classes": "classes",
    "swiglu_mlp": GATE,
    **dict.fromkeys(("pre_norm", "use_pre_transformer_norm"), _BEFORE),
    **dict.fromkeys(("fc_norm", "use_fc_norm"), _POOLED),
    **dict.fromkeys(("scale_mlp", "scale_mlp_norm"), _IN_MLP),
}
# Arguments of timm's models that are read elsewhere, follow from the tensors, or only matter in
# training.
TIMM_HARMLESS = (
    r"num_heads|act_layer|global_pool|img_size|class_token|no_embed_class|init_values|qk_norm|"
    r"use_post_transformer_norm|use_abs_pos_emb|qkv_fused|"
    r".*_rate|drop_.*|weight_init|fix_init|strict_img_size|dynamic_img_size|pretrained.*|features.*"
)
# Names of timm's models that compute something else with tensors of the same names and shapes.
TIMM_UNSUPPORTED = r".*(_rope_(?!reg)|_pe_|_rpn_|eva02_enormous|beit|aimv2|sapiens2).*"
TIMM_GELUS = (  # Pattern of an architecture -> GELU, for families of which timm has two.
    (r"vit_(base_patch32|giantopt_patch16|so400m_patch16)_siglip_.*", "tanh"),
    (r"vit_large_patch16_siglip_(gap_)?512", "tanh"),
    (r".*_(siglip|map)_.*", "erf"),
)


def from_timm(config: dict, where: str) -> WeightsMetadata:
    """Returns the metadata of the config.json beside timm's weights.

    Raises:
      CheckpointError: the model or its preprocessing is not supported.
    """
    values = config.get("pretrained_cfg") or config
    if re.fullmatch(TIMM_UNSUPPORTED, str(config.get("architecture"))):
        raise CheckpointError(
            f"{where}: architecture {config['architecture']!r:.80} in config.json is not "
            "supported: it has other rotary positions, or its layers compute something else."
        )
    fields: dict = {"gelu": _gelu(str(config.get("architecture")))}
    for name in ("input_size", "crop_pct"):
        pair = [values.get(name), values.get(f"test_{name}")]
        if pair[1] not in (None, pair[0]):
            used, other = (as_text(tuple(v) if isinstance(v, list) else v) for v in pair)
            fields.setdefault("assumed", []).append(f"{name}={used} (test_{name} is {other})")
    if "mean" in values and "std" in values:
        fields["pixel_stats"] = pixel_stats_name(values["mean"], values["std"], where)
    arguments = config.get("model_args") or {}
    if arguments.get("img_size") is not None:
        fields["image_size"] = height_and_width(arguments["img_size"])
    elif values.get("input_size") is not None:
        _, *fields["image_size"] = values["input_size"]
    fields |= image_processor.from_timm(values, where)
    labels = (
        values.get("label_descriptions") or values.get("label_names") or config.get("label_names")
    )
    if isinstance(labels, list):
        fields["classes"] = labels
    if "num_heads" in arguments:
        if arguments["num_heads"] is None:
            raise CheckpointError(f"{where}: model_args.num_heads is null in config.json.")
        fields["num_heads"] = arguments["num_heads"]
    for field, key, value, choices in (
        ("gelu", "act_layer", arguments.get("act_layer"), HF_GELUS | {"gelu_tanh": "tanh"}),
        ("pool", "global_pool", config.get("global_pool"), TIMM_POOLS),
    ):
        if value and value not in choices:
            raise CheckpointError(
                f"{where}: {key} {value!r} in config.json is not supported; "
                f"expected one of {', '.join(choices)}."
            )
        fields[field] = choices.get(value) or fields.get(field)
    return metadata_lib.from_json(fields, where)


def _gelu(architecture: str) -> str | None:
    """The GELU of an architecture; None if that of its family or of timm applies."""
    matches = (gelu for pattern, gelu in TIMM_GELUS if re.fullmatch(pattern, architecture))
    return next(matches, None)


def claims(config: dict, where: str) -> Claims:
    """Returns the properties of the tensors that a config.json gives.

    Raises:
      CheckpointError: an argument of the model is not supported.
    """
    arguments = config.get("model_args") or {}
    for name, value in arguments.items():
        if value and name not in TIMM_ARGUMENTS and not re.fullmatch(TIMM_HARMLESS, name):
            raise CheckpointError(
                f"{where}: model_args.{name} is {str(value)[:80]!r} in config.json; this option is "
                "not supported."
            )
    found = [(key, what, config[key]) for key, what in TIMM.items() if key in config]
    for key, what in TIMM_ARGUMENTS.items():
        if arguments.get(key) is not None:
            found.append((f"model_args.{key}", what, arguments[key]))
    return tuple(found)


def architecture(config: dict) -> str:
    """Returns the architecture with the tag of its weights, such as vit_base_patch16_224.mae."""
    tag = (config.get("pretrained_cfg") or {}).get("tag")
    return f"{config['architecture']}.{tag}" if tag else str(config["architecture"])
