"""Checks of single values: type, bounds and name, from mappings to the sections of `schema.py`."""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping

from vit_jax.config import registry
from vit_jax.config.fields import Kwargs, bounds, expand_home
from vit_jax.config.hints import suggest
from vit_jax.errors import ConfigError, nearest, one_line, shown

LARGEST_INT = 2**63  # Whole numbers are below, and above its negative.
LARGEST, SMALLEST = 3.4e38, 1.2e-38  # Absolute values of numbers above 0 in float32.
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    tuple: "a tuple",
    type(None): "None",
}


def check_section(cls, values, where: str):
    """Returns a section of `schema.py` from a mapping with all of its fields.

    Raises ConfigError that names the wrong field as a part of `where`.
    """
    known = {each.name: each for each in dataclasses.fields(cls)}
    if not hasattr(values, "items"):
        raise ConfigError(f"{where} is {values!r}; expected a section of fields.")
    for name in known:
        if name not in values:
            raise ConfigError(
                f"{where} has no field {name!r}; start from base_config(), which has all fields."
            )
    for name in values:
        if name not in known:
            section = where.rpartition(".")[2]
            raise ConfigError(f"{where} has no field {name!r}.{suggest(name, section, known)}")
    built = {}
    for name, each in known.items():
        value, place = values[name], f"{where}.{name}"
        if dataclasses.is_dataclass(each.type):
            built[name] = check_section(each.type, value, place)
        elif each.type is Kwargs:
            chooser = known[each.metadata["kwargs_of"]]
            chosen = built[chooser.name]
            if not value and chosen == chooser.default:  # Importing the table may take a second.
                built[name] = Kwargs()
                continue
            entry = registry.chosen_by(chooser, chosen, f"{where}.{chooser.name}")
            built[name] = (
                check_kwargs(entry, value, place, chosen) if entry else _literals(value, place)
            )
        else:
            built[name] = _check_value(value, each.type, each.metadata, place, each.default)
            if each.metadata["table"] and built[name] != each.default:  # As above.
                registry.check_name(
                    registry.load_object(each.metadata["table"]), built[name], place
                )
    return cls(**built)


def number_or_auto(value: int | str, place: str) -> int | str:
    """Returns a number or 'auto'; raises ConfigError for another string."""
    if isinstance(value, str) and value != "auto":
        raise ConfigError(f"{place} is {shown(value)}; it must be a whole number or 'auto'.")
    return value


def _literals(values, where: str) -> Kwargs:
    """Returns the options of an object that is not imported yet."""
    if not hasattr(values, "items"):
        raise ConfigError(f"{where} is {values!r}; expected a dictionary of options.")
    kinds = bool | int | float | str | tuple | None
    checked = Kwargs()
    for option, value in sorted(values.items()):
        checked[option] = _check_value(value, kinds, bounds(), f"{where}.{option}")
        try:
            hash(checked[option])
        except TypeError as error:
            raise ConfigError(
                f"{where}.{option} is {value!r}; expected a number, a string, "
                "True, False, None, or a tuple of these."
            ) from error
    return checked


def check_kwargs(entry: Callable, values, where: str, name: str) -> Kwargs:
    """Returns the keyword arguments of a table's entry that differ from its defaults.

    Each value is checked against the entry's signature: the annotation, which is a type or
    `Annotated[type, bounds(...)]`, or else the type of the default.

    Args:
      values: a mapping of options.
      where: prefix of error messages, such as 'config.optimizer.kwargs'.
      name: of the entry.

    Raises ConfigError that names the option, or if the entry itself rejects the values.
    """
    if not hasattr(values, "items"):
        raise ConfigError(f"{where} is {values!r}; expected a dictionary of options.")
    try:
        parameters = inspect.signature(entry).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name} takes no options: {error}.") from error
    checked = {}
    for option, value in sorted(values.items()):
        if option not in parameters:
            options = ", ".join(parameters) or "no options"
            raise ConfigError(
                f"{where} has no option {option!r}; {name} has {options}."
                f"{nearest(option, parameters)}"
            )
        default = parameters[option].default
        value = _check_value(value, *_type_of(parameters[option]), f"{where}.{option}")
        if type(value) is not type(default) or value != default:
            checked[option] = value
    try:
        entry(**checked)
    except Exception as error:  # An entry of the user can raise anything.
        raise ConfigError(f"{where} is {checked}: {one_line(error)}") from error
    return Kwargs(checked)


