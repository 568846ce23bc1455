"""What files say of a model beside names and shapes: our metadata, timm's and Hugging Face's."""

import dataclasses
import math

from vit_jax.config.schema import Data, Model
from vit_jax.errors import CheckpointError
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.models.registry import BitResNet, ViT

MAX_SIDE = 8192  # Of an image that a file may ask for.
MIN_CROP = 1 / 32  # The least share of an image that is cut out.
MAX_SHOWN = 80  # Characters of a value in a message.
HF_GELUS = {  # Hugging Face's names of activations.
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
HF_BIT = {  # Of its ResNets, ours are these.
    "layer_type": "preactivation",
    "global_padding": None,
    "num_groups": 32,
    "hidden_act": "relu",
    "output_stride": 32,
    "embedding_dynamic_padding": False,
}
PIL_RESAMPLES = {2: "antialias", 3: "bicubic"}  # Pillow's numbers, as Hugging Face stores them.
TIMM_POOLS = {"token": "token", "avg": "gap", "map": "map"}
TIMM_RESAMPLES = {"bilinear": "antialias", "bicubic": "bicubic"}


@dataclasses.dataclass(frozen=True)
class Facts:
    """None stands for what nothing says."""

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
    resample: str | None = None

    def known(self) -> dict:
        """The fields that something says."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def over(self, other: "Facts") -> "Facts":
        """These facts, and the other's where these are silent."""
        return Facts(**(other.known() | self.known()))


def of_model(model: ViT | BitResNet) -> Facts:
    """What a model itself says."""
    if isinstance(model, BitResNet):
        return Facts(image_size=model.image_size, pixel_stats=model.config.pixel_stats)
    layers = model.config
    return Facts(
        num_heads=model.size.num_heads,
        image_size=model.image_size,
        pool=model.config.pool,
        pos_embed=layers.pos_embed,
        pos_embed_at=layers.pos_embed_at,
        gelu=layers.gelu,
        norm_eps=layers.norm_eps,
        pixel_stats=model.config.pixel_stats,
    )


def to_metadata(facts: Facts) -> dict:
    """As JSON, for the files that we write."""
    return facts.known()


def from_metadata(values: dict, where: str) -> Facts:
    """The inverse; raises CheckpointError for values that nothing of ours writes."""
    checks = {
        "num_heads": lambda v: type(v) is int and 0 < v < 2**16,
        "image_size": _is_pair,
        "norm_eps": lambda v: type(v) in (int, float) and 0 < v <= 1,
        "classes": lambda v: isinstance(v, list) and all(isinstance(c, str) for c in v),
        "crop_fraction": lambda v: type(v) in (int, float) and MIN_CROP <= v <= 1,
    }
    known = {}
    for field in dataclasses.fields(Facts):
        value = values.get(field.name)
        if value is None:
            continue
        check = checks.get(field.name, lambda v, name=field.name: v in _choices(name))
        if not check(value):
            shown = repr(value)[:MAX_SHOWN]
            raise CheckpointError(f"{where}: its metadata is damaged: {field.name} is {shown}.")
        known[field.name] = tuple(value) if isinstance(value, list) else value
    return Facts(**known)


def _choices(name: str) -> tuple[str, ...]:
    """What the schema lets a fact be."""
    fields = {
        field.name: field for section in (Data, Model) for field in dataclasses.fields(section)
    }
    return fields["eval_crop" if name == "crop" else name].metadata["choices"]


def _is_pair(value) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(side) is int and 0 < side <= MAX_SIDE for side in value)
    )


