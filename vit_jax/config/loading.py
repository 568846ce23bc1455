"""Config files -> ConfigDicts -> checked, frozen dataclasses.

A config file builds a locked ConfigDict from `base_config()`; `check` turns it once into
the dataclasses of `schema.py`, and the functions behind the door take plain arguments.
"""

import ast
import dataclasses
import importlib.util
import json
import pathlib
import types
import typing
from collections.abc import Mapping

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict

from vit_jax.config.schema import Config
from vit_jax.config.upgrade import hint, upgrade
from vit_jax.config.validate import DURATIONS, WORDS, check_run
from vit_jax.errors import ConfigError, nearest

# What a resumed run may change without becoming another run.
FREE_ON_RESUME = (
    "mesh",
    "log_every",
    "checkpoint_every",
    "data.workers",
    "model.scan",
    "model.remat",
    "model.kernels",
)


def base_config(*stages: str) -> ConfigDict:
    """A locked ConfigDict with every default; with names, one such section per stage.

    Stages share `seed` and `mesh`; everything else is each stage's own.
    """
    config = _section(Config)
    config.stages = ConfigDict(sort_keys=False)  # They run in the order given.
    if stages:
        for name in stages:
            config.stages[name] = _section(Config)
            config.stages[name].seed = config.get_ref("seed")
            for axis in config.mesh:
                config.stages[name].mesh[axis] = config.mesh.get_ref(axis)
        for name in set(config) - {"seed", "mesh", "stages"}:
            del config[name]
    return config.lock()


def _section(cls) -> ConfigDict:
    section = ConfigDict()
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(each.type):
            section[each.name] = _section(each.type)
        elif isinstance(each.type, types.UnionType) or typing.get_origin(each.type) is tuple:
            # `check` judges what ml_collections knows no type for.
            section[each.name] = config_dict.FieldReference(each.default, field_type=object)
        else:
            section[each.name] = each.default
    return section


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
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
        if wanted is float and type(values[key]) is int:
            values[key] = float(values[key])
        if type(values[key]) is not wanted and defaults[key] is not None:
            raise ConfigError(
                f"config argument {key} is {text or True!r}; it must be {WORDS[wanted]}."
            )
    return ConfigDict(values)


def smoke(config: ConfigDict, keep_data: bool = False) -> ConfigDict:
    """Swaps model, data and length of every stage for ones that two minutes are ample for.

    The recipe stays: task, loss, update rule, schedule, augmentation, head, position embedding,
    the family of the model, and whether a later stage has another image size than the first. A
    teacher is trained first, as a stage.
    """
    if not config.stages and config.task.teacher:
        config = _teacher_first(config)
    stages = [config.stages[name] for name in config.stages] or [config]
    config.mesh.update(data=-1, fsdp=1)
    pixels = stages[0].data.image_size
    for stage in stages:
        patch = _shrink_model(stage.model)
        stage.data.image_size = patch * (4 if stage.data.image_size == pixels else 5)
        if not keep_data:
            stage.data.update(source="digits", split="train", val_split="val", mix=())
        _shrink_subset(stage.data)
        _shrink_schedule(stage.optimizer)
        stage.update(batch_size=16, accumulate=min(stage.accumulate, 2))
        stage.update(steps=20, epochs=None, examples=None)
        stage.update(log_every=5, eval_every=stage.eval_every and 10, checkpoint_every=10)
        if stage.fewshot.every:
            stage.fewshot.update(every=10, source="digits", sets=(), test_split="val", shots=(1,))
        stage.init.path = ""
        if stage.task.teacher not in config.stages:
            stage.task.teacher = ""
    return config


def _teacher_first(config: ConfigDict) -> ConfigDict:
    """The run `student`, after a run `teacher` that differs in having no teacher."""
    staged = base_config("teacher", "student")
    for name in staged.stages:
        run = {key: value for key, value in config.to_dict().items() if key != "stages"}
        _update(staged.stages[name], run, name)
    staged.stages.teacher.task.teacher = ""
    staged.stages.student.task.teacher = "teacher"
    return staged


