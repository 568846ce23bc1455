"""Every field of a config: its default, its meaning and what it may be."""

import dataclasses
import math
import types
import typing

from vit_jax.errors import ConfigError, nearest


def field(default, meaning: str, *, choices=(), above=None, least=None, most=None):
    """A dataclass field with its meaning and its bounds (`above` excludes the bound)."""
    bounds = {"meaning": meaning, "choices": choices, "above": above, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=bounds)


@dataclasses.dataclass(frozen=True)
class Model:
    """config.model: the options of `create_model`, under the same names."""

    name: str = field("vit_b16", "A name of `vit_jax.list_models()`.")
    patch: int | None = field(None, "Patch side in pixels; None takes it from the name.", least=1)
    num_layers: int | None = field(None, "None takes it from the name (Table 1).", least=1)
    hidden_size: int | None = field(None, "None takes it from the name (Table 1).", least=1)
    mlp_size: int | None = field(None, "None takes it from the name (Table 1).", least=1)
    num_heads: int | None = field(None, "None takes it from the name (Table 1).", least=1)
    pool: str = field(
        "token",
        "Class token, mean of the patches (Figure 9), attention pooling, or the first two.",
        choices=("token", "gap", "map", "token_gap"),
    )
    pre_logits: bool = field(False, "A tanh layer before the head (pre-training, section 3.1).")
    dropout: float = field(0.0, "Dropout rate (Table 3).", least=0, most=0.99)
    drop_path: float = field(0.0, "Stochastic depth at the last layer.", least=0, most=0.99)
    gelu: str = field("tanh", "The official code's, or timm's.", choices=("tanh", "erf"))
    norm_eps: float = field(1e-6, "Of LayerNorm; Hugging Face's ViT has 1e-12.", above=0, most=1)
    pos_embed: str = field(
        "learned",
        "Position embedding (Table 8); sincos is fixed (arXiv:2205.01580).",
        choices=("learned", "learned_2d", "relative", "sincos", "none"),
    )
    pos_embed_at: str = field(
        "stem",
        "Added once, before every layer, or the same before every layer (Table 8).",
        choices=("stem", "layers", "shared"),
    )
    registers: int = field(0, "Register tokens (arXiv:2309.16588).", least=0)
    layer_scale: float | None = field(
        None, "First value of LayerScale (arXiv:2103.17239); None for none.", least=0
    )
    qk_norm: bool = field(False, "LayerNorm of queries and keys (arXiv:2302.05442).")
    pixel_stats: str = field(
        "half",
        "Mean and deviation of the pixels that the weights were trained on.",
        choices=("half", "imagenet", "clip"),
    )
    dtype: str = field("float32", "Of the computation.", choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Data:
    """config.data: where the examples come from and how they become pixels."""

    source: str = field(
        "fake", "Kind of source.", choices=("mnist5k", "digits", "folder", "tfds", "fake")
    )
    dir: str = field("", "The image folder, or the TFDS data folder.")
    dataset: str = field("", "TFDS name, such as cifar10 or my_set:1.0.0.")
    split: str = field("train", "Split trained on.")
    val_split: str = field("val", "Split evaluated while training; '' for none.")
    val_fraction: float = field(
        0.1, "Share kept for `val` where the source has no such split.", least=0, most=0.9
    )
    per_class: int | None = field(
        None, "Train on so many examples of each class; None for all.", least=1
    )
    num_classes: int = field(10, "Classes of the fake source.", least=2)
    num_examples: int = field(256, "Examples in each split of the fake source.", least=1)
    image_size: int | tuple[int, int] = field(224, "Side, or (height, width).", least=1)
    crop: str = field("inception", "Training crop.", choices=("inception", "resize"))
    crop_area: tuple[float, float] = field((0.05, 1.0), "Area range of the Inception crop.")
    flip: bool = field(True, "Mirror half of the training images.")
    eval_crop: str = field(
        "resize", "Whole image stretched (official), or centre crop.", choices=("resize", "center")
    )
    crop_fraction: float = field(
        0.875, "Side of the centre crop, of the short side resized.", above=0, most=1
    )
    resample: str = field(
        "antialias",
        "Pillow's bilinear or bicubic, or TensorFlow's bilinear.",
        choices=("antialias", "bicubic", "tf_bilinear"),
    )
    workers: int = field(0, "Worker processes; 0 loads in threads of this one.", least=0)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """config.optimizer (Tables 3 and 4)."""

    name: str = field("adamw", "Update rule.", choices=("adamw", "sgd"))
    lr: float = field(1e-3, "Peak learning rate.", above=0)
    schedule: str = field("cosine", "After warm-up.", choices=("linear", "cosine", "constant"))
    warmup_steps: int = field(0, "Steps of linear warm-up from zero.", least=0)
    weight_decay: float = field(0.0, "Decoupled, times the learning rate (Table 3).", least=0)
    beta1: float = field(0.9, "Adam's (Table 3).", least=0, most=0.9999)
    beta2: float = field(0.999, "Adam's (Table 3).", least=0, most=0.99999)
    momentum: float = field(0.9, "SGD's (Table 4).", least=0, most=0.9999)
    clip_norm: float | None = field(1.0, "Global norm of the gradients; None for any.", above=0)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """config.mesh: devices along each axis; one axis may be -1, 'all that are left'."""

    data: int = field(-1, "Copies of the model, each with its share of the batch.", least=-1)
    fsdp: int = field(1, "Devices that share one copy of parameters and batch.", least=-1)


@dataclasses.dataclass(frozen=True)
class Init:
    """config.init: what a run starts from, and what may change on the way."""

    path: str = field("", "Weights to start from: a run, a file, a URL or a published name.")
    stage: str = field("", "Earlier stage of the same config to start from.")
    new_head: bool = field(False, "Permission to start with a head of zeros.")
    resize: bool = field(False, "Permission to resize position embeddings.")
    drop_token: bool = field(False, "Permission to drop the class token for a model without.")
    allow_numerics: bool = field(
        False, "Permission to use weights with another GELU, epsilon or pixel statistics."
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: a whole config, or one stage of it."""

    seed: int = field(0, "Of initial weights, data order and dropout.", least=0, most=2**32 - 1)
    batch_size: int = field(512, "Global, over all devices and hosts.", least=1)
    steps: int | None = field(None, "Length: set one of steps, epochs, examples.", least=1)
    epochs: float | None = field(None, "Length in passes over the split.", above=0)
    examples: int | None = field(None, "Length in examples seen.", least=1)
    log_every: int = field(50, "Steps between lines of metrics.jsonl.", least=1)
    eval_every: int | None = field(
        None, "Steps between evaluations; None for the end only.", least=1
    )
    checkpoint_every: int = field(1000, "Steps between checkpoints; the end is one too.", least=1)
    keep_last: int = field(2, "Checkpoints kept.", least=1)
    keep_every: int | None = field(
        None, "Keep those at multiples of so many steps for good.", least=1
    )
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = Mesh()
    init: Init = Init()


DURATIONS = ("steps", "epochs", "examples")  # Ways to give a run's length.
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    tuple: "a pair of numbers",
    type(None): "None",
}


def check_run(values, where: str, earlier: tuple[str, ...] | None) -> Config:
    """The frozen Config of one run; raises ConfigError, naming the field, if it cannot be.

    Args:
      values: a mapping with every field.
      where: how messages call it, such as 'config.stages.finetune'.
      earlier: names of the stages before this one; None for a run that stands alone, whose
        `init.stage` is the folder beside its own.
    """
    config = check_section(Config, values, where)
    lengths = [name for name in DURATIONS if getattr(config, name) is not None]
    if len(lengths) != 1:
        found = " and ".join(f"{name}={getattr(config, name)}" for name in lengths) or "none"
        raise ConfigError(
            f"{where}: set one of steps, epochs, examples; found {found} "
            f"(--config.{lengths[0] if lengths else 'steps'}="
            f"{'None clears one' if lengths else '1000 sets one'})."
        )
    if config.init.path and config.init.stage:
        raise ConfigError(f"{where}.init: set path or stage, not both.")
    if config.init.stage and earlier is not None and config.init.stage not in earlier:
        raise ConfigError(
            f"{where}.init.stage is {config.init.stage!r}; "
            f"it must be an earlier stage, one of {list(earlier)}."
        )
    low, high = config.data.crop_area
    if not 0 < low <= high <= 1:
        raise ConfigError(f"{where}.data.crop_area is {(low, high)}; it must rise between 0 and 1.")
    if 0 in (config.mesh.data, config.mesh.fsdp) or config.mesh.data == config.mesh.fsdp == -1:
        raise ConfigError(
            f"{where}.mesh is data:{config.mesh.data},fsdp:{config.mesh.fsdp}; "
            "give sizes of at least 1, at most one of them -1."
        )
    return config


def check_section(cls, values, where: str):
    """A dataclass of this module from a mapping with each of its fields, every one checked.

    Raises ConfigError, naming the field as a part of `where`.
    """
    known = {each.name: each for each in dataclasses.fields(cls)}
    if not hasattr(values, "items"):
        raise ConfigError(f"{where} is {values!r}; it is a section of fields.")
    for name in known:
        if name not in values:
            raise ConfigError(f"{where} has lost its field {name!r}; begin with base_config().")
    for name in values:
        if name not in known:
            raise ConfigError(f"{where} has no field {name!r}.{nearest(name, known)}")
    built = {}
    for name, each in known.items():
        value, place = values[name], f"{where}.{name}"
        if dataclasses.is_dataclass(each.type):
            built[name] = check_section(each.type, value, place)
        else:
            built[name] = _check_value(value, each, place)
    return cls(**built)


_MISFIT = object()


def _as_kind(value, kind):
    """The value as a `float`, `tuple[int, int]`, ...; _MISFIT where it is none."""
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        if not isinstance(value, (tuple, list)) or len(value) != len(items):
            return _MISFIT
        fitting = tuple(map(_as_kind, value, items))
        return _MISFIT if _MISFIT in fitting else fitting
    if kind is float and type(value) is int and abs(value) < 10**300:
        return float(value)
    return value if type(value) is kind else _MISFIT


def _check_value(value, each: dataclasses.Field, place: str):
    """The value in its declared type and within its bounds."""
    kinds = typing.get_args(each.type) if isinstance(each.type, types.UnionType) else (each.type,)
    fitting = [_as_kind(value, kind) for kind in kinds]
    if all(fit is _MISFIT for fit in fitting):
        wanted = " or ".join(WORDS[typing.get_origin(kind) or kind] for kind in kinds)
        raise ConfigError(f"{place} is {value!r}; it must be {wanted}.")
    value = next(fit for fit in fitting if fit is not _MISFIT)
    limits = each.metadata
    if limits["choices"] and value not in limits["choices"]:
        hint = nearest(str(value), limits["choices"])
        raise ConfigError(f"{place} is {value!r}; choose from {list(limits['choices'])}.{hint}")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        rules = [
            (math.isfinite(number), "finite"),
            (limits["above"] is None or number > limits["above"], f"above {limits['above']}"),
            (limits["least"] is None or number >= limits["least"], f"at least {limits['least']}"),
            (limits["most"] is None or number <= limits["most"], f"at most {limits['most']}"),
        ]
        for holds, words in rules:
            if not holds:
                raise ConfigError(f"{place} is {value!r}; it must be {words}.")
    return value
