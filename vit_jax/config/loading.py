"""Config files, ConfigDicts, and checked configs as frozen dataclasses.

A config file returns a locked ConfigDict made by `base_config()`; `check` converts it to the
dataclasses of `schema.py`, which all other packages use.
"""

import ast
import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import re
import sys
import types
import typing
from collections.abc import Iterator

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict

from vit_jax.config.fields import Kwargs, expand_home
from vit_jax.config.hints import suggest
from vit_jax.config.schema import Config
from vit_jax.config.upgrade import upgrade
from vit_jax.config.validate import DURATIONS, check_effects, check_run
from vit_jax.config.values import TYPE_NAMES
from vit_jax.errors import ConfigError, nearest, one_line, shown

# Fields that may change when a run is resumed.
FREE_ON_RESUME = (
    "mesh",
    "log_every",
    "checkpoint_every",
    "checkpoint_async",
    "keep_last",
    "keep_every",
    "data.workers",
    "data.timeout",
    "data.on_bad_image",
    "data.max_bad",
    "data.max_megapixels",
    "model.scan",
    "model.remat",
    "model.kernels",
    "probe",
)


def base_config(*stages: str) -> ConfigDict:
    """Returns a locked ConfigDict of all defaults; with names, one such section per stage.

    Stages share `seed` and `mesh`; every other field belongs to one stage. Sections of keyword
    arguments, such as `optimizer.kwargs`, accept any name until `check`.
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
    config.lock()
    for run in config.stages.values() if stages else (config,):
        _unlock_kwargs(run, Config)
    return config


def _section(cls) -> ConfigDict:
    section = ConfigDict()
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(each.type):
            section[each.name] = _section(each.type)
        elif each.type is Kwargs:
            section[each.name] = ConfigDict(type_safe=False)
        elif isinstance(each.type, types.UnionType) or typing.get_origin(each.type) is tuple:
            # ml_collections has no such types; `check` validates them.
            section[each.name] = config_dict.FieldReference(each.default, field_type=object)
        else:
            section[each.name] = each.default
    return section


def _unlock_kwargs(section: ConfigDict, cls) -> None:
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(each.type):
            _unlock_kwargs(section[each.name], each.type)
        elif each.type is Kwargs:
            section[each.name].unlock()


def load(file_and_arg: str) -> ConfigDict:
    """Returns the config of `FILE[:ARGS]`: the result of its `get_config(args)`, or a .json file.

    Raises ConfigError, in one line, for a missing file or an error inside it.
    """
    file_and_arg = expand_home(file_and_arg)
    is_whole = pathlib.Path(file_and_arg).is_file()
    path, _, arg = (file_and_arg, "", "") if is_whole else file_and_arg.partition(":")
    if not pathlib.Path(path).is_file():
        files = sorted(str(p) for p in pathlib.Path(path).parent.glob("*.py"))
        hint = nearest(path, files)
        if path.startswith("configs/") and not pathlib.Path("configs").exists():
            hint = " The folder configs/ is in the repository of vit_jax; give the whole path."
        raise ConfigError(f"--config={path}: no such file.{hint}")
    if path.endswith(".json"):
        return _load_json(path, arg)
    spec = importlib.util.spec_from_file_location("vit_jax_config_file", path)
    if spec is None:
        raise ConfigError(f"--config={path}: expected a .py file, or the config.json of a run.")
    module = importlib.util.module_from_spec(spec)
    try:
        with _neighbours(pathlib.Path(path).resolve().parent):
            spec.loader.exec_module(module)
            config = module.get_config(arg or None)
    except ConfigError as error:
        raise ConfigError(f"--config={path}: {error}") from error
    except (Exception, SystemExit) as error:  # A config file can raise anything.
        words = one_line(error)
        # Messages of ml_collections about an unknown field.
        key = re.match(r"""["']*(?:Key ")?(\w+)["']+(?: does not exist|$)""", words)
        if key and suggest(key[1]):
            words = f"no field {key[1]!r}.{suggest(key[1])}"
        raise ConfigError(f"--config={path}: {type(error).__name__}: {words}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={path}: get_config must return a ConfigDict.")
    return config


@contextlib.contextmanager
def _neighbours(folder: pathlib.Path) -> Iterator[None]:
    """Lets a config file import the files beside it, as a script can, and forgets them after."""
    before, path = set(sys.modules), str(folder)
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if pathlib.Path(file).is_relative_to(folder):
                del sys.modules[name]


