"""Declaration of config fields: default, meaning, bounds, and the table of named values."""

import dataclasses
import os


class Kwargs(dict[str, object]):
    """Keyword arguments in a frozen section: a dictionary with a hash, never changed."""

    def __hash__(self):
        return hash(tuple(sorted(self.items())))


def bounds(*, choices=(), above=None, least=None, most=None) -> dict:
    """Returns the bounds of a value, for a field or as the metadata of `typing.Annotated`.

    Args:
      choices: allowed values.
      above, least, most: bounds of numbers; `above` excludes the bound.
    """
    return {"choices": choices, "above": above, "least": least, "most": most}


def field(
    default,
    meaning: str,
    *,
    table: str = "",
    parser: str = "",
    kwargs_of: str = "",
    is_traced: bool = False,
    is_path: bool = False,
    **limits,
):
    """A dataclass field with its meaning and its bounds.

    Args:
      table: `package.module:TABLE` that implements the values, by name (`config/registry.py`).
      parser: `package.module:function` that checks and normalises the value; it is called with the
        value and the name of the field.
      kwargs_of: an earlier field of the section with a `table`; the value is the keyword
        arguments of the entry that it chooses, checked against the entry's signature.
      is_traced: the value is an argument of the compiled train step, so that runs which differ
        in it alone share one program.
      is_path: the value has paths, in which a leading `~` is the home directory.
      **limits: arguments of `bounds`.
    """
    metadata = {"meaning": meaning, "table": table, "parser": parser}
    metadata |= {"kwargs_of": kwargs_of, "is_traced": is_traced, "is_path": is_path}
    return dataclasses.field(default=default, metadata=metadata | bounds(**limits))


def expand_home(value):
    """Returns a path, or a tuple of values, with the home directory in place of a leading `~`."""
    if isinstance(value, tuple):
        return tuple(map(expand_home, value))
    is_home = isinstance(value, str) and value.startswith("~")
    return os.path.expanduser(value) if is_home else value


def without_traced(section):
    """Returns a section whose traced fields are None: equal for runs that share a program."""
    traced = [each.name for each in dataclasses.fields(section) if each.metadata["is_traced"]]
    return dataclasses.replace(section, **dict.fromkeys(traced))