def _shrink_model(model) -> int:
    """Makes a model the smallest of its family; returns how many pixels to give for a patch."""
    if model.name.startswith("bit_"):
        model.name = "bit_r26x1"
        return 8
    is_hybrid = model.name.startswith("r")
    model.update(name="r_ti16" if is_hybrid else "vit_ti16", patch=None if is_hybrid else 8)
    model.update(num_layers=2, hidden_size=32, mlp_size=64, num_heads=2)
    return 32 if is_hybrid else 8


def _shrink_subset(data) -> None:
    """Leaves enough of a small data set for a few batches."""
    data.update(per_class=None, count=data.count and min(data.count, 64))
    data.fraction = data.fraction and max(data.fraction, 0.05)


def _shrink_schedule(optimizer) -> None:
    optimizer.update(warmup_steps=2, timescale=min(optimizer.timescale, 5))
    optimizer.cooldown_steps = min(optimizer.cooldown_steps, 2)
    optimizer.ema = optimizer.ema and min(optimizer.ema, 0.9)  # Twenty steps are to be seen.


def load(file_and_arg: str) -> ConfigDict:
    """Runs `FILE[:ARG]` and returns what its `get_config(arg)` returns, or reads a .json.

    Raises ConfigError in one line for a missing file or a mistake inside it.
    """
    is_whole = pathlib.Path(file_and_arg).is_file()
    path, _, arg = (file_and_arg, "", "") if is_whole else file_and_arg.partition(":")
    if not pathlib.Path(path).is_file():
        files = sorted(str(p) for p in pathlib.Path(path).parent.glob("*.py"))
        raise ConfigError(f"--config={path}: no such file.{nearest(path, files)}")
    if path.endswith(".json"):
        return _load_json(path, arg)
    spec = importlib.util.spec_from_file_location("vit_jax_config_file", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(arg or None)
    except ConfigError as error:
        raise ConfigError(f"--config={path}: {error}") from error
    except (Exception, SystemExit) as error:  # Whatever a user's Python can raise.
        words = " ".join(str(error).split())
        raise ConfigError(f"--config={path}: {type(error).__name__}: {words}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={path}: get_config returned no ConfigDict.")
    return config


def _load_json(path: str, arg: str) -> ConfigDict:
    """The config of a run's `config.json`."""
    if arg:
        raise ConfigError(f"--config={path}: a .json file takes no arguments; {arg!r} was found.")
    try:
        values = json.loads(pathlib.Path(path).read_bytes())
        return to_config_dict(from_dict(values))
    except ConfigError as error:
        raise ConfigError(f"--config={path}: {error}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"--config={path}: no config of a run ({error}).") from error


def resolve(
    config: str | pathlib.Path | ConfigDict | Config,
    overrides: Mapping[str, object] | None = None,
) -> dict[str, Config]:
    """Returns the checked stages of a config, by name and in order.

    Args:
      config: `FILE[:ARGS]`, a ConfigDict from `base_config()`, or a checked Config.
      overrides: dotted field -> value, such as {"optimizer.lr": 0.003}.
    """
    if isinstance(config, Config):
        config = to_config_dict({"": config})
    elif isinstance(config, str | pathlib.Path):
        config = load(str(config))
    else:
        config = _copied(config)
    for key, value in (overrides or {}).items():
        override(config, key, value)
    return check(config)


def _copied(config: ConfigDict) -> ConfigDict:
    """Returns a copy whose stages keep their order and share `seed` and `mesh`, as they do."""
    names = list(config.get("stages", ()))
    copied = base_config(*names)
    for name in names:
        _update(copied.stages[name], config.stages[name].to_dict(), f"config.stages.{name}")
    values = {name: value for name, value in config.to_dict().items() if name != "stages"}
    _update(copied, values, "config")
    return copied


def override(config: ConfigDict, key: str, value: object) -> None:
    """Sets `config.KEY` to a value; texts are parsed as in `--config.KEY=TEXT`."""
    *sections, last = key.split(".")
    node, names = config, "config"
    for name in [*sections, last]:
        if not isinstance(node, ConfigDict) or name not in node:
            raise ConfigError(
                f"--config.{key}: {names} has no field {name!r}.{_hint(node, key, name)}"
            )
        parent, node, names = node, node[name], f"{names}.{name}"
    if isinstance(node, ConfigDict):
        raise ConfigError(f"--config.{key} is a section; set one of its fields: {sorted(node)}.")
    text = value
    if isinstance(text, str) and not isinstance(node, str):
        value = _literal(text)
    try:
        parent[last] = value
        if last in DURATIONS and value is not None:  # One length takes the place of another.
            parent.update({other: None for other in DURATIONS if other != last})
    except (TypeError, ValueError) as error:
        wanted = WORDS.get(type(node), type(node).__name__)
        raise ConfigError(f"config.{key} is {text!r}; it must be {wanted}.") from error


def _hint(node, key: str, name: str) -> str:
    if not isinstance(node, ConfigDict):
        return ""
    if renamed := hint(".".join(key.split(".")[-2:])):
        return renamed
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


def check(config: ConfigDict) -> dict[str, Config]:
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
        return {"": check_run(plain, "config", earlier=None)}
    checked: dict[str, Config] = {}
    for name in config.stages:
        if not name.isidentifier():
            raise ConfigError(f"config.stages: {name!r} is no name for a folder; use letters.")
        where = f"config.stages.{name}"
        checked[name] = check_run(config.stages[name], where, earlier=tuple(checked))
    return checked


def from_dict(values: dict) -> dict[str, Config]:
    """The checked stages of what `to_dict` gave, as read from a `config.json`."""
    values = upgrade(values)
    stages = values.get("stages", {})
    if not isinstance(stages, dict):
        raise ConfigError(f"config.stages is {stages!r}; it is a section of stages.")
    config = base_config(*stages)
    _update(config, values, "config")
    return check(config)


def to_dict(stages: dict[str, Config]) -> dict:
    """Plain dictionaries for `config.json`: one run, or {'stages': {name: run}}."""
    runs = {name: dataclasses.asdict(config) for name, config in stages.items()}
    return runs.get("", {"stages": runs})


def to_config_dict(stages: dict[str, Config]) -> ConfigDict:
    """A locked ConfigDict with the values of checked stages, to be amended and checked again."""
    config = base_config(*(name for name in stages if name))
    _update(config, to_dict(stages), "config")
    return config


def _update(config: ConfigDict, values: dict, where: str) -> None:
    for name, value in values.items():
        if name not in config:
            raise ConfigError(f"{where} has no field {name!r}.{nearest(name, list(config))}")
        if isinstance(config[name], ConfigDict):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}.{name} is {value!r}; it is a section of fields.")
            _update(config[name], value, f"{where}.{name}")
            continue
        try:
            config[name] = tuple(value) if isinstance(value, list) else value
        except (TypeError, ValueError) as error:
            wanted = WORDS.get(type(config[name]), type(config[name]).__name__)
            raise ConfigError(f"{where}.{name} is {value!r}; it must be {wanted}.") from error


def replaced(config: Config, values: dict[str, object], where: str) -> Config:
    """A checked config with other values of some dotted fields.

    Raises ConfigError, beginning with `where`, for a field or a value that cannot be.
    """
    changed = to_config_dict({"": config})
    try:
        for key, value in values.items():
            *sections, last = key.split(".")
            nested = {last: value}
            if last in DURATIONS:  # One length takes the place of another.
                nested = dict.fromkeys(DURATIONS) | nested
            for section in reversed(sections):
                nested = {section: nested}
            _update(changed, nested, "config")
        return check(changed)[""]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def differing_fields(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two `to_dict` results differ."""
    names = []
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differing_fields(a, b, f"{prefix}{name}.")
        elif json.dumps(a) != json.dumps(b):  # A tuple is a list there, at any depth.
            names.append(prefix + name)
    return names
