"""Things that a config chooses by name: a row of a table, or any importable object.

A field whose choices are implemented elsewhere names its table as `package.module:TABLE`. The
table, a mapping from names to classes or functions, is the one place that lists them. A name
with a colon, such as `my_package.my_module:blur`, is an object of the user's own.
"""

import dataclasses
import importlib
from collections.abc import Mapping

from vit_jax.errors import ConfigError, nearest


def load_object(path: str) -> object:
    """Returns the object at `package.module:name`; raises ConfigError if there is none."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path!r} cannot be imported: {error}.") from error


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
    row = getattr(table, "row", object)
    return found if isinstance(found, row) else row(found)


def chosen(section, name: str) -> object:
    """Returns what a field of a section names, from the table of the field."""
    (field,) = (each for each in dataclasses.fields(section) if each.name == name)
    return find(load_object(field.metadata["table"]), getattr(section, name), name)
