"""Configs that earlier versions wrote, in the fields of this version.

Workdirs and checkpoints hold the config of their run. `upgrade` translates one that was written
with fields that exist no more; a config file or a flag that uses such a field gets `hint`.
"""

from collections.abc import Callable

# Field of an earlier version -> its spelling in this version, for error messages.
RENAMED: dict[str, str] = {}

# Each edits the nested dictionary of one run in place, if it has fields of an earlier version.
UPGRADES: tuple[Callable[[dict], None], ...] = ()


def upgrade(values: dict) -> dict:
    """Returns the values of a `config.json`, one run or one with stages, in today's fields."""
    if isinstance(values.get("stages"), dict) and values["stages"]:
        return values | {"stages": {name: upgrade(run) for name, run in values["stages"].items()}}
    run = {name: dict(v) if isinstance(v, dict) else v for name, v in values.items()}
    for edit in UPGRADES:
        edit(run)
    return run


def hint(field: str) -> str:
    """Returns ` Use NEW.` for a field of an earlier version such as `data.crop`, or ``."""
    return f" Use {RENAMED[field]}." if field in RENAMED else ""
