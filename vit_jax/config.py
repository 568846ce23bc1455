"""Every field of a config: its default, its meaning and what it may be.

A config file builds a locked ConfigDict from `base_config()`; `check` turns it once into
the frozen dataclasses below, and the functions behind the door take plain arguments.
"""

import ast
import dataclasses
import importlib.util
import math
import pathlib
import types
import typing

from ml_collections import config_dict

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
    pool: str = field("token", "What becomes the feature.", choices=("token", "gap", "map"))
    pre_logits: bool = field(False, "A tanh layer before the head (pre-training, section 3.1).")
    dropout: float = field(0.0, "Dropout rate (Table 3).", least=0, most=0.99)
    drop_path: float = field(0.0, "Stochastic depth at the last layer.", least=0, most=0.99)
    gelu: str = field("tanh", "The official code's, or timm's.", choices=("tanh", "erf"))
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
        0.1, "Share kept for `val` where the source has no such split.", above=0, most=0.9
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
    resample: str = field(
        "antialias", "Pillow's bilinear, or TensorFlow's.", choices=("antialias", "tf_bilinear")
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

    path: str = field("", "Workdir, checkpoint or .npz to start from.")
    stage: str = field("", "Earlier stage of the same config to start from.")
    new_head: bool = field(False, "Permission to start with a head of zeros.")
    resize: bool = field(False, "Permission to resize position embeddings.")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: a whole config, or one stage of it."""

    seed: int = field(0, "Of initial weights, data order and dropout.", least=0)
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


# What a resumed run may change without becoming another run.
FREE_ON_RESUME = ("mesh", "log_every", "checkpoint_every", "data.workers")
DURATIONS = ("steps", "epochs", "examples")


def base_config(*stages: str) -> config_dict.ConfigDict:
    """A locked ConfigDict with every default; with names, one such section per stage.

    Stages share `seed` and `mesh`; everything else is each stage's own.
    """
    config = _section(Config)
    config.stages = config_dict.ConfigDict(sort_keys=False)  # They run in the order given.
    if stages:
        for name in stages:
            config.stages[name] = _section(Config)
            config.stages[name].seed = config.get_ref("seed")
            for axis in config.mesh:
                config.stages[name].mesh[axis] = config.mesh.get_ref(axis)
        for name in set(config) - {"seed", "mesh", "stages"}:
            del config[name]
    return config.lock()


def _section(cls) -> config_dict.ConfigDict:
    section = config_dict.ConfigDict()
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(each.type):
            section[each.name] = _section(each.type)
        elif isinstance(each.type, types.UnionType):  # Holds None or a tuple: checked by `check`.
            section[each.name] = config_dict.FieldReference(each.default, field_type=object)
        else:
            section[each.name] = each.default
    return section


def parse_arg(arg: str | None, **defaults) -> config_dict.ConfigDict:
    """The `:key=value,word` behind a config file's name; a bare word means `=True`."""
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults:
            hint = nearest(key, defaults)
            raise ConfigError(f"config argument {key!r} is not one of {sorted(defaults)}.{hint}")
        if not equals:
            values[key] = True
        elif isinstance(defaults[key], str):
            values[key] = text
        else:
            values[key] = _literal(text)
        wanted = type(defaults[key])
        if defaults[key] is not None and not isinstance(values[key], wanted):
            if wanted is float and isinstance(values[key], int):
                values[key] = float(values[key])
            else:
                raise ConfigError(
                    f"config argument {key} is {text or True!r}; it must be {_WORDS[wanted]}."
                )
    return config_dict.ConfigDict(values)


def smoke(config: config_dict.ConfigDict, keep_data: bool = False) -> config_dict.ConfigDict:
    """Swaps model, data and length of every stage for ones that two minutes are ample for."""
    for stage in [config.stages[name] for name in config.stages] or [config]:
        stage.model.update(name="vit_ti16", patch=7, num_layers=2, hidden_size=32)
        stage.model.update(mlp_size=64, num_heads=2)
        stage.data.image_size = 28
        if not keep_data:
            stage.data.update(source="digits", split="train", val_split="val", per_class=None)
        stage.update(batch_size=16, steps=20, epochs=None, examples=None)
        stage.update(log_every=5, eval_every=None, checkpoint_every=10)
        stage.optimizer.warmup_steps = 2
        stage.init.path = ""
    return config


def load(file_and_arg: str) -> config_dict.ConfigDict:
    """Runs `FILE[:ARG]` and returns what its `get_config(arg)` returns.

    Raises ConfigError in one line for a missing file or a mistake inside it.
    """
    path, _, arg = file_and_arg.partition(":")
    if not pathlib.Path(path).is_file():
        files = sorted(str(p) for p in pathlib.Path(path).parent.glob("*.py"))
        raise ConfigError(f"--config={path}: no such file.{nearest(path, files)}")
    spec = importlib.util.spec_from_file_location("vit_jax_config_file", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(arg or None)
    except ConfigError as error:
        raise ConfigError(f"--config={path}: {error}") from error
    except Exception as error:  # Whatever a user's Python can raise.
        words = " ".join(str(error).split())
        raise ConfigError(f"--config={path}: {type(error).__name__}: {words}") from error
    if not isinstance(config, config_dict.ConfigDict):
        raise ConfigError(f"--config={path}: get_config returned no ConfigDict.")
    return config


def override(config: config_dict.ConfigDict, key: str, text: str) -> None:
    """Sets `config.KEY` from the command line's `--config.KEY=TEXT`."""
    *sections, last = key.split(".")
    node, names = config, "config"
    for name in [*sections, last]:
        if not isinstance(node, config_dict.ConfigDict) or name not in node:
            raise ConfigError(f"--config.{key}: {names} has no field {name!r}.{_hint(node, name)}")
        parent, node, names = node, node[name], f"{names}.{name}"
    if isinstance(node, config_dict.ConfigDict):
        raise ConfigError(f"--config.{key} is a section; set one of its fields: {sorted(node)}.")
    value = text if isinstance(node, str) else _literal(text)
    try:
        parent[last] = value
        if last in DURATIONS and value is not None:  # One length takes the place of another.
            parent.update({other: None for other in DURATIONS if other != last})
    except (TypeError, ValueError) as error:
        wanted = _WORDS.get(type(node), type(node).__name__)
        raise ConfigError(f"config.{key} is {text!r}; it must be {wanted}.") from error


def _hint(node, name: str) -> str:
    if not isinstance(node, config_dict.ConfigDict):
        return ""
    for stage in node.get("stages", ()):
        if name in node.stages[stage]:
            return f" Each stage has its own: config.stages.{stage}.{name}."
    return nearest(name, node) or f" It has {', '.join(sorted(node))}."


def _literal(text: str):
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return float(text) if text.lower().lstrip("+-") in ("nan", "inf", "infinity") else text


def check(config: config_dict.ConfigDict) -> dict[str, Config]:
    """Stage name -> frozen Config, in order; a config without stages is the stage ''.

    Raises ConfigError, in one line that names the field, for whatever cannot be right.
    """
    unknown = set(config) - {each.name for each in dataclasses.fields(Config)} - {"stages"}
    if unknown:
        name = min(unknown)
        known = [each.name for each in dataclasses.fields(Config)]
        raise ConfigError(f"config has no field {name!r}.{nearest(name, known)}")
    if not config.get("stages"):
        plain = {name: value for name, value in config.items() if name != "stages"}
        return {"": _check_run(plain, "config", earlier=())}
    checked: dict[str, Config] = {}
    for name in config.stages:
        if not name.isidentifier():
            raise ConfigError(f"config.stages: {name!r} is no name for a folder; use letters.")
        where = f"config.stages.{name}"
        checked[name] = _check_run(config.stages[name], where, earlier=tuple(checked))
    return checked


def from_dict(values: dict) -> dict[str, Config]:
    """The checked stages of what `to_dict` gave, as read from a `config.json`."""
    config = base_config(*values.get("stages", {}))
    _update(config, values, "config")
    return check(config)


def to_dict(stages: dict[str, Config]) -> dict:
    """Plain dictionaries for `config.json`: one run, or {'stages': {name: run}}."""
    runs = {name: dataclasses.asdict(config) for name, config in stages.items()}
    return runs[""] if "" in runs else {"stages": runs}


def to_config_dict(stages: dict[str, Config]) -> config_dict.ConfigDict:
    """A locked ConfigDict with the values of checked stages, to be amended and checked again."""
    config = base_config(*(name for name in stages if name))
    _update(config, to_dict(stages), "config")
    return config


def _update(config: config_dict.ConfigDict, values: dict, where: str) -> None:
    for name, value in values.items():
        if name not in config:
            raise ConfigError(f"{where} has no field {name!r}.{nearest(name, list(config))}")
        if isinstance(config[name], config_dict.ConfigDict):
            _update(config[name], value, f"{where}.{name}")
        else:
            config[name] = tuple(value) if isinstance(value, list) else value


def differing_fields(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two `to_dict` results differ."""
    names = []
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differing_fields(a, b, f"{prefix}{name}.")
        elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            names.append(prefix + name)
    return names


def _check_run(values, where: str, earlier: tuple[str, ...]) -> Config:
    config = _build(Config, values, where)
    lengths = [name for name in DURATIONS if getattr(config, name) is not None]
    if len(lengths) != 1:
        found = " and ".join(f"{name}={getattr(config, name)}" for name in lengths) or "none"
        raise ConfigError(
            f"{where}: set one of steps, epochs, examples; found {found} "
            f"(--config.{lengths[0] if lengths else 'steps'}="
            f"{'None clears one' if lengths else '1000 sets one'})."
        )
    if config.steps is not None and config.optimizer.warmup_steps > config.steps:
        raise ConfigError(
            f"{where}.optimizer.warmup_steps is {config.optimizer.warmup_steps}; "
            f"it must be at most {where}.steps = {config.steps}."
        )
    if config.init.path and config.init.stage:
        raise ConfigError(f"{where}.init: set path or stage, not both.")
    if config.init.stage and config.init.stage not in earlier:
        raise ConfigError(
            f"{where}.init.stage is {config.init.stage!r}; "
            f"it must be an earlier stage, one of {list(earlier)}."
        )
    low, high = config.data.crop_area
    if not 0 < low <= high <= 1:
        raise ConfigError(
            f"{where}.data.crop_area is {(low, high)}; it must rise between 0 and 1."
        )
    if 0 in (config.mesh.data, config.mesh.fsdp) or config.mesh.data == config.mesh.fsdp == -1:
        raise ConfigError(
            f"{where}.mesh is data:{config.mesh.data},fsdp:{config.mesh.fsdp}; "
            "give sizes of at least 1, at most one of them -1."
        )
    return config


def _build(cls, values, where: str):
    known = {each.name: each for each in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            raise ConfigError(f"{where} has no field {name!r}.{nearest(name, known)}")
    built = {}
    for name, each in known.items():
        value, place = values[name], f"{where}.{name}"
        if dataclasses.is_dataclass(each.type):
            built[name] = _build(each.type, value, place)
        else:
            built[name] = _check_value(value, each, place)
    return cls(**built)


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    tuple: "a pair of numbers",
    type(None): "None",
}


def _check_value(value, each: dataclasses.Field, place: str):
    """The value in its declared type and within its bounds."""
    kinds = typing.get_args(each.type) if isinstance(each.type, types.UnionType) else (each.type,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if isinstance(value, list):
        value = tuple(value)
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) not in kinds or (type(value) is tuple and len(value) != 2):
        wanted = " or ".join(_WORDS[kind] for kind in kinds)
        raise ConfigError(f"{place} is {value!r}; it must be {wanted}.")
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
