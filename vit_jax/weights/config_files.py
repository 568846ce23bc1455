"""The config.json beside weights of Hugging Face or timm: its metadata, and its claims."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.errors import CheckpointError
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.weights import image_processor
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.archive import Archive
from vit_jax.weights.file_kinds import NPZ
from vit_jax.weights.metadata import WeightsMetadata, as_text
from vit_jax.weights.tensor_layouts import num_layers
from vit_jax.weights.weights_folder import ShardedArchive, read_json_object

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
TIMM_POOLS = {"token": "token", "avg": "gap", "map": "map"}
BLOCK = "Transformer/encoderblock_0"
BIAS = "bias of queries, keys and values"
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
TIMM = {"num_classes": "classes", "num_features": "width"}
TIMM_ARGUMENTS = {  # The same in model_args.
    "embed_dim": "width",
    "depth": "layers",
    "mlp_ratio": "MLP ratio",
    "patch_size": "patch side",
    "in_chans": "channels",
    "reg_tokens": "registers",
    "qkv_bias": BIAS,
    "num_classes": "classes",
}
# Arguments of timm's models that are read elsewhere, follow from the tensors, or only matter in
# training.
TIMM_HARMLESS = (
    r"num_heads|act_layer|global_pool|img_size|class_token|no_embed_class|init_values|qk_norm|"
    r".*_rate|drop_.*|weight_init|fix_init|strict_img_size|dynamic_img_size|pretrained.*|features.*"
)


# Names of timm's models that compute something else with tensors of the same names and shapes.
TIMM_UNSUPPORTED = r".*(rope|dinov3|eva\d|_pe_|quickgelu).*"


class ConfigFile(NamedTuple):
    """Contents of a config.json.

    Attributes:
      metadata: options of the model that the tensors do not determine.
      kind: model_type (Hugging Face) or architecture (timm); '' without a file.
      claims: properties of the tensors: (name in the file, property, value).
    """

    metadata: WeightsMetadata = WeightsMetadata()
    kind: str = ""
    claims: tuple[tuple[str, str, object], ...] = ()


def read_config(archive: Archive | ShardedArchive, path: pathlib.Path) -> ConfigFile:
    """Returns the metadata inside a weights file, or that of the config.json beside it.

    Raises:
      CheckpointError: the model or its preprocessing is not supported, or a value is not allowed.
    """
    if archive.metadata:
        return ConfigFile(metadata_lib.from_json(archive.metadata, str(archive.path)))
    folder = archive.path.parent
    if archive.path.suffix == NPZ or not (folder / "config.json").is_file():
        return ConfigFile()
    config, where = read_json_object(folder / "config.json"), str(folder)
    try:
        if "model_type" in config:
            metadata = from_huggingface(config, _read_preprocessor(folder), where)
            return ConfigFile(metadata, str(config["model_type"]), _huggingface_claims(config))
        if "architecture" in config:
            metadata = from_timm(config, where)
            return ConfigFile(metadata, str(config["architecture"]), _timm_claims(config, where))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{where}: config.json has an invalid value ({error}).") from error
    if path.is_dir():
        raise CheckpointError(
            f"{where}: config.json has neither model_type (Hugging Face) nor architecture (timm)."
        )
    return ConfigFile()


def _read_preprocessor(folder: pathlib.Path) -> dict:
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
        "image_size": _pair(values["image_size"]),
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
        fields["pixel_stats"] = _pixel_stats_name(mean, std, where)
    return fields


def from_timm(config: dict, where: str) -> WeightsMetadata:
    """Returns the metadata of the config.json beside timm's weights.

    Raises:
      CheckpointError: the model or its preprocessing is not supported.
    """
    values = config.get("pretrained_cfg") or config
    if re.fullmatch(TIMM_UNSUPPORTED, str(config.get("architecture"))):
        raise CheckpointError(
            f"{where}: architecture {config['architecture']!r:.80} in config.json is not "
            "supported: it has rotary positions, or an activation other than GELU."
        )
    fields: dict = {}
    for name in ("input_size", "crop_pct"):
        pair = [values.get(name), values.get(f"test_{name}")]
        if pair[1] not in (None, pair[0]):
            used, other = (as_text(tuple(v) if isinstance(v, list) else v) for v in pair)
            fields.setdefault("assumed", []).append(f"{name}={used} (test_{name} is {other})")
    if "mean" in values and "std" in values:
        fields["pixel_stats"] = _pixel_stats_name(values["mean"], values["std"], where)
    arguments = config.get("model_args") or {}
    if arguments.get("img_size") is not None:
        fields["image_size"] = _pair(arguments["img_size"])
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
        fields[field] = choices.get(value)
    return metadata_lib.from_json(fields, where)


def _pixel_stats_name(mean, std, where: str) -> str:
    """The `pixel_stats` of a mean and a standard deviation of RGB, or of all channels."""
    mean, std = ([each] * 3 if isinstance(each, float) else each for each in (mean, std))
    given = (*mean, *std)
    for name, (known_mean, known_std) in PIXEL_STATS.items():
        known = (*known_mean, *known_std)
        if len(given) == 6 and all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(known, given)):
            return name
    raise CheckpointError(
        f"{where}: pixel statistics of mean {list(mean)} and standard deviation {list(std)} are "
        f"not supported; expected those of {', '.join(PIXEL_STATS)}."
    )


def _pair(size) -> list:
    return list(size) if isinstance(size, list | tuple) else [size, size]


def _huggingface_claims(config: dict) -> tuple:
    claims = [(key, what, config[key]) for key, what in HUGGING_FACE.items() if key in config]
    if isinstance(config.get("id2label"), dict):
        claims.append(("the length of id2label", "classes", len(config["id2label"])))
    return tuple(claims)


def _timm_claims(config: dict, where: str) -> tuple:
    arguments = config.get("model_args") or {}
    for name, value in arguments.items():
        if value and name not in TIMM_ARGUMENTS and not re.fullmatch(TIMM_HARMLESS, name):
            raise CheckpointError(
                f"{where}: model_args.{name} is {str(value)[:80]!r} in config.json; this option is "
                "not supported."
            )
    claims = [(key, what, config[key]) for key, what in TIMM.items() if key in config]
    for key, what in TIMM_ARGUMENTS.items():
        if arguments.get(key) is not None:
            claims.append((f"model_args.{key}", what, arguments[key]))
    return tuple(claims)


def check_claims(config: ConfigFile, shapes: Mapping[str, tuple], where: str) -> None:
    """Raises CheckpointError if config.json contradicts the tensors; lists all contradictions.

    Args:
      config: contents of the file.
      shapes: shape by parameter name.
      where: the folder, for the message.
    """
    actual = _properties(shapes)
    problems = [
        f"{name} is {value!r:.80}, the tensors have {what} {actual[what]:g}"
        for name, what, value in config.claims
        if what in actual and not _agrees(what, value, actual)
    ]
    if problems:
        raise CheckpointError(
            f"{where}: config.json contradicts the tensors: {'; '.join(problems)}."
        )


def _agrees(what: str, value: object, actual: Mapping[str, float]) -> bool:
    if what == "patch side" and isinstance(value, list) and len(value) == 2:
        value = value[0] if value[0] == value[1] else None
    if not isinstance(value, int | float) or isinstance(value, bool) != (what == BIAS):
        return False
    if what == "MLP ratio":
        return 0 < value < 1000 and int(actual["width"] * value) == actual["MLP size"]
    return value == actual[what]


def _properties(shapes: Mapping[str, tuple]) -> dict[str, float]:
    """Returns the properties of a model that its shapes give."""
    found: dict[str, float] = {}
    stem = shapes.get("conv_root/kernel")
    patches = shapes.get("embedding/kernel")
    if patches and len(patches) == 4:
        found |= {"width": patches[3], "layers": num_layers(shapes)}
        found["registers"] = shapes.get("registers", (1, 0))[1]
        query = f"{BLOCK}/MultiHeadDotProductAttention_0/query"
        found[BIAS] = f"{query}/bias" in shapes
        if f"{BLOCK}/MlpBlock_0/Dense_0/kernel" in shapes:
            size = shapes[f"{BLOCK}/MlpBlock_0/Dense_0/kernel"][-1]
            found |= {"MLP size": size, "MLP ratio": size / patches[3]}
        if not stem:
            found["patch side"] = patches[0]
    first = stem or patches
    if first and len(first) == 4:
        found["channels"] = first[2]
    if "head/kernel" in shapes:
        found["classes"] = shapes["head/kernel"][-1]
    return found
