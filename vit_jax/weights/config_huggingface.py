"""The config.json and preprocessor_config.json of a Hugging Face folder."""

import dataclasses
import math
import pathlib

from vit_jax.errors import CheckpointError
from vit_jax.weights import image_processor
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.metadata import WeightsMetadata, as_text
from vit_jax.weights.tensor_properties import BIAS, Claims, height_and_width, pixel_stats_name
from vit_jax.weights.weights_folder import read_json_object

HF_GELUS = {  # Hugging Face's activation -> model.gelu.
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
HF_DEFAULTS = {  # Of the configuration classes of transformers.
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "num_attention_heads": 12,
    "image_size": 224,
}
HF_BIT = {  # The one variant of Hugging Face's Bit that is supported.
    "layer_type": "preactivation",
    "global_padding": None,
    "num_groups": 32,
    "hidden_act": "relu",
    "output_stride": 32,
    "embedding_dynamic_padding": False,
}
HUGGING_FACE = {  # Name in config.json -> property of the tensors.
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "intermediate_size": "MLP size",
    "mlp_ratio": "MLP ratio",
    "patch_size": "patch side",
    "num_channels": "channels",
    "num_register_tokens": "registers",
    "qkv_bias": BIAS,
    "num_labels": "classes",
}


def read_preprocessor(folder: pathlib.Path) -> dict:
    """Returns the options of the image processor of a Hugging Face folder; {} without a file."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            values = read_json_object(folder / name)
            return values if name.startswith("pre") else values.get("image_processor") or {}
    return {}


def from_huggingface(config: dict, preprocessor: dict, where: str) -> WeightsMetadata:
    """Returns the metadata of a Hugging Face folder.

    Args:
      config: contents of config.json.
      preprocessor: contents of preprocessor_config.json; {} if there is none.
      where: source of the values, for messages.

    Raises:
      CheckpointError: the model or its preprocessing is not supported.
    """
    kind = config.get("model_type")
    _check_huggingface(config, kind, where)
    if kind == "bit":  # Its config has no image size; the preprocessing has.
        fields = {"image_size": image_processor.huggingface_size(preprocessor, kind, where)}
    else:
        fields = _huggingface_options(config, kind, where)
    if config.get("problem_type") not in (None, "single_label_classification"):
        note = f"probabilities=softmax (problem_type is {config['problem_type']!r:.40})"
        fields.setdefault("assumed", []).append(note)
    is_classifier = "ImageClassification" in str(config.get("architectures"))
    if kind.startswith("dinov2") and is_classifier:
        fields["pool"] = "token_gap"
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


def _check_huggingface(config: dict, kind: object, where: str) -> None:
    """Raises CheckpointError for a model that is not supported."""
    if kind not in ("vit", "dinov2", "dinov2_with_registers", "bit", "deit"):
        raise CheckpointError(f"{where}: model_type {kind!r} in config.json is not supported.")
    if config.get("use_swiglu_ffn"):
        raise CheckpointError(f"{where}: SwiGLU layers (use_swiglu_ffn) are not supported.")
    for name in HF_DEFAULTS:
        if config.get(name, 0) is None:
            raise CheckpointError(f"{where}: {name} is null in config.json; expected a value.")
    required = HF_BIT if kind == "bit" else {"pooler_act": "tanh"}
    for name, value in required.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"{where}: {name} {config[name]!r} is not supported; expected {value!r}."
            )


def _huggingface_options(config: dict, kind: str, where: str) -> dict:
    """Returns the options of a Vision Transformer; `assumed` has those of transformers."""
    defaults = HF_DEFAULTS | {"layer_norm_eps": 1e-12 if kind in ("vit", "deit") else 1e-6}
    values = defaults | config
    activation = values["hidden_act"]
    if activation not in HF_GELUS:
        raise CheckpointError(
            f"{where}: hidden_act {activation!r} is not supported; "
            f"expected one of {', '.join(HF_GELUS)}."
        )
    return {
        "gelu": HF_GELUS[activation],
        "norm_eps": values["layer_norm_eps"],
        "num_heads": values["num_attention_heads"],
        "image_size": height_and_width(values["image_size"]),
        "assumed": [
            f"{name}={value} (default of transformers)"
            for name, value in defaults.items()
            if name not in config
        ],
    }


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


def claims(config: dict) -> Claims:
    """Returns the properties of the tensors that a config.json gives."""
    found = [(key, what, config[key]) for key, what in HUGGING_FACE.items() if key in config]
    if isinstance(config.get("id2label"), dict):
        found.append(("the length of id2label", "classes", len(config["id2label"])))
    return tuple(found)
