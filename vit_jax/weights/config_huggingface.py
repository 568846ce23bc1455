"""The config.json and preprocessor_config.json of a Hugging Face folder."""

import dataclasses
import math
import pathlib

from vit_jax.errors import CheckpointError, shown
from vit_jax.models.layers import GATED_MLPS
from vit_jax.weights import image_processor
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.huggingface import (
    MODELS,
    TOWERS,
    HuggingFaceModel,
    dino_mlp_size,
    find_model,
    find_output,
)
from vit_jax.weights.metadata import WeightsMetadata, as_text
from vit_jax.weights.tensor_properties import (
    BIASES,
    GATE,
    PROJECTION,
    Claims,
    height_and_width,
    pixel_stats_name,
)
from vit_jax.weights.weights_folder import read_json_object

HF_GELUS = {  # Hugging Face's activation -> model.gelu.
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "quick_gelu": "quick",
}
# Keys of images and texts together that are of the images too.
SHARED_BY_TOWERS = ("architectures", "projection_dim", "id2label", "label2id", "problem_type")
CLAIMS = {  # Key in config.json -> property of the tensors.
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "intermediate_size": "MLP size",
    "mlp_ratio": "MLP ratio",
    "patch_size": "patch side",
    "num_channels": "channels",
    "num_register_tokens": "registers",
    "use_gated_mlp": GATE,
    "use_swiglu_ffn": GATE,
    "projection_dim": "projection width",
    "num_labels": "classes",
    "decoder_num_attention_heads": "decoder heads",
}


