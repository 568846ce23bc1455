"""Folders of Hugging Face: which class of transformers a model becomes, and its config files."""

from collections.abc import Callable

import numpy as np

from vit_jax.config.schema import Model
from vit_jax.errors import ConfigError
from vit_jax.models.layers import GATED_MLPS
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights import formats, image_processor, write_timm
from vit_jax.weights.huggingface import MODELS, HuggingFaceModel, dino_mlp_size
from vit_jax.weights.metadata import WeightsMetadata

ACTIVATIONS = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
# Fields of `config.model` that a class must support; the others do not change the model, are in
# every config.json, or follow from these.
FIELDS = (
    *("pool", "class_token", "distill_token", "projection", "pre_logits", "mlp", "mlp_norm"),
    *("pos_embed", "rope", "pos_embed_at", "registers", "layer_scale", "pre_norm", "fc_norm"),
    *("patch_bias", "qkv_bias", "qk_norm"),
)
MAX_RATIO = 64  # Largest mlp_ratio that is tried.


def _mlp_ratio(model: ViT) -> int | None:
    """The whole ratio from which DINOv2 computes the MLP size; None if there is none."""
    size, is_gated = model.size, model.config.mlp != "mlp"
    ratios = (
        r
        for r in range(1, MAX_RATIO)
        if dino_mlp_size(size.hidden_size, r, is_gated) == size.mlp_size
    )
    return next(ratios, None)


def _image_size(model: ViT) -> int | list[int]:
    height, width = model.image_size
    return height if height == width else [height, width]


KEYS: dict[str, Callable[[ViT], object]] = {  # Key of a config.json -> its value for a model.
    "hidden_size": lambda model: model.size.hidden_size,
    "num_hidden_layers": lambda model: model.size.num_layers,
    "num_attention_heads": lambda model: model.size.num_heads,
    "layer_norm_eps": lambda model: model.config.norm_eps,
    "image_size": _image_size,
    "patch_size": lambda model: model.patch_size,
    "intermediate_size": lambda model: model.size.mlp_size,
    "mlp_ratio": _mlp_ratio,
    "use_swiglu_ffn": lambda model: model.config.mlp != "mlp",
    "use_gated_mlp": lambda model: model.config.mlp != "mlp",
    "qkv_bias": lambda model: model.config.qkv_bias == "qkv",
    "query_bias": lambda model: model.config.qkv_bias != "none",
    "key_bias": lambda model: model.config.qkv_bias == "qkv",
    "value_bias": lambda model: model.config.qkv_bias != "none",
    "num_register_tokens": lambda model: model.config.registers,
    "layerscale_value": lambda model: model.config.layer_scale,
    "rope_theta": lambda model: 100.0,
    "projection_dim": lambda model: model.config.projection or 512,
}
SHARED_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps", "image_size"),
    "patch_size",
)


def model_type_of(model: ViT | BitResNet) -> str:
    """Returns the model_type of the class that a model becomes.

    Raises:
      ConfigError: no class computes the same.
    """
    if isinstance(model, BitResNet):
        return "bit"
    model_type = _closest(model)
    _check_support(model, MODELS[model_type])
    return model_type


def _closest(model: ViT) -> str:
    config = model.config
    for model_type, is_found in (
        ("clip_vision_model", config.pre_norm),
        ("dinov3_vit", "rope" in config.pos_embed),
        ("siglip_vision_model", config.pool == "map"),
        ("deit", config.distill_token),
        ("dinov2_with_registers", config.layer_scale is not None and config.registers),
        ("dinov2", config.layer_scale is not None),
        ("ijepa", not model.has_cls),
    ):
        if is_found:
            return model_type
    return "vit"


