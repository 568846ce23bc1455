"""Configs that earlier versions wrote, in the fields of this version.

Workdirs and checkpoints hold the config of their run. `upgrade` translates one that was written
with fields that exist no more; a config file or a flag that uses such a field gets `hint`.
"""

from collections.abc import Callable

# Field of an earlier version -> its spelling in this version, for error messages.
RENAMED: dict[str, str] = {
    "optimizer.beta1": "optimizer.kwargs.b1 (adafactor: optimizer.kwargs.momentum)",
    "optimizer.beta2": "optimizer.kwargs.b2 (adafactor: optimizer.kwargs.beta2_cap)",
    "optimizer.momentum": "optimizer.kwargs.momentum",
    "optimizer.moment_dtype": "optimizer.kwargs.mu_dtype (sgd: optimizer.kwargs.accumulator_dtype, "
    "adafactor: optimizer.kwargs.dtype_momentum)",
}

# Optimizer -> field of an earlier version -> the option that replaces it.
_ADAM = {"beta1": "b1", "beta2": "b2", "moment_dtype": "mu_dtype"}
_OPTIMIZER_KWARGS = {
    "adamw": _ADAM,
    "lamb": _ADAM,
    "sgd": {"momentum": "momentum", "moment_dtype": "accumulator_dtype"},
    "adafactor": {"beta1": "momentum", "beta2": "beta2_cap", "moment_dtype": "dtype_momentum"},
}


def _move_optimizer_options(run: dict) -> None:
    """Moves the fields beta1, beta2, momentum and moment_dtype to `optimizer.kwargs`."""
    optimizer = run.get("optimizer")
    if not isinstance(optimizer, dict):
        return
    names = _OPTIMIZER_KWARGS.get(optimizer.get("name", "adamw"), {})
    for old in ("beta1", "beta2", "momentum", "moment_dtype"):
        if old not in optimizer:
            continue
        value = optimizer.pop(old)
        if old in names:
            optimizer["kwargs"] = {**optimizer.get("kwargs", {}), names[old]: value}


# Each edits the nested dictionary of one run in place, if it has fields of an earlier version.
UPGRADES: tuple[Callable[[dict], None], ...] = (_move_optimizer_options,)


def upgrade(values: dict) -> dict:
    """Returns the values of a `config.json`, one run or one with stages, in today's fields."""
    if isinstance(values.get("stages"), dict) and values["stages"]:
        return values | {"stages": {name: upgrade(run) for name, run in values["stages"].items()}}
    run = {name: dict(v) if isinstance(v, dict) else v for name, v in values.items()}
    for edit in UPGRADES:
        edit(run)
    return run


def hint(field: str) -> str:
    """Returns ` Use NEW.` for a field of an earlier version such as `data.crop`, or ``.

    A name without a section, such as `crop`, stands for that field of any section.
    """
    matches = (new for old, new in RENAMED.items() if field in (old, old.rpartition(".")[2]))
    new = next(matches, None)
    return f" Use {new}." if new else ""