def read_preprocessor(folder: pathlib.Path) -> dict:
    """Returns the options of the image processor of a Hugging Face folder; {} without a file."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            values = read_json_object(folder / name)
            return values if name.startswith("pre") else values.get("image_processor") or {}
    return {}


def tower_config(config: dict) -> dict:
    """Returns the config of the tower of images in a config of images and texts, or the config."""
    if config.get("model_type") not in TOWERS:
        return config
    shared = {key: config[key] for key in SHARED_BY_TOWERS if key in config}
    tower = {**(config.get("vision_config") or {}), "projection_dim": 512, **shared}
    return tower | {"model_type": TOWERS[config["model_type"]]}


def from_huggingface(config: dict, preprocessor: dict, where: str) -> WeightsMetadata:
    """Returns the metadata of a Hugging Face folder.

    Args:
      config: contents of config.json, or its `tower_config`.
      preprocessor: contents of preprocessor_config.json; {} if there is none.
      where: source of the values, for messages.

    Raises:
      CheckpointError: the model or its preprocessing is not supported.
    """
    kind = config.get("model_type")
    model = find_model(kind, where)
    _check_required(config, model, where)
    if kind == "bit":  # Its config has no image size; the preprocessing has.
        fields = {"image_size": image_processor.huggingface_size(preprocessor, kind, where)}
    else:
        fields = _model_options(config, model, where)
    if config.get("problem_type") not in (None, "single_label_classification"):
        note = f"probabilities=softmax (problem_type is {config['problem_type']!r:.40})"
        fields.setdefault("assumed", []).append(note)
    fields["classes"] = _huggingface_classes(config, where)
    metadata = metadata_lib.from_json(fields, where)
    size = metadata.image_size
    if not preprocessor:
        defaults = image_processor.from_huggingface({}, kind, size, where)
        return metadata.assuming("default of transformers", **defaults)
    fields |= _from_preprocessor(preprocessor, where)
    fields |= image_processor.from_huggingface(preprocessor, kind, size, where)
    metadata = metadata_lib.from_json(fields, where)
    own_size = image_processor.huggingface_size(preprocessor, kind, where)
    if own_size == size:
        return metadata
    source = f"config.json; preprocessor_config.json has {as_text(own_size)}"
    return dataclasses.replace(metadata, image_size=None).assuming(source, image_size=size)


def _check_required(config: dict, model: HuggingFaceModel, where: str) -> None:
    """Raises CheckpointError for a model with an option that is not supported."""
    for name in model.defaults:
        if config.get(name, 0) is None:
            raise CheckpointError(f"{where}: {name} is null in config.json; expected a value.")
    for name, value in model.required.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"{where}: {name} {shown(config[name])} is not supported; expected {value!r}."
            )


def _model_options(config: dict, model: HuggingFaceModel, where: str) -> dict:
    """Returns the options of a Vision Transformer; `assumed` has those of transformers."""
    values = {**model.defaults, **config}
    positions = {
        name: model.allows[name][0] for name in ("pos_embed", "rope") if name in model.allows
    }
    return positions | {
        **_mlp_options(values, where),
        "norm_eps": values["layer_norm_eps"],
        "num_heads": values["num_attention_heads"],
        "image_size": height_and_width(values["image_size"]),
        "pool": find_output(model, config.get("architectures"), where).pool,
        "assumed": [
            f"{name}={value} (default of transformers)"
            for name, value in model.defaults.items()
            if name not in config
        ],
    }


def _mlp_options(values: dict, where: str) -> dict:
    """Returns the GELU, and the kind of a gated MLP."""
    activation, is_gated = values["hidden_act"], values.get("use_gated_mlp")
    # DINOv2's gate does not depend on `hidden_act`.
    if values.get("use_swiglu_ffn") or (is_gated and activation == "silu"):
        return {"mlp": GATED_MLPS["silu"], "gelu": HF_GELUS.get(activation, "erf")}
    if activation not in HF_GELUS:
        expected = ", ".join((*HF_GELUS, *["silu"] * bool(is_gated)))
        raise CheckpointError(
            f"{where}: hidden_act {shown(activation)} is not supported; expected one of {expected}."
        )
    return {"gelu": HF_GELUS[activation], "mlp": GATED_MLPS["gelu"] if is_gated else None}


def _huggingface_classes(config: dict, where: str) -> list | None:
    """The class names; None if there are none but LABEL_0, LABEL_1, ..."""
    labels, numbers = config.get("id2label"), config.get("label2id")
    if not isinstance(labels, dict) or all(str(v).startswith("LABEL_") for v in labels.values()):
        return None
    names = _in_order(labels, where)
    for name, number in numbers.items() if isinstance(numbers, dict) else ():
        if labels.get(str(number)) != name:
            raise CheckpointError(
                f"{where}: label2id in config.json has {number!r:.20} for {name!r:.40}, which "
                f"contradicts id2label: {labels.get(str(number))!r:.40}."
            )
    return names


def _in_order(labels: dict, where: str) -> list[str]:
    """The values of id2label in the order of its keys, which must be 0, 1, ..."""
    expected = [str(k) for k in range(len(labels))]
    if set(labels) != set(expected):
        first = next(key for key in sorted(labels, key=lambda key: (len(key), key)))
        missing = next(key for key in expected if key not in labels)
        raise CheckpointError(
            f"{where}: id2label in config.json counts from {first}, without {missing}; number its "
            f"names by the outputs, 0 to {len(labels) - 1}."
        )
    return [labels[key] for key in expected]


def _from_preprocessor(values: dict, where: str) -> dict:
    """Returns the pixel statistics."""
    fields = {}
    for name in ("do_pad", "do_flip_channel_order", "do_grayscale", "offset"):
        if values.get(name):
            raise CheckpointError(f"{where}: {name} in preprocessor_config.json is not supported.")
    scale = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1
    if not values.get("do_normalize", True):
        raise CheckpointError(f"{where}: do_normalize is false; expected true.")
    if not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        raise CheckpointError(
            f"{where}: pixels are multiplied by {scale} (do_rescale, rescale_factor); "
            "expected 1/255."
        )
    mean, std = values.get("image_mean"), values.get("image_std")
    if (mean is None) != (std is None):
        raise CheckpointError(
            f"{where}: image_mean is {mean} and image_std is {std} in preprocessor_config.json; "
            "expected both or neither."
        )
    if mean is not None:
        fields["pixel_stats"] = pixel_stats_name(mean, std, where)
    return fields


def unused_tensors(config: dict, where: str) -> str:
    """Returns the pattern of tensors that the class of a config.json has but does not use."""
    model = find_model(config.get("model_type"), where)
    return find_output(model, config.get("architectures"), where).unused


def claims(config: dict) -> Claims:
    """Returns the properties of the tensors that a config.json gives."""
    kind = config["model_type"]
    found = [(f"{what} of {kind}", what, value) for what, value in MODELS[kind].tensors.items()]
    found += _bias_claims(config, MODELS[kind])
    names = config.get("architectures")
    for name in names if isinstance(names, list) else ():
        if str(name) == "CLIPModel" or str(name).endswith("WithProjection"):
            found.append((f"projection of {shown(name)}", PROJECTION, True))
    found += [(key, what, config[key]) for key, what in CLAIMS.items() if key in config]
    if config.get("use_swiglu_ffn") and {"hidden_size", "mlp_ratio"} <= set(config):
        found = [claim for claim in found if claim[0] != "mlp_ratio"]
        size = dino_mlp_size(config["hidden_size"], config["mlp_ratio"], is_gated=True)
        found.append(("the MLP size of mlp_ratio and use_swiglu_ffn", "MLP size", size))
    if isinstance(config.get("id2label"), dict):
        found.append(("the length of id2label", "classes", len(config["id2label"])))
    return tuple(found)


def _bias_claims(config: dict, model: HuggingFaceModel) -> list[tuple]:
    """The biases of queries, keys and values, for which there is one key or three."""
    if "query_bias" in model.keys:
        defaults = {"query": True, "key": False, "value": True}
        keys = {name: f"{name}_bias" for name in BIASES}
    else:
        defaults, keys = dict.fromkeys(BIASES, True), dict.fromkeys(BIASES, "qkv_bias")
    return [
        (keys[name], what, config.get(keys[name], defaults[name])) for name, what in BIASES.items()
    ]
