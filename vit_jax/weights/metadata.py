"""Metadata of weights that tensor names and shapes do not give, as JSON and as text of a user."""

import dataclasses
import re

from vit_jax.config.schema import Data, Model
from vit_jax.data.labels import read_names
from vit_jax.errors import CheckpointError, ConfigError, nearest, shown
from vit_jax.models.encoders import ENCODERS, parse_name
from vit_jax.models.layers import GATED_MLPS
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.models.rope import ROPES
from vit_jax.weights.image_processor import MAX_SIDE

MIN_CROP = 1 / 32  # Smallest crop_fraction.


@dataclasses.dataclass(frozen=True)
class WeightsMetadata:
    """Model options, class names and preprocessing of weights; None for unknown values.

    `image_size` is (height, width) in pixels. `crop`, `crop_fraction`, `crop_side` and `resample`
    are `eval_crop`, `crop_fraction`, `eval_side` and `resample` of `config.data`. `family` is
    a row of `models.encoders.ENCODERS`. `assumed` lists values that the file does not contain, each
    with its source. The other fields except `classes` are options of `create_model`.
    """

    num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    pool: str | None = None
    pos_embed: str | None = None
    pos_embed_at: str | None = None
    rope: str | None = None
    mlp: str | None = None
    gelu: str | None = None
    norm_eps: float | None = None
    pixel_stats: str | None = None
    family: str | None = None
    classes: tuple[str, ...] | None = None
    crop: str | None = None
    crop_fraction: float | None = None
    crop_side: int | tuple[int, int] | None = None
    resample: str | None = None
    assumed: tuple[str, ...] | None = None

    @property
    def resize_rule(self) -> str | None:
        """Rule of the family's own code that resizes position embeddings; None if unknown."""
        return ENCODERS[self.family].resize_rule if self.family else None

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
        notes = tuple(f"{name}={as_text(value)} ({source})" for name, value in taken.items())
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


def as_text(value: object) -> str:
    """Returns the value as `from_text` parses it."""
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
        rope=config.rope if "rope" in config.pos_embed else None,
        mlp=config.mlp if config.mlp in GATED_MLPS.values() else None,
        gelu=config.gelu,
        norm_eps=config.norm_eps,
        pixel_stats=config.pixel_stats,
        family=found.family if (found := parse_name(config.name)) else None,
    )


def from_json(values: dict, where: str) -> WeightsMetadata:
    """Returns the metadata of JSON values: the inverse of `known_fields`.

    Args:
      values: values by field name; other names are ignored.
      where: source of the values, for messages.

    Raises:
      CheckpointError: a value is not allowed for its field.
    """
    checks = {
        "num_heads": lambda v: type(v) is int and 0 < v < 2**16,
        "image_size": _is_size,
        "family": lambda v: v in list(ENCODERS),
        "norm_eps": lambda v: type(v) in (int, float) and 0 < v <= 1,
        "classes": _is_list_of_str,
        "assumed": _is_list_of_str,
        "mlp": lambda v: v in list(GATED_MLPS.values()),
        "rope": lambda v: v in list(ROPES),
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
            raise CheckpointError(f"{where}: invalid metadata: {field.name} is {shown(value)}.")
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
