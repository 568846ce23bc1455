"""Values that replace those of a config file, and the checked config of a run."""

import pathlib
from collections.abc import Mapping

from vit_jax.config import conditions
from vit_jax.config.hints import suggest
from vit_jax.config.loading import (
    ConfigDict,
    base_config,
    check,
    literal,
    load,
    to_config_dict,
    update_section,
)
from vit_jax.config.schema import Config
from vit_jax.config.validate import DURATIONS, check_effects
from vit_jax.config.values import TYPE_NAMES
from vit_jax.errors import ConfigError, shown


def resolve(
    config: str | pathlib.Path | ConfigDict | Config | dict[str, Config],
    overrides: Mapping[str, object] | None = None,
    *,
    is_stored: bool = False,
) -> dict[str, Config]:
    """Returns the checked stages of a config, by name and in order.

    Args:
      config: `FILE[:ARGS]`, a ConfigDict from `base_config()`, a checked Config, or the checked
        stages, which are returned as they are.
      overrides: dotted field -> value, such as {"optimizer.lr": 0.003}. A field of the config
        that only these leave without effect gets its default.
      is_stored: accept values without effect: a run with this config has started already.
    """
    if isinstance(config, dict) and not overrides:
        return config
    if isinstance(config, str | pathlib.Path):
        config = load(str(config))
    elif not isinstance(config, ConfigDict):
        config = to_config_dict(config if isinstance(config, dict) else {"": config})
    stages = check(overridden(config, overrides or {}), is_stored=is_stored or bool(overrides))
    return stages if is_stored or not overrides else _with_effects(stages, config, overrides)


def overridden(config: ConfigDict, overrides: Mapping[str, object]) -> ConfigDict:
    """Returns a copy of a config with other values of some dotted fields."""
    given = [key for key, value in overrides.items() if str(value).lower() != "none"]
    lengths = [key for key in given if key.rpartition(".")[2] in DURATIONS]
    sections = [key.rpartition(".")[0] for key in lengths]
    if len(set(sections)) < len(sections):
        raise ConfigError(f"--config.{' and --config.'.join(lengths)}: set one of them.")
    changed = _copy(config)
    for key, value in overrides.items():
        override(changed, key, value)
    return changed


def _with_effects(
    stages: dict[str, Config], base: ConfigDict, overrides: Mapping[str, object]
) -> dict[str, Config]:
    """Returns checked stages; fields that the overrides leave without effect get their default.

    Raises ConfigError for a value without effect that is an override, or of the config itself.
    """
    try:
        before = check(_copy(base), is_stored=True)
    except ConfigError:  # It needs the overrides, such as a length.
        before = {}
    kept = {}
    for name, run in stages.items():
        where, prefix = (f"config.stages.{name}", f"stages.{name}.") if name else ("config", "")
        given = {key.removeprefix(prefix) for key in overrides}
        given |= {field for field, _ in run.sweep.grid}  # A reset would not change these.
        own = {field for field, _ in conditions.without_effect(before[name])} if before else set()
        dead = {field for field, _ in conditions.without_effect(run)}
        kept[name] = check_effects(run, where, unasked=dead - given - own)
    return kept


def _copy(config: ConfigDict) -> ConfigDict:
    """Returns a copy whose stages keep their order and share `seed` and `mesh`, as they do."""
    names = list(config.get("stages", ()))
    copied = base_config(*names)
    for name in names:
        update_section(copied.stages[name], config.stages[name].to_dict(), f"config.stages.{name}")
    values = {name: value for name, value in config.to_dict().items() if name != "stages"}
    update_section(copied, values, "config")
    return copied


def override(config: ConfigDict, key: str, value: object) -> None:
    """Sets `config.KEY` to a value; texts are parsed as in `--config.KEY=TEXT`."""
    *sections, last = key.split(".")
    parent, text = _member(config, sections, key), value
    if sections[-1:] == ["kwargs"]:  # Any name is allowed until `check`.
        with parent.unlocked(), parent.ignore_type():
            parent[last] = literal(text) if isinstance(text, str) else value
        return
    old = _member(config, [*sections, last], key)
    is_text_field = isinstance(old, str) and parent.get_type(last) is str  # Not int | str.
    if isinstance(text, str) and (not is_text_field or text == "None"):
        value = literal(text)
    if last == "kwargs" and isinstance(value, dict):
        parent[last] = ConfigDict(value, type_safe=False)
        return
    if isinstance(old, ConfigDict):
        fields = f"set one of its fields: {sorted(old)}" if old else "this config has none"
        raise ConfigError(f"--config.{key} is a section; {fields}.")
    try:
        parent[last] = value
        if last in DURATIONS and value is not None:  # One length takes the place of another.
            parent.update({other: None for other in DURATIONS if other != last})
    except (TypeError, ValueError, OverflowError) as error:
        wanted = TYPE_NAMES.get(type(old), type(old).__name__)
        raise ConfigError(f"config.{key} is {shown(text)}; it must be {wanted}.") from error


def _member(config: ConfigDict, names: list[str], key: str):
    """Returns the section or value at these names; raises ConfigError that quotes `key`."""
    node, path = config, "config"
    for name in names:
        if not isinstance(node, ConfigDict) or name not in node:
            raise ConfigError(
                f"--config.{key}: {path} has no field {name!r}.{_hint(node, path, name)}"
            )
        node, path = node[name], f"{path}.{name}"
    return node


def _hint(node, path: str, name: str) -> str:
    if not isinstance(node, ConfigDict):
        return ""
    for stage in node.get("stages", ()):
        if name in node.stages[stage]:
            return f" Each stage has its own: config.stages.{stage}.{name}."
        if name not in node:
            return suggest(name, prefix=f"config.stages.{stage}.")
    section = path.rpartition(".")[2] if path != "config" else ""
    return suggest(name, section, node) or f" It has {', '.join(sorted(node))}."
