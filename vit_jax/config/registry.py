"""Objects that a config names.

A field whose choices are implemented elsewhere names its table as `package.module:TABLE`. The
table, a mapping from names to classes or functions, is the one place that lists them. A name
with a colon, such as `my_package.my_module:blur`, is a user-defined object.

Weights of other people have stored configs, which must not be able to run code. So `find`, and
with it everything that uses a config, imports a user-defined object only if its package is
trusted. Training first imports what its config names (`validate.import_user_code`).
"""

import dataclasses
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping

from vit_jax.errors import ConfigError, nearest, one_line, shown

TRUSTED = "VIT_JAX_TRUSTED"  # Environment variable: packages that stored configs may import.
USER_NAME = r"\w+(?:\.\w+)*:\w+"

_trusted: set[str] = set()  # Names of user-defined objects that this process may import.


class Table(dict):
    """Table of objects chosen by name, with the form of its entries.

    Attributes:
      row: class of the entries; `row(object)` makes one of a user-defined object. None for
        functions and classes, which are used as they are.
      attributes: names that every entry has.
    """

    def __init__(
        self, row: type | None, rows: Mapping[str, object], attributes: tuple[str, ...] = ()
    ):
        super().__init__(rows)
        self.row, self.attributes = row, attributes


def is_user_defined(name: object) -> bool:
    """Returns True for `package.module:name`, False for a row of a table."""
    return isinstance(name, str) and ":" in name


def load_object(path: str) -> object:
    """Returns the object of this package at `package.module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def find(table: Mapping[str, object], name: str, field: str) -> object:
    """Returns the entry `name` of a table, or the object that `package.module:name` names.

    Raises ConfigError, beginning with `field`, for a name that is neither, and for a user-defined
    object that is not trusted.
    """
    check_name(table, name, field)
    if name in table:
        return table[name]
    require_trusted([(field, name)])
    import_objects([(field, name)])
    found, row = load_object(name), getattr(table, "row", None)
    if row and isinstance(found, row):
        return found
    _check_form(found, table, f"{field} is {name!r}")
    return row(found) if row else found


def _check_form(found: object, table: Mapping[str, object], place: str) -> None:
    """Raises ConfigError, beginning with `place`, for an object that cannot be an entry."""
    if not callable(found):
        raise ConfigError(f"{place}, which is {shown(found)}; expected a function or a class.")
    missing = [name for name in getattr(table, "attributes", ()) if not hasattr(found, name)]
    if missing:
        raise ConfigError(f"{place}, which has no {', '.join(missing)}; see docs/extending.md.")


def check_name(table: Mapping[str, object], name: str, field: str) -> None:
    """Raises ConfigError, beginning with `field`, for what is no row and no `package.module:name`.

    Imports nothing.
    """
    if name in table:
        return
    if not is_user_defined(name):
        choices = ", ".join(table)
        raise ConfigError(
            f"{field} is {name!r}; expected one of {choices}, or package.module:name."
            f"{nearest(name, table)}"
        )
    if not re.fullmatch(USER_NAME, name, re.ASCII):
        raise ConfigError(f"{field} is {name!r}; expected package.module:name.")


def chosen(section, name: str) -> object | None:
    """Returns what a field of a section of the config names, as `chosen_by`."""
    (field,) = (each for each in dataclasses.fields(section) if each.name == name)
    place = f"config.{type(section).__name__.lower()}.{name}"
    return chosen_by(field, getattr(section, name), place)


def chosen_by(field: dataclasses.Field, value: str, place: str) -> object | None:
    """Returns what the value of a field names, or None for an object that is not imported yet."""
    if is_user_defined(value) and value not in _trusted:
        return None
    return find(load_object(field.metadata["table"]), value, place)


def user_names(section, where: str) -> Iterator[tuple[str, str]]:
    """Yields the place and the name of each user-defined object in a section.

    Such a name is the whole value of a field, or begins a step of a field such as
    `data.augment`.
    """
    for field in dataclasses.fields(section):
        value, place = getattr(section, field.name), f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from user_names(value, place)
        elif isinstance(value, str) and (field.metadata["table"] or field.metadata["parser"]):
            for name in re.findall(rf"(?:^|\|)\s*({USER_NAME})", value, re.ASCII):
                yield place, name


def check_objects(section, where: str) -> None:
    """Raises ConfigError for an imported object that cannot be an entry of its field's table."""
    for field in dataclasses.fields(section):
        value, place = getattr(section, field.name), f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            check_objects(value, place)
        elif field.metadata["table"] and is_user_defined(value):
            find(load_object(field.metadata["table"]), value, place)


def import_objects(names: Iterable[tuple[str, str]]) -> None:
    """Imports the user-defined objects among (place, name), which this process may then use.

    Raises ConfigError if one cannot be imported.
    """
    for place, name in names:
        if not is_user_defined(name):
            continue
        try:
            load_object(name)
        except (Exception, SystemExit) as error:  # A module of the user can raise anything.
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ConfigError(
                f"{place} is {name!r}, which cannot be imported: {reason}."
            ) from error
        _trusted.add(name)


def trusted_names() -> frozenset[str]:
    """Returns the names of the user-defined objects that this process may import."""
    return frozenset(_trusted)


def trust(names: Iterable[str]) -> None:
    """Lets this process import user-defined objects, those of the process that started it."""
    _trusted.update(names)


def require_trusted(names: Iterable[tuple[str, str]]) -> None:
    """Raises ConfigError if user-defined objects among (place, name) are not trusted.

    Trusted are the packages in the environment variable VIT_JAX_TRUSTED, separated by commas, and
    objects that this process has imported before.
    """
    trusted = list(filter(None, map(str.strip, os.environ.get(TRUSTED, "").split(","))))
    missing = [
        (place, name)
        for place, name in names
        if is_user_defined(name)
        and name not in _trusted
        and re.split("[.:]", name)[0] not in trusted
    ]
    if missing:
        packages = [*trusted, *(re.split("[.:]", name)[0] for _, name in missing)]
        found = ", ".join(f"{place} is {name!r}" for place, name in missing)
        raise ConfigError(
            f"{found}: not part of vit_jax. A stored config may only import packages that you "
            f"trust; to trust them, set {TRUSTED}={','.join(dict.fromkeys(packages))}."
        )