def _check_support(model: ViT, row: HuggingFaceModel) -> None:
    """Raises ConfigError for a model that the class of a row does not compute."""
    plain, config = Model(class_token=True), vars(model.config) | {"class_token": model.has_cls}
    allows, head = dict(row.allows), row.written_head
    if head and model.num_classes and row.heads[head].pool:
        allows["pool"] = (row.heads[head].pool,)
    for name in FIELDS:
        allowed = allows.get(name, (getattr(plain, name),))
        if allowed is not None and config[name] not in allowed:
            expected = " or ".join(f"{name}={value!r}" for value in allowed)
            raise ConfigError(
                f"Hugging Face's {row.name} does not support {name}={config[name]!r}, only "
                f"{expected}."
            )
    for is_unsupported, what in (
        (model.stem is not None, "a ResNet before the encoder"),
        (model.num_classes and not head, "a head; --no_head omits it"),
        (
            config["pre_logits"] and model.num_classes,
            f"a head after pre_logits{write_timm.NO_HEAD_HINT}",
        ),
        ("layerscale_value" in row.keys and config["layer_scale"] is None, "layer_scale=None"),
        ("num_register_tokens" in row.keys and not config["registers"], "registers=0"),
        (
            "mlp_ratio" in row.keys and _mlp_ratio(model) is None,
            f"mlp_size={model.size.mlp_size}, which follows from no mlp_ratio",
        ),
    ):
        if is_unsupported:
            raise ConfigError(f"Hugging Face's {row.name} does not support {what}.")


def format_and_prefix(model: ViT | BitResNet) -> tuple[str, str]:
    """Returns the format of the tensors of a model, and their prefix."""
    row = MODELS[model_type_of(model)]
    is_tower = row.prefix == "vision_model."  # Versions 4 and 5 of transformers read it.
    is_gated = row.format == formats.HF_DINO and model.config.mlp != "mlp"
    name = formats.HF_DINO_GATED if is_gated else row.format
    return name, row.prefix if model.num_classes or is_tower else ""


def unprefixed(tensor: str) -> bool:
    """Returns True for a tensor outside of the encoder, which has no prefix."""
    return tensor.split(".")[0].endswith(("classifier", "visual_projection"))


def expected_tensors(model: ViT | BitResNet) -> dict[str, np.ndarray]:
    """Returns the tensors that a class has beside those that its outputs depend on."""
    mask_axes = MODELS[model_type_of(model)].mask_axes
    if not mask_axes:
        return {}
    shape = (*[1] * mask_axes, model.size.hidden_size)
    _, prefix = format_and_prefix(model)
    return {f"{prefix}embeddings.mask_token": np.zeros(shape, np.float32)}


def class_name(model: ViT | BitResNet) -> str:
    """Returns the class of transformers that a model becomes."""
    row = MODELS[model_type_of(model)]
    if model.num_classes:
        return row.written_head
    return f"{row.name}WithProjection" if model.config.projection else row.name


def config_json(model: ViT | BitResNet, metadata: WeightsMetadata) -> dict:
    """Returns the contents of config.json for a model and its class names."""
    names = metadata.classes or tuple(f"class {k}" for k in range(model.num_classes))
    labels = {
        "id2label": {str(k): name for k, name in enumerate(names)},
        "label2id": {name: k for k, name in enumerate(names)},
    }
    model_type = model_type_of(model)
    row = MODELS[model_type]
    values = {"architectures": [class_name(model)], "model_type": model_type}
    values |= {"num_channels": 3, "torch_dtype": "float32"} | (labels if names else {})
    if isinstance(model, BitResNet):
        width = model.width
        return values | {
            "layer_type": "preactivation",
            "depths": list(model.units),
            "embedding_size": 64 * width,
            "hidden_sizes": [256 * width * 2**b for b in range(4)],
            "num_groups": 32,
            "global_padding": None,
            "hidden_act": "relu",
        }
    config = model.config
    is_silu = config.mlp == GATED_MLPS["silu"] and "use_gated_mlp" in row.keys
    return values | {
        "hidden_act": "silu" if is_silu else ACTIVATIONS[config.gelu],
        **{key: KEYS[key](model) for key in (*SHARED_KEYS, *row.keys)},
    }


def preprocessor_json(model: ViT | BitResNet, metadata: WeightsMetadata) -> dict:
    """Returns the contents of preprocessor_config.json for a model and its preprocessing."""
    mean, std = PIXEL_STATS[model.config.pixel_stats]
    values = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    return values | image_processor.to_huggingface(
        model.image_size,
        metadata.crop,
        metadata.crop_fraction,
        metadata.crop_side,
        metadata.resample,
    )
