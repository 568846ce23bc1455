"""Metadata of weights that tensor names and shapes do not give, and its JSON forms.

Read from the metadata of this package's own files, and from the config files of Hugging Face and
timm.
"""

import dataclasses
import math

from vit_jax.config.schema import Data, Model
from vit_jax.errors import CheckpointError
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
    are `eval_crop`, `crop_fraction`, `eval_side` and `resample` of `config.data`; the other fields
    except `classes` are options of `create_model`.
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

    def known_fields(self) -> dict:
        """Returns the fields that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def with_defaults(self, defaults: "WeightsMetadata") -> "WeightsMetadata":
        """Returns this metadata with unknown fields taken from `defaults`."""
        return WeightsMetadata(**(defaults.known_fields() | self.known_fields()))


UNKNOWN = WeightsMetadata()
# `resize_small(256)|central_crop(224)`; 224 / 256 is the default of crop_fraction.
BIG_VISION_EVALUATION = WeightsMetadata(crop="center", resample="tf_area_uint8")


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
        "classes": lambda v: isinstance(v, list) and all(isinstance(c, str) for c in v),
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
    fields = {}
    required = HF_BIT if kind == "bit" else {"pooler_act": "tanh"}
    for name, value in required.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"{where}: {name} {config[name]!r} is not supported; expected {value!r}."
            )
    if kind != "bit":
        activation = config.get("hidden_act", "gelu")
        if activation not in HF_GELUS:
            raise CheckpointError(
                f"{where}: hidden_act {activation!r} is not supported; "
                f"expected one of {', '.join(HF_GELUS)}."
            )
        eps = 1e-12 if kind in ("vit", "deit") else 1e-6  # Hugging Face's own defaults.
        fields["gelu"] = HF_GELUS[activation]
        fields["norm_eps"] = config.get("layer_norm_eps", eps)
        fields["num_heads"] = config.get("num_attention_heads", 12)
        fields["image_size"] = _pair(config.get("image_size", 224))
    is_classifier = "ImageClassification" in str(config.get("architectures"))
    if kind.startswith("dinov2") and is_classifier:
        fields["pool"] = "token_gap"
    if kind == "bit":  # Its config has no image size; the preprocessing has.
        fields["image_size"] = image_processor.huggingface_size(preprocessor, kind, where)
    labels = config.get("id2label")
    if isinstance(labels, dict) and not all(str(v).startswith("LABEL_") for v in labels.values()):
        fields["classes"] = [labels.get(str(k)) for k in range(len(labels))]
    metadata = from_json(fields, where)
    if preprocessor:
        fields |= _from_preprocessor(preprocessor, where)
        size = metadata.image_size
        fields |= image_processor.from_huggingface(preprocessor, kind, size, where)
    return from_json(fields, where)


def _from_preprocessor(values: dict, where: str) -> dict:
    """Returns the pixel statistics."""
    fields = {}
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
    if isinstance(values.get("input_size"), list) and len(values["input_size"]) == 3:
        fields["image_size"] = values["input_size"][1:]
    fields |= image_processor.from_timm(values, where)
    labels = (
        values.get("label_descriptions") or values.get("label_names") or config.get("label_names")
    )
    if isinstance(labels, list):
        fields["classes"] = labels
    arguments = config.get("model_args") or {}
    if "num_heads" in arguments:
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
