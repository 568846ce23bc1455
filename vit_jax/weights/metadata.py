"""Metadata of weights that tensor names and shapes do not give, and its JSON forms.

Read from the metadata of this package's own files, and from the config files of Hugging Face and
timm.
"""

import dataclasses
import math
import re

from vit_jax.config.schema import Data, Model
from vit_jax.data.labels import read_names
from vit_jax.errors import CheckpointError, ConfigError, nearest
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights import image_processor
from vit_jax.weights.image_processor import MAX_SHOWN, MAX_SIDE

MIN_CROP = 1 / 32  # Smallest crop_fraction.
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


@dataclasses.dataclass(frozen=True)
class WeightsMetadata:
    """Model options, class names and preprocessing of weights; None for unknown values.

    `image_size` is (height, width) in pixels. `crop`, `crop_fraction`, `crop_side` and `resample`
    are `eval_crop`, `crop_fraction`, `eval_side` and `resample` of `config.data`. `assumed` lists
    values that the file does not say, each with its source. The other fields except `classes` are
    options of `create_model`.
    """

    num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    pool: str | None = None
    pos_embed: str | None = None
    pos_embed_at: str | None = None
    gelu: str | None = None
    norm_eps: float | None = None
    pixel_stats: str | None = None
    classes: tuple[str, ...] | None = None
    crop: str | None = None
    crop_fraction: float | None = None
    crop_side: int | tuple[int, int] | None = None
    resample: str | None = None
    assumed: tuple[str, ...] | None = None

    def known_fields(self) -> dict:
        """Returns the fields that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def assuming(self, source: str, **values) -> "WeightsMetadata":
        """Returns this metadata with unknown fields from a source, which `assumed` lists."""
        taken = {
            name: value
            for name, value in values.items()
            if getattr(self, name) is None and value is not None
        }
        notes = tuple(f"{name}={_as_text(value)} ({source})" for name, value in taken.items())
        assumed = (*(self.assumed or ()), *notes) or None
        return dataclasses.replace(self, **taken, assumed=assumed)

    def assumption(self, name: str) -> str:
        """Returns the note in `assumed` about a field, or ''."""
        return next((note for note in self.assumed or () if note.startswith(f"{name}=")), "")

    def with_defaults(self, defaults: "WeightsMetadata") -> "WeightsMetadata":
        """Returns this metadata with unknown fields taken from `defaults`."""
        return WeightsMetadata(**(defaults.known_fields() | self.known_fields()))


UNKNOWN = WeightsMetadata()
# `resize_small(256)|central_crop(224)`; 224 / 256 is the default of crop_fraction.
BIG_VISION_EVALUATION = WeightsMetadata(crop="center", resample="tf_area_uint8")


def _as_text(value: object) -> str:
    """The value as `from_text` parses it."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def from_model(model: ViT | BitResNet) -> WeightsMetadata:
    """Returns the metadata that a model determines."""
    if isinstance(model, BitResNet):
        return WeightsMetadata(image_size=model.image_size, pixel_stats=model.config.pixel_stats)
    config = model.config
    return WeightsMetadata(
        num_heads=model.size.num_heads,
        image_size=model.image_size,
        pool=config.pool,
        pos_embed=config.pos_embed,
        pos_embed_at=config.pos_embed_at,
        gelu=config.gelu,
        norm_eps=config.norm_eps,
        pixel_stats=config.pixel_stats,
    )


def to_json(metadata: WeightsMetadata) -> dict:
    """Returns the known fields as JSON values, for the files that this package writes."""
    return metadata.known_fields()


def from_json(values: dict, where: str) -> WeightsMetadata:
    """Returns the metadata of JSON values: the inverse of `to_json`.

    Args:
      values: values by field name; other names are ignored.
      where: source of the values, for messages.

    Raises:
      CheckpointError: a value is not allowed for its field.
    """
    checks = {
        "num_heads": lambda v: type(v) is int and 0 < v < 2**16,
        "image_size": _is_size,
        "norm_eps": lambda v: type(v) in (int, float) and 0 < v <= 1,
        "classes": _is_list_of_str,
        "assumed": _is_list_of_str,
        "crop_fraction": lambda v: type(v) in (int, float) and MIN_CROP <= v <= 1,
        "crop_side": lambda v: _is_size((v, v) if type(v) is int else v),
    }
    fields = {}
    for field in dataclasses.fields(WeightsMetadata):
        value = values.get(field.name)
        if value is None:
            continue
        check = checks.get(field.name, lambda v, name=field.name: v in _choices(name))
        if not check(value):
            shown = repr(value)[:MAX_SHOWN]
            raise CheckpointError(f"{where}: invalid metadata: {field.name} is {shown}.")
        fields[field.name] = tuple(value) if isinstance(value, list) else value
    return WeightsMetadata(**fields)


