"""Checks of a whole run: rules between fields, values without effect, user-defined objects."""

import dataclasses
import re
from collections.abc import Collection, Iterator

from vit_jax.config import conditions, registry
from vit_jax.config.schema import Config, Data, Optimizer
from vit_jax.config.values import check_section
from vit_jax.errors import ConfigError

DURATIONS = ("steps", "epochs", "examples")  # Ways to give a run's length.


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
    return conditions.with_values(config, values)


def import_user_code(config: Config, where: str = "config") -> Config:
    """Imports the user-defined objects that a checked config names, before a run of it starts.

    Returns the config with the options of these objects checked and converted, too. Raises
    ConfigError for an object that cannot be imported, and for options and rules that are not met.
    """
    names = list(registry.user_names(config, where))
    if not names:
        return config
    registry.import_objects(names)
    registry.check_objects(config, where)
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
        config.accumulate == "auto" or config.batch_size % config.accumulate == 0,
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
    is_sweep = config.sweep.has_several_runs
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
    yield from _fewshot_rules(config)
    yield from _probe_rules(config)
    sizes = (mesh.data, mesh.fsdp, mesh.tensor)
    yield (
        0 not in sizes and sizes.count(-1) <= 1,
        f"mesh is data:{mesh.data},fsdp:{mesh.fsdp},tensor:{mesh.tensor}; each size must be at "
        "least 1, or -1 (all remaining devices) for one axis",
    )


def _fewshot_rules(config: Config) -> Iterator[tuple[bool, str]]:
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


def _probe_rules(config: Config) -> Iterator[tuple[bool, str]]:
    probe = config.probe
    yield (
        probe.every is None or probe.test_split != probe.split,
        f"probe.test_split is {probe.test_split!r}; it must differ from probe.split",
    )
    yield (
        probe.every is None or bool(probe.source) or not config.data.mix,
        f"probe.source is ''; with data.mix={config.data.mix}, it must name a labelled data set",
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
        data.eval_crops == 1 or data.eval_crop != "resize",
        f"data.eval_crops is {data.eval_crops}; that needs data.eval_crop='center'",
    )
    side = data.eval_side if isinstance(data.eval_side, tuple) else (data.eval_side,) * 2
    yield (
        data.eval_side is None or all(a >= b for a, b in zip(side, data.size)),
        f"data.eval_side is {data.eval_side}; it must be at least image_size, {data.image_size}",
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
    for name in ("decay_factors", "lr_factors", "freeze_steps"):
        for pattern, _ in getattr(optimizer, name):
            yield _compiles(pattern), f"optimizer.{name}: {pattern!r} is no regular expression"
    for name in ("decay_factors", "lr_factors"):
        for pattern, factor in getattr(optimizer, name):
            yield factor >= 0, f"optimizer.{name}: {pattern!r} has the factor {factor}, below 0"
    for pattern, steps in optimizer.freeze_steps:
        yield (
            steps > 0,
            f"optimizer.freeze_steps: {pattern!r} has {steps} steps; expected 1 or more",
        )
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
