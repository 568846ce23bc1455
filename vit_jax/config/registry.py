"""Objects that a config names.

A field whose choices are implemented elsewhere names its table as `package.module:TABLE`. The
table, a mapping from names to classes or functions, is the one place that lists them. A name
with a colon, such as `my_package.my_module:blur`, is a user-defined object.

Weights of other people have stored configs, which must not be able to run code. So `find`, and
with it everything that uses a config, imports a user-defined object only if its package is
trusted. Training first imports what its config names (`validate.import_user_code`).
"""

import ast
import dataclasses
import functools
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from vit_jax.errors import ConfigError, nearest, one_line, shown

TRUSTED = "VIT_JAX_TRUSTED"  # Environment variable: packages that stored configs may import.
USER_NAME = r"\w+(?:\.\w+)*:\w+"
CALL = r"([\w.]+(?::\w+)?)\s*(\(.*\))?"

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


class Call(NamedTuple):
    """A name, and the arguments in parentheses after it."""

    name: str
    args: tuple
    kwargs: dict


def parse_call(text: str) -> Call | None:
    """Returns the call of `name` or `name(arguments)`; None unless all arguments are literals.

    Nothing is evaluated.
    """
    match = re.fullmatch(CALL, text)
    try:
        call = ast.parse("call" + (match[2] or "()"), mode="eval").body
        kwargs = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
        if isinstance(call.func, ast.Name) and None not in kwargs:
            return Call(match[1], tuple(map(ast.literal_eval, call.args)), kwargs)
    except (TypeError, AttributeError, SyntaxError, ValueError, RecursionError, MemoryError):
        pass  # No match, no call, or other values than literals.
    return None


def is_user_defined(name: object) -> bool:
    """Returns True for `package.module:name(...)`, False for a row of a table."""
    return isinstance(name, str) and ":" in name


def load_object(path: str) -> object:
    """Returns the object of this package at `package.module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _path(name: str) -> str:
    """Returns `package.module:name` without options."""
    return name.partition("(")[0].strip()


def find(table: Mapping[str, object], name: str, field: str) -> object:
    """Returns the entry `name` of a table, or the object that `package.module:name` names.

    Options of the object may follow, as in `package.module:name(q=0.3)`.

    Raises ConfigError, beginning with `field`, for a name that is neither, and for a user-defined
    object that is not trusted.
    """
    check_name(table, name, field)
    if name in table:
        return table[name]
    require_trusted([(field, name)])
    import_objects([(field, name)])
    path, _, options = parse_call(name)
    found, row = load_object(path), getattr(table, "row", None)
    if row and isinstance(found, row) and not options:
        return found
    _check_form(found, table, f"{field} is {name!r}")
    if options and getattr(table, "attributes", ()):
        raise ConfigError(f"{field} is {name!r}; this field takes no options: {path} alone.")
    found = functools.partial(found, **options) if options else found
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
    call = parse_call(name)
    if call is None or call.args or not re.fullmatch(USER_NAME, call.name, re.ASCII):
        form = "(q=0.3), with options that are literals" if "(" in name else ""
        raise ConfigError(f"{field} is {name!r}; expected package.module:name{form}.")


def chosen(section, name: str) -> object | None:
    """Returns what a field of a section of the config names, as `chosen_by`."""
    (field,) = (each for each in dataclasses.fields(section) if each.name == name)
    place = f"config.{type(section).__name__.lower()}.{name}"
    return chosen_by(field, getattr(section, name), place)


def chosen_by(field: dataclasses.Field, value: str, place: str) -> object | None:
    """Returns what the value of a field names, or None for an object that is not imported yet."""
    if is_user_defined(value) and _path(value) not in _trusted:
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
            load_object(_path(name))
        except (Exception, SystemExit) as error:  # A module of the user can raise anything.
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ConfigError(
                f"{place} is {name!r}, which cannot be imported: {reason}."
            ) from error
        _trusted.add(_path(name))


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
        and _path(name) not in _trusted
        and re.split("[.:]", name)[0] not in trusted
    ]
    if missing:
        packages = [*trusted, *(re.split("[.:]", name)[0] for _, name in missing)]
        found = ", ".join(f"{place} is {name!r}" for place, name in missing)
        raise ConfigError(
            f"{found}: not part of vit_jax. A stored config may only import packages that you "
            f"trust; to trust them, set {TRUSTED}={','.join(dict.fromkeys(packages))}."
        )