def _choices(name: str) -> tuple[str, ...]:
    """The values that the config schema allows for a field."""
    fields = {
        field.name: field for section in (Data, Model) for field in dataclasses.fields(section)
    }
    return fields["eval_crop" if name == "crop" else name].metadata["choices"]


def from_text(options: dict[str, str], where: str) -> WeightsMetadata:
    """Returns the metadata of options that a user gives as text, after WHERE and a colon.

    Args:
      options: text by field name: `num_heads=6`, `image_size=224x224`; `classes` is a file with
        the name of each output.
      where: the location, for messages.

    Raises:
      ConfigError: an option is unknown, or its value is not allowed.
    """
    known = [field.name for field in dataclasses.fields(WeightsMetadata) if field.name != "assumed"]
    values: dict[str, object] = {}
    for name, text in options.items():
        if name not in known:
            raise ConfigError(
                f"{where}:{name}={text}: unknown option; expected one of {', '.join(known)}."
                f"{nearest(name, known)}"
            )
        if name == "classes":
            values[name] = read_names(text, f"{where}:classes")
        elif sides := re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text):
            numbers = [int(side or sides[1]) for side in sides.groups()]
            values[name] = numbers if name == "image_size" or sides[2] else numbers[0]
        else:
            try:
                values[name] = float(text)
            except ValueError:
                values[name] = text
    try:
        return from_json(values, where)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def _is_list_of_str(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_size(value) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(side) is int and 0 < side <= MAX_SIDE for side in value)
    )


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
    if kind not in ("vit", "dinov2", "dinov2_with_registers", "bit", "deit"):
        raise CheckpointError(f"{where}: model_type {kind!r} in config.json is not supported.")
    if config.get("use_swiglu_ffn"):
        raise CheckpointError(f"{where}: SwiGLU layers (use_swiglu_ffn) are not supported.")
    for name in HF_DEFAULTS:
        if config.get(name, 0) is None:
            raise CheckpointError(f"{where}: {name} is null in config.json; expected a value.")
    fields: dict = {}
    required = HF_BIT if kind == "bit" else {"pooler_act": "tanh"}
    for name, value in required.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"{where}: {name} {config[name]!r} is not supported; expected {value!r}."
            )
    if kind != "bit":
        defaults = HF_DEFAULTS | {"layer_norm_eps": 1e-12 if kind in ("vit", "deit") else 1e-6}
        values = defaults | config
        activation = values["hidden_act"]
        if activation not in HF_GELUS:
            raise CheckpointError(
                f"{where}: hidden_act {activation!r} is not supported; "
                f"expected one of {', '.join(HF_GELUS)}."
            )
        fields["gelu"] = HF_GELUS[activation]
        fields["norm_eps"] = values["layer_norm_eps"]
        fields["num_heads"] = values["num_attention_heads"]
        fields["image_size"] = _pair(values["image_size"])
        fields["assumed"] = [
            f"{name}={value} (default of transformers)"
            for name, value in defaults.items()
            if name not in config
        ]
    if config.get("problem_type") not in (None, "single_label_classification"):
        note = f"probabilities=softmax (problem_type is {config['problem_type']!r:.40})"
        fields.setdefault("assumed", []).append(note)
    is_classifier = "ImageClassification" in str(config.get("architectures"))
    if kind.startswith("dinov2") and is_classifier:
        fields["pool"] = "token_gap"
    if kind == "bit":  # Its config has no image size; the preprocessing has.
        fields["image_size"] = image_processor.huggingface_size(preprocessor, kind, where)
    fields["classes"] = _huggingface_classes(config, where)
    metadata = from_json(fields, where)
    size = metadata.image_size
    if not preprocessor:
        defaults = image_processor.from_huggingface({}, kind, size, where)
        return metadata.assuming("default of transformers", **defaults)
    fields |= _from_preprocessor(preprocessor, where)
    fields |= image_processor.from_huggingface(preprocessor, kind, size, where)
    metadata = from_json(fields, where)
    own_size = image_processor.huggingface_size(preprocessor, kind, where)
    if own_size == size:
        return metadata
    source = f"config.json; preprocessor_config.json has {_as_text(own_size)}"
    return dataclasses.replace(metadata, image_size=None).assuming(source, image_size=size)


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
    if "image_mean" in values:
        fields["pixel_stats"] = _pixel_stats_name(values["image_mean"], values["image_std"], where)
    return fields


def from_timm(config: dict, where: str) -> WeightsMetadata:
    """Returns the metadata of the config.json beside timm's weights.

    Raises:
      CheckpointError: the model or its preprocessing is not supported.
    """
    values = config.get("pretrained_cfg") or config
    fields = {}
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
    return from_json(fields, where)


def _pixel_stats_name(mean, std, where: str) -> str:
    """The `pixel_stats` of a mean and a standard deviation of RGB in [0, 1]."""
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
