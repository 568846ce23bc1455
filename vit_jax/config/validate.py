"""Checks of config values, from mappings to the frozen dataclasses of `schema.py`."""

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping

from vit_jax.config import conditions, registry, upgrade
from vit_jax.config.fields import Kwargs, bounds
from vit_jax.config.schema import Config, Data, Optimizer
from vit_jax.errors import ConfigError, nearest

DURATIONS = ("steps", "epochs", "examples")  # Ways to give a run's length.
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    tuple: "a tuple",
    type(None): "None",
}


def check_run(values, where: str, earlier: tuple[str, ...] | None) -> Config:
    """Returns the frozen Config of one run; raises ConfigError that names a wrong field.

    Args:
      values: a mapping with every field.
      where: name of the run in errors, such as 'config.stages.finetune'.
      earlier: names of the stages before this one; None for a run without stages, whose
        `init.stage` is a folder next to its own.
    """
    config = check_section(Config, values, where)
    lengths = [name for name in DURATIONS if getattr(config, name) is not None]
    if len(lengths) != 1:
        found = " and ".join(f"{name}={getattr(config, name)}" for name in lengths) or "none"
        raise ConfigError(
            f"{where}: set one of steps, epochs, examples; found {found} "
            f"(--config.{lengths[0] if lengths else 'steps'}="
            f"{'None clears it' if lengths else '1000 sets one'})."
        )
    if config.init.path and config.init.stage:
        raise ConfigError(f"{where}.init: set path or stage, not both.")
    if config.init.stage and earlier is not None and config.init.stage not in earlier:
        raise ConfigError(
            f"{where}.init.stage is {config.init.stage!r}; "
            f"it must be an earlier stage, one of {list(earlier)}."
        )
    _check_rules(config, where)
    return config


def check_effects(config: Config, where: str, unasked: Collection[str] = ()) -> Config:
    """Raises ConfigError for a value that has no effect; returns the config.

    Args:
      config: a checked config.
      where: name of the run in errors.
      unasked: fields that get their default instead.
    """
    values = {}
    for field, error in conditions.without_effect(config):
        if field not in unasked:
            raise ConfigError(f"{where}.{error}.")
        values[field] = conditions.value_of(Config(), field)
    return conditions.replaced(config, values)


def import_user_code(config: Config, where: str = "config") -> Config:
    """Imports the user-defined objects that a checked config names, before a run of it starts.

    Returns the config with the options of these objects checked and converted, too. Raises
    ConfigError for an object that cannot be imported, and for options and rules that are not met.
    """
    names = list(registry.user_names(config, where))
    if not names:
        return config
    registry.import_objects(names)
    config = check_section(Config, dataclasses.asdict(config), where)
    _check_rules(config, where)
    return config


def _check_rules(config: Config, where: str) -> None:
    for is_met, error in _rules(config):
        if not is_met:
            raise ConfigError(f"{where}.{error}.")


