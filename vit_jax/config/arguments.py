"""Arguments of config files, `FILE:key=value,word`."""

import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping

from ml_collections.config_dict import ConfigDict

from vit_jax.config.loading import literal
from vit_jax.config.values import TYPE_NAMES
from vit_jax.errors import ConfigError, nearest

# Arguments of config files whose fields `trial.smoke` replaces.
REPLACED_BY_SMOKE = {"init", "teacher", "size", "patch", "steps", "epochs", "batch", "dir"}
WITH_OPTION = r"\w+=.+:[a-z_]+=[^,:]*"  # `init=vit.safetensors:num_heads=6`.


def parse_arg(
    arg: str | None,
    needs: Mapping[str, str] | None = None,
    excludes: Mapping[str, str] | None = None,
    **defaults,
) -> ConfigDict:
    """Returns the arguments `key=value,word` after `FILE:`; a word alone means `word=True`.

    A value may contain commas if it is the path of a file or folder that exists, or if it ends in
    options of weights, such as `vit.safetensors:num_heads=6,gelu=erf`.

    Args:
      arg: the text after `FILE:`.
      needs, excludes: argument -> another without which, or beside which, it has no effect.
      **defaults: every argument with its default.

    Raises ConfigError for an unknown, repeated or empty argument, for one without effect, and for
    a value of another type.
    """
    values, given = dict(defaults), set()
    for item in _split(arg or "", defaults):
        key, equals, text = item.partition("=")
        if key in given:
            raise ConfigError(f"config argument {key} is given twice.")
        given.add(key)
        if key not in defaults:
            hint = nearest(key, defaults)
            raise ConfigError(f"config argument {key!r} is not one of {sorted(defaults)}.{hint}")
        if equals and not text:
            raise ConfigError(f"config argument {key} is empty; give it a value, or leave it out.")
        if not equals:
            values[key] = True
        elif isinstance(defaults[key], str):
            values[key] = text
        else:
            values[key] = literal(text)
        wanted = type(defaults[key])
        if wanted is float and type(values[key]) is int:
            values[key] = float(values[key])
        if type(values[key]) is not wanted and defaults[key] is not None:
            raise ConfigError(
                f"config argument {key} is {text or True!r}; it must be {TYPE_NAMES[wanted]}."
            )
    for key in sorted(given):
        if needs and needs.get(key, key) not in given:
            raise ConfigError(f"config argument {key} has no effect without {needs[key]}.")
        if excludes and excludes.get(key) in given:
            raise ConfigError(
                f"config argument {key} has no effect with {excludes[key]}; leave one of them out."
            )
    if values.get("smoke") and (ignored := sorted(given & REPLACED_BY_SMOKE)):
        raise ConfigError(
            f"config argument {ignored[0]} has no effect with smoke, which trains a tiny model "
            "from random weights for 20 steps; leave one of them out."
        )
    return ConfigDict(values)


def _split(arg: str, known: Collection[str]) -> Iterator[str]:
    """Yields the parts between commas other than those in existing paths and weights options."""
    parts = arg.split(",")
    while parts:
        length = 1
        for end in range(2, len(parts) + 1):
            is_argument = parts[length].partition("=")[0] in known and _exists(parts[:length])
            if _exists(parts[:end]) and not is_argument:
                length = end
        if re.fullmatch(WITH_OPTION, ",".join(parts[:length]), re.DOTALL):
            while length < len(parts) and _is_option(parts[length], known):
                length += 1
        if item := ",".join(parts[:length]):
            yield item
        parts = parts[length:]


def _is_option(part: str, known: Collection[str]) -> bool:
    """Returns True for `name=value` whose name is not an argument of the config."""
    name, equals, _ = part.partition("=")
    return bool(equals) and name not in known


def _exists(parts: list[str]) -> bool:
    _, equals, start = parts[0].partition("=")
    path = ",".join([start, *parts[1:]])
    return bool(equals and path) and os.path.exists(os.path.expanduser(path))


def find_source(path: str) -> str:
    """Returns the `data.source` of a folder of images: 'prepared' or 'folder'."""
    info = pathlib.Path(os.path.expanduser(path), "prepared.json")  # `vit_jax.data.manifest.INFO`.
    return "prepared" if info.is_file() else "folder"
