"""Things that a config chooses by name: a row of a table, or any importable object.

A field whose choices are implemented elsewhere names its table as `package.module:TABLE`. The
table, a mapping from names to classes or functions, is the one place that lists them. A name
with a colon, such as `my_package.my_module:blur`, is a user-defined object.

Weights of other people have stored configs, which must not be able to run code. So the check of a
config imports no user-defined objects. Training imports them; code that evaluates with a stored
config calls `require_trusted` first.
"""

import dataclasses
import importlib
import os
import re
from collections.abc import Mapping

from vit_jax.errors import ConfigError, nearest

TRUSTED = "VIT_JAX_TRUSTED"  # Environment variable: packages that stored configs may import.
_imported: set[str] = set()  # User-defined objects that this process has imported.


def is_user_defined(name: object) -> bool:
    """Returns True for `package.module:name`, False for a row of a table."""
    return isinstance(name, str) and ":" in name


def load_object(path: str) -> object:
    """Returns the object at `package.module:name`; raises ConfigError if there is none."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # A module of the user can raise anything.
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{path!r} cannot be imported: {words}.") from error


class Table(dict):
    """A table whose rows are of one class; `row(object)` makes a row of a user's own object."""

    def __init__(self, row: type, rows: Mapping[str, object]):
        super().__init__(rows)
        self.row = row


def find(table: Mapping[str, object], name: str, field: str) -> object:
    """Returns the entry `name` of a table, or the object that `package.module:name` names.

    Raises ConfigError, beginning with `field`, for a name that is neither.
    """
    if name in table:
        return table[name]
    if ":" not in name:
        choices = ", ".join(table)
        raise ConfigError(
            f"{field} is {name!r}; expected one of {choices}, or package.module:name."
            f"{nearest(name, table)}"
        )
    try:
        found = load_object(name)
    except ConfigError as error:
        raise ConfigError(f"{field} is {name!r}; {error}") from error
    _imported.add(name)
    row = getattr(table, "row", object)
    return found if isinstance(found, row) else row(found)


def chosen(section, name: str, imports: bool) -> object | None:
    """Returns what a field of a section names, from the table of the field.

    Without `imports`, returns None for a user-defined object.
    """
    (field,) = (each for each in dataclasses.fields(section) if each.name == name)
    value = getattr(section, name)
    if is_user_defined(value) and not imports:
        return None
    return find(load_object(field.metadata["table"]), value, name)


def check_name(table: str, name: str, field: str, imports: bool) -> None:
    """Checks a name; raises ConfigError, beginning with `field`.

    Args:
      table: `package.module:TABLE`.
      imports: import a user-defined object; otherwise only the syntax of its name is checked.
    """
    if not is_user_defined(name) or imports:
        find(load_object(table), name, field)
    elif not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        raise ConfigError(f"{field} is {name!r}; expected package.module:name.")


def require_trusted(name: str, field: str) -> None:
    """Raises ConfigError if a stored config names a user-defined object that is not trusted.

    Trusted are the packages in the environment variable VIT_JAX_TRUSTED, separated by commas, and
    objects that this process has imported before.
    """
    package = re.split("[.:]", name)[0]
    trusted = [each.strip() for each in os.environ.get(TRUSTED, "").split(",")]
    if is_user_defined(name) and name not in _imported and package not in trusted:
        raise ConfigError(
            f"{field} is {name!r}, which is not part of vit_jax. A stored config may only import "
            f"packages that you trust; to trust this one, set {TRUSTED}={package}."
        )


def require_trusted_section(section, where: str) -> None:
    """Raises ConfigError, as `require_trusted`, for each field of a section that has a table."""
    for field in dataclasses.fields(section):
        if field.metadata["table"]:
            require_trusted(getattr(section, field.name), f"{where}.{field.name}")