def _rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Yields rules between fields: True if the rule is met, and the error if it is not.

    Rules of user-defined objects that are not imported yet are left out.
    """
    mesh = config.mesh
    yield from _data_rules(config.data)
    yield from _optimizer_rules(config.optimizer)
    task = registry.chosen(config.task, "name")
    if task:
        yield from task.rules(config)
    yield (
        config.batch_size % config.accumulate == 0,
        f"accumulate is {config.accumulate}; it must divide batch_size, {config.batch_size}",
    )
    selects = config.select == "best"
    yield (
        not selects or config.eval_every is not None,
        "select is 'best', but eval_every is None; set eval_every, or select='last'",
    )
    yield (
        not selects or bool(config.data.val_split or config.data.dev),
        "select is 'best', but data.val_split is empty and data.dev is None; set one of them, or "
        "select='last'",
    )
    is_sweep = bool(config.sweep.grid) or config.sweep.seeds > 1
    yield (
        not is_sweep or bool(config.data.val_split),
        "data.val_split is empty; a sweep needs it to score its final runs",
    )
    yield (
        not (is_sweep and config.data.dev),
        "data.dev must be None in a sweep; set sweep.dev, the fraction of held-out examples",
    )
    yield (
        not (is_sweep and selects),
        "select is 'best'; in a sweep it must be 'last', because the final runs would select "
        "on the split that they are scored on",
    )
    yield from _fewshot_rules(config, task)
    sizes = (mesh.data, mesh.fsdp, mesh.tensor)
    yield (
        0 not in sizes and sizes.count(-1) <= 1,
        f"mesh is data:{mesh.data},fsdp:{mesh.fsdp},tensor:{mesh.tensor}; each size must be at "
        "least 1, or -1 (all remaining devices) for one axis",
    )


def _fewshot_rules(config: Config, task) -> Iterator[tuple[bool, str]]:
    fewshot = config.fewshot
    kind = registry.chosen(fewshot, "source") if fewshot.source else None
    is_unknown = bool(fewshot.source) and kind is None
    has_sets = bool(kind and kind.named_by)
    yield (
        is_unknown or fewshot.every is None or has_sets == bool(fewshot.sets),
        f"fewshot.sets is {fewshot.sets}; fewshot.source={fewshot.source!r} "
        f"{'takes one or more' if has_sets else 'is one data set; leave sets empty'}",
    )
    yield (
        fewshot.every is None or fewshot.test_split != fewshot.split,
        f"fewshot.test_split is {fewshot.test_split!r}; it must differ from fewshot.split",
    )
    yield (
        fewshot.every is None or bool(fewshot.shots),
        "fewshot.shots is empty; expected at least one number of examples per class",
    )
    yield (
        fewshot.every is None or task is None or task.has_classes,
        f"fewshot.every is {fewshot.every}; it must be None, because "
        f"task.name={config.task.name!r} does not support few-shot evaluation",
    )


def _data_rules(data: Data) -> Iterator[tuple[bool, str]]:
    subset = [
        name for name in ("per_class", "fraction", "count") if getattr(data, name) is not None
    ]
    yield (
        len(subset) <= 1,
        f"data sets {' and '.join(subset)}; set at most one of per_class, fraction, count",
    )
    yield (
        data.eval_crops == 1 or data.eval_crop == "center",
        f"data.eval_crops is {data.eval_crops}; that needs data.eval_crop='center'",
    )
    yield (
        all(share > 0 for _, share in data.mix),
        f"data.mix is {data.mix}; every weight must be at least 1",
    )
    kind = registry.chosen(data, "source") if data.mix else None
    yield (
        kind is None or kind.can_mix,
        f"data.mix is {data.mix}; data sets of data.source={data.source!r} cannot be mixed",
    )


def _optimizer_rules(optimizer: Optimizer) -> Iterator[tuple[bool, str]]:
    for name in ("decay_factors", "lr_factors"):
        for pattern, factor in getattr(optimizer, name):
            yield _compiles(pattern), f"optimizer.{name}: {pattern!r} is no regular expression"
            yield factor >= 0, f"optimizer.{name}: {pattern!r} has the factor {factor}, below 0"
    yield (
        list(optimizer.stair_at) == sorted(optimizer.stair_at),
        f"optimizer.stair_at is {optimizer.stair_at}; the values must increase",
    )
    yield (
        optimizer.end_lr <= optimizer.lr,
        f"optimizer.end_lr is {optimizer.end_lr}; it must be at most lr, {optimizer.lr}",
    )
    rho, rho_min = optimizer.sam_rho, optimizer.sam_rho_min
    yield (
        rho_min is None or (rho is not None and rho_min <= rho),
        f"optimizer.sam_rho_min is {rho_min}; sam_rho must be at least that, and is {rho}",
    )
    yield (
        not optimizer.gsam_alpha or rho is not None,
        f"optimizer.gsam_alpha is {optimizer.gsam_alpha}; it needs sam_rho, which is None",
    )


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


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
            hint = upgrade.hint(f"{section}.{name}") or nearest(name, known)
            raise ConfigError(f"{where} has no field {name!r}.{hint}")
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
            entry = registry.chosen_by(chooser, chosen)
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
        raise ConfigError(f"{where} is {checked}: {' '.join(str(error).split())}") from error
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
    if kind is float and type(value) is int and abs(value) < 10**300:
        return float(value)
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
        raise ConfigError(f"{place} is {value!r}; it must be {wanted}.")
    value = next(fit for fit in fitting if fit is not _MISFIT)
    if limits.get("parser") and value != default:
        value = registry.load_object(limits["parser"])(value, place)
    if limits["choices"] and value not in limits["choices"]:
        hint = nearest(str(value), map(str, limits["choices"]))
        raise ConfigError(f"{place} is {value!r}; choose from {list(limits['choices'])}.{hint}")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        rules = [
            (math.isfinite(number), "finite"),
            (limits["above"] is None or number > limits["above"], f"above {limits['above']}"),
            (limits["least"] is None or number >= limits["least"], f"at least {limits['least']}"),
            (limits["most"] is None or number <= limits["most"], f"at most {limits['most']}"),
        ]
        for is_met, bound in rules:
            if not is_met:
                raise ConfigError(f"{place} is {value!r}; it must be {bound}.")
    return value