def _load_json(path: str, arg: str) -> ConfigDict:
    """Returns the config of a `config.json`."""
    if arg:
        raise ConfigError(f"--config={path}: a .json file accepts no arguments; found {arg!r}.")
    try:
        values = json.loads(pathlib.Path(path).read_bytes())
        return to_config_dict(from_dict(values))
    except ConfigError as error:
        raise ConfigError(f"--config={path}: {error}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"--config={path}: it is not the config of a run ({error}).") from error


def literal(text: str):
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return float(text) if text.lower().lstrip("+-") in ("nan", "inf", "infinity") else text


def check(config: ConfigDict, *, is_stored: bool = False) -> dict[str, Config]:
    """Returns the checked stages by name, in order; a config without stages is the stage ''.

    Args:
      config: a ConfigDict from `base_config()`.
      is_stored: accept values without effect: a run with this config has started already.

    Raises ConfigError, in one line that names the field, for an invalid value, and for a value
    that has no effect.
    """
    unknown = set(config) - {each.name for each in dataclasses.fields(Config)} - {"stages"}
    if unknown:
        name = min(unknown)
        known = [each.name for each in dataclasses.fields(Config)]
        raise ConfigError(f"config has no field {name!r}.{suggest(name, '', known)}")
    if not config.get("stages"):
        plain = {name: value for name, value in config.items() if name != "stages"}
        run = check_run(plain, "config", earlier=None)
        return {"": run if is_stored else check_effects(run, "config")}
    checked: dict[str, Config] = {}
    for name in config.stages:
        if not name.isidentifier():
            raise ConfigError(
                f"config.stages: {name!r} is not a valid stage name; expected a Python "
                "identifier, such as finetune_2."
            )
        where = f"config.stages.{name}"
        run = check_run(config.stages[name], where, earlier=tuple(checked))
        checked[name] = run if is_stored else check_effects(run, where)
    return checked


def from_dict(values: dict) -> dict[str, Config]:
    """Returns the checked stages of a dictionary made by `to_dict`, such as a `config.json`."""
    try:
        values = upgrade(values)
        stages = values.get("stages", {})
        if not isinstance(stages, dict):
            raise ConfigError(f"config.stages is {stages!r}; expected a section of stages.")
        config = base_config(*stages)
        update_section(config, values, "config")
        return check(config, is_stored=True)
    except RecursionError:
        raise ConfigError("config has values that are nested too deeply.") from None


def to_dict(stages: dict[str, Config]) -> dict:
    """Returns plain dictionaries for `config.json`: one run, or {'stages': {name: run}}."""
    runs = {name: dataclasses.asdict(config) for name, config in stages.items()}
    return runs.get("", {"stages": runs})


def to_config_dict(stages: dict[str, Config]) -> ConfigDict:
    """Returns a locked ConfigDict with the values of checked stages, to change and check again."""
    config = base_config(*(name for name in stages if name))
    update_section(config, to_dict(stages), "config")
    return config


def update_section(config: ConfigDict, values: dict, where: str) -> None:
    """Sets fields of a ConfigDict from nested dictionaries; raises ConfigError, naming them."""
    for name, value in values.items():
        if name not in config and not where.endswith(".kwargs"):
            section = where.rpartition(".")[2] if where != "config" else ""
            raise ConfigError(f"{where} has no field {name!r}.{suggest(name, section, config)}")
        if isinstance(config.get(name), ConfigDict):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}.{name} is {value!r}; expected a section of fields.")
            update_section(config[name], value, f"{where}.{name}")
            continue
        try:
            config[name] = tuple(value) if isinstance(value, list) else value
        except (TypeError, ValueError, OverflowError) as error:
            wanted = TYPE_NAMES.get(type(config.get(name)), type(config.get(name)).__name__)
            raise ConfigError(f"{where}.{name} is {shown(value)}; it must be {wanted}.") from error


def replaced(config: Config, values: dict[str, object], where: str) -> Config:
    """Returns a checked config with other values of some dotted fields.

    Raises ConfigError, beginning with `where`, for an unknown field or an invalid value.
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
            update_section(changed, nested, "config")
        return check(changed, is_stored=True)[""]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def differing_fields(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Returns the dotted names of the fields in which two results of `to_dict` differ."""
    names = []
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differing_fields(a, b, f"{prefix}{name}.")
        elif json.dumps(a) != json.dumps(b):  # A tuple is a list there, at any depth.
            names.append(prefix + name)
    return names