def from_huggingface(config: dict, preprocessor: dict, where: str) -> Facts:
    """Of a Hugging Face folder: its config.json and preprocessor_config.json.

    Raises CheckpointError for a kind of model that we have not.
    """
    kind = config.get("model_type")
    if kind not in ("vit", "dinov2", "dinov2_with_registers", "bit", "deit"):
        raise CheckpointError(f"{where}: model_type {kind!r} in its config.json is not read here.")
    if config.get("use_swiglu_ffn"):
        raise CheckpointError(f"{where}: SwiGLU layers (use_swiglu_ffn) are not read here.")
    known = {}
    wanted = HF_BIT if kind == "bit" else {"pooler_act": "tanh"}
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"{where}: {name} {config[name]!r} is not read here.")
    if kind != "bit":
        activation = config.get("hidden_act", "gelu")
        if activation not in HF_GELUS:
            raise CheckpointError(f"{where}: hidden_act {activation!r} is not read here.")
        eps = 1e-12 if kind in ("vit", "deit") else 1e-6  # Hugging Face's own defaults.
        known["gelu"] = HF_GELUS[activation]
        known["norm_eps"] = config.get("layer_norm_eps", eps)
        known["num_heads"] = config.get("num_attention_heads", 12)
        known["image_size"] = _pair(config.get("image_size", 224))
    is_classifier = "ImageClassification" in str(config.get("architectures"))
    if kind.startswith("dinov2") and is_classifier:
        known["pool"] = "token_gap"
    if kind == "bit":  # Of a network that takes any, the size that it was made for.
        known["image_size"] = _pixels(preprocessor)
    labels = config.get("id2label")
    if isinstance(labels, dict) and not all(str(v).startswith("LABEL_") for v in labels.values()):
        known["classes"] = [labels.get(str(k)) for k in range(len(labels))]
    return from_metadata(known | _from_processor(preprocessor, where), where)


def _from_processor(values: dict, where: str) -> dict:
    if not values:
        return {}
    known = {"resample": PIL_RESAMPLES.get(values.get("resample", 2), Data.resample)}
    scale = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1
    if not values.get("do_normalize", True) or not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        raise CheckpointError(f"{where}: pixels that are not normalised are not read here.")
    if "image_mean" in values:
        known["pixel_stats"] = _stats_of(values["image_mean"], values["image_std"], where)
    size, crop = values.get("size", 224), values.get("crop_size")
    if values.get("do_center_crop") and crop:
        short = size.get("shortest_edge") if isinstance(size, dict) else size
        side = crop.get("height") if isinstance(crop, dict) else crop
        if isinstance(short, int) and isinstance(side, int) and 0 < side <= short:
            return known | {"crop": "center", "crop_fraction": side / short}
    return known | {"crop": "resize"}


def _pixels(values: dict) -> list | None:
    size = values.get("crop_size" if values.get("do_center_crop") else "size")
    if isinstance(size, dict):
        return [size["height"], size["width"]] if {"height", "width"} <= set(size) else None
    return _pair(size) if size else None


def from_timm(config: dict, where: str) -> Facts:
    """Of the config.json beside timm's weights."""
    values = config.get("pretrained_cfg") or config
    known = {}
    if "mean" in values and "std" in values:
        known["pixel_stats"] = _stats_of(values["mean"], values["std"], where)
    if isinstance(values.get("input_size"), list) and len(values["input_size"]) == 3:
        known["image_size"] = values["input_size"][1:]
    known["resample"] = TIMM_RESAMPLES.get(values.get("interpolation"), Data.resample)
    is_squashed = values.get("crop_mode") == "squash"
    known["crop"] = "resize" if is_squashed else "center"
    known["crop_fraction"] = values.get("crop_pct", Data.crop_fraction)
    labels = (
        values.get("label_descriptions") or values.get("label_names") or config.get("label_names")
    )
    if isinstance(labels, list):
        known["classes"] = labels
    arguments = config.get("model_args") or {}
    if "num_heads" in arguments:
        known["num_heads"] = arguments["num_heads"]
    for field, name, ours in (
        ("gelu", arguments.get("act_layer"), HF_GELUS | {"gelu_tanh": "tanh"}),
        ("pool", config.get("global_pool"), TIMM_POOLS),
    ):
        if name and name not in ours:
            raise CheckpointError(f"{where}: {name!r} of its config.json is not read here.")
        known[field] = ours.get(name)
    return from_metadata(known, where)


def _stats_of(mean, deviation, where: str) -> str:
    """The name of pixel statistics; CheckpointError for none that we have."""
    for name, (our_mean, our_deviation) in PIXEL_STATS.items():
        ours, theirs = (*our_mean, *our_deviation), (*mean, *deviation)
        if len(theirs) == 6 and all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(ours, theirs)):
            return name
    raise CheckpointError(
        f"{where}: pixels of mean {list(mean)} and deviation {list(deviation)} are not read here; "
        f"known are {', '.join(PIXEL_STATS)}."
    )


def _pair(size) -> list:
    return list(size) if isinstance(size, list | tuple) else [size, size]