def _type_of(parameter: inspect.Parameter) -> tuple[type | types.UnionType, dict]:
    """Returns the type and the bounds of a parameter's values."""
    annotation = parameter.annotation
    if typing.get_origin(annotation) is typing.Annotated:
        return typing.get_args(annotation)
    is_union = isinstance(annotation, types.UnionType)
    kinds = typing.get_args(annotation) if is_union else (annotation,)
    if all(kind in TYPE_NAMES or typing.get_origin(kind) is tuple for kind in kinds):
        return annotation, bounds()
    if type(parameter.default) in (bool, int, float, str, tuple):
        return type(parameter.default), bounds()
    return bool | int | float | str | tuple | None, bounds()


_MISFIT = object()


def _as_kind(value, kind):
    """Returns the value as a `float`, `tuple[int, int]`, ..., or _MISFIT if it has another type."""
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        if not isinstance(value, (tuple, list)):
            return _MISFIT
        if items[-1] is Ellipsis:
            items = items[:1] * len(value)
        if len(value) != len(items):
            return _MISFIT
        fitting = tuple(map(_as_kind, value, items))
        return _MISFIT if _MISFIT in fitting else fitting
    if kind is tuple and isinstance(value, (tuple, list)):
        return tuple(_as_kind(v, tuple) if isinstance(v, (tuple, list)) else v for v in value)
    if kind is float and type(value) is int:
        return float(value) if abs(value) < 10**300 else math.inf if value > 0 else -math.inf
    return value if type(value) is kind else _MISFIT


def _type_name(kind) -> str:
    """Returns the name of a type in errors."""
    if typing.get_origin(kind) is not tuple:
        return TYPE_NAMES[kind]
    items = typing.get_args(kind)
    if items[-1] is Ellipsis:
        return f"a tuple of {_type_name(items[0]).removeprefix('a ')} items"
    return f"({', '.join(_type_name(item).removeprefix('a ') for item in items)})"


def _check_value(value, kind, limits: Mapping, place: str, default=None):
    """Returns the value in its declared type; raises ConfigError if it is out of bounds."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    fitting = [_as_kind(value, kind) for kind in kinds]
    if all(fit is _MISFIT for fit in fitting):
        wanted = " or ".join(map(_type_name, kinds))
        can_be_empty = default == "" or "''" in limits.get("meaning", "")
        is_text = value is None and kinds == (str,) and can_be_empty
        none = ", which is empty ('') for none" if is_text else ""
        raise ConfigError(f"{place} is {shown(value)}; it must be {wanted}{none}.")
    value = next(fit for fit in fitting if fit is not _MISFIT)
    if limits.get("is_path"):
        value = expand_home(value)
    if limits.get("parser") and value != default:
        value = registry.load_object(limits["parser"])(value, place)
    if limits["choices"] and value not in limits["choices"]:
        hint = nearest(str(value), map(str, limits["choices"]))
        raise ConfigError(f"{place} is {value!r}; choose from {list(limits['choices'])}.{hint}")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        is_float = isinstance(number, float)
        rules = [
            (not is_float or math.isfinite(number), "finite"),
            (is_float or abs(number) < LARGEST_INT, f"below {LARGEST_INT}"),
            (not is_float or abs(number) < LARGEST, f"at most {LARGEST}, in float32"),
            (not is_float or not 0 < abs(number) < SMALLEST, f"0 or at least {SMALLEST}"),
            (limits["above"] is None or number > limits["above"], f"above {limits['above']}"),
            (limits["least"] is None or number >= limits["least"], f"at least {limits['least']}"),
            (limits["most"] is None or number <= limits["most"], f"at most {limits['most']}"),
        ]
        for is_met, bound in rules:
            if not is_met:
                raise ConfigError(f"{place} is {shown(value)}; it must be {bound}.")
    return value
