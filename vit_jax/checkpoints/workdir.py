"""Files of a workdir, each written atomically."""

import contextlib
import itertools
import pathlib
import platform
import subprocess
from importlib import metadata

from vit_jax import config as config_lib
from vit_jax.atomic_io import json_object, to_json, write_atomically
from vit_jax.checkpoints import layout
from vit_jax.config.schema import Config
from vit_jax.errors import CheckpointError, ConfigError

CONFIG, SUMMARY = "config.json", "summary.json"
SUMMARY_FIELDS = {"step": int, "metrics": dict, "flops": int | float, "seconds": dict}
GRID = "grid"  # Folder of the runs of a sweep's grid.
DIVERGED = "diverged.json"  # Written for a run whose loss became NaN or infinite.
# Fields that may differ on a resume. Fingerprints in checkpoints detect other data in `data.dir`.
MAY_CHANGE = (*config_lib.FREE_ON_RESUME, "data.dir")


def require_utf8(folder: pathlib.Path) -> None:
    """Raises ConfigError for a path that is not UTF-8, which Orbax cannot write."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{folder}: the path of a workdir must be UTF-8; rename it, or set PYTHONUTF8=1 if "
            "Python does not use UTF-8 in this locale."
        ) from error


def write_json(path: pathlib.Path, values: dict) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, to_json(values, indent=2) + "\n")


def read_json(path: pathlib.Path) -> dict | None:
    """Returns the JSON object of a file, or None if the file does not exist.

    Raises ConfigError if the file contains no JSON object.
    """
    try:
        return json_object(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error


def read_config(folder: pathlib.Path) -> dict[str, Config]:
    """Returns the stages of the run in a folder.

    A stage with a checkpoint has the config in that checkpoint. Only fields that a resumed run may
    change (`MAY_CHANGE`) are taken from `config.json`, which can be missing or damaged for a run
    without stages.

    Raises:
      ConfigError: there is neither a `config.json` nor a checkpoint.
      CheckpointError: the checkpoints belong to different runs.
    """
    saved = read_saved_config(folder)
    try:
        values = _read_config_file(folder)
    except ConfigError:
        if saved is None:
            raise
        values = None
    if values is None and saved is None:
        raise ConfigError(
            f"{folder} contains no {CONFIG}, so there is no run to resume; give --config."
        )
    if values is None or saved is not None:
        values = _with_saved(saved, values or {})
    else:
        stages = values.get("stages", {})
        for name in stages:
            stages[name] = _with_saved(read_saved_config(folder / name), stages[name])
    return config_lib.from_dict(values)


def _read_config_file(folder: pathlib.Path) -> dict | None:
    """Returns the content of `config.json` with the fields of this version, or None."""
    values = read_json(folder / CONFIG)
    if values is None:
        return None
    try:
        return config_lib.to_dict(config_lib.from_dict(values))
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from error


def read_saved_config(folder: pathlib.Path) -> dict | None:
    """Returns the config in the newest checkpoint of a folder that can be read, or None.

    Without a checkpoint, the config is that of the best weights.

    Raises CheckpointError if the checkpoint before it belongs to a run with another config.
    """
    paths = _newest_steps(folder / layout.FOLDER) or _newest_steps(folder / layout.BEST)
    saved: dict[pathlib.Path, dict] = {}
    for path in paths:
        with contextlib.suppress(CheckpointError):
            saved[path] = _read_step_config(path)
        if len(saved) == 2:
            break
    for newest, before in itertools.pairwise(saved):
        if fields := fixed_differences(saved[before], saved[newest]):
            raise CheckpointError(
                f"{newest} and {before} belong to different runs: their configs differ in "
                f"{', '.join(fields)}. Remove the folder that does not belong to {folder}."
            )
    return next(iter(saved.values()), None)


def _newest_steps(folder: pathlib.Path) -> list[pathlib.Path]:
    return [folder / str(step) for step in reversed(layout.list_steps(folder))]


def _read_step_config(step_folder: pathlib.Path) -> dict:
    """Returns the config in a checkpoint, with the fields of this version."""
    try:
        return config_lib.to_dict(
            config_lib.from_dict(layout.read_item(step_folder, "meta")["config"])
        )
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{step_folder}: its config cannot be used: {error}") from error


def check_saved_config(step_folder: pathlib.Path, config: dict) -> None:
    """Raises CheckpointError if a checkpoint belongs to a run with another config."""
    if fields := fixed_differences(_read_step_config(step_folder), config):
        raise CheckpointError(
            f"{step_folder} belongs to a run with another config; it differs in "
            f"{', '.join(fields)}."
        )


def check_best(step_folder: pathlib.Path) -> None:
    """Raises CheckpointError if best weights do not belong to the newest checkpoint beside them."""
    for newest in _newest_steps(step_folder.parents[1] / layout.FOLDER):
        try:
            config = _read_step_config(newest)
            best_step = layout.read_item(newest, "meta").get("best_step") or 0
        except CheckpointError:
            continue  # The best weights remain usable.
        if best_step > int(step_folder.name):
            raise CheckpointError(
                f"{step_folder}: the best weights are those of step {best_step}, by {newest}. "
                f"Restore {step_folder.with_name(str(best_step))}, or name the folder of a step."
            )
        check_saved_config(step_folder, config)
        return


def _with_saved(saved: dict | None, values: dict) -> dict:
    """Returns the saved config, with the values of fields that may change on a resume."""
    return values if saved is None else _merged(saved, values, "")


def _merged(saved: dict, values: dict, prefix: str) -> dict:
    merged = {}
    for name, old in saved.items():
        new = values.get(name, old)
        if isinstance(old, dict) and isinstance(new, dict):
            merged[name] = _merged(old, new, f"{prefix}{name}.")
        else:
            merged[name] = new if _may_change(f"{prefix}{name}") else old
    return merged


def read_summary(folder: pathlib.Path) -> dict | None:
    """Returns the summary of a finished run.

    Returns None for an unfinished run, and for a folder of several runs.

    Raises:
      ConfigError: a field has a wrong type, so the file was not written by a run.
    """
    summary = read_json(folder / SUMMARY)
    if summary is None or "step" not in summary:
        return None
    for key, kind in SUMMARY_FIELDS.items():
        if not isinstance(summary.get(key), kind):
            value = repr(summary.get(key))[:40]
            raise ConfigError(
                f"{folder / SUMMARY}: {key} is {value}; the file was not written by a run."
            )
    for name, value in summary["metrics"].items():
        if not (value is None or isinstance(value, int | float)):
            raise ConfigError(f"{folder / SUMMARY}: {name} is {value!r:.40}; expected a number.")
    return summary


def check_same_run(folder: pathlib.Path, config: dict) -> None:
    """Raises ConfigError that lists the fields in which the runs of a folder have another config.

    A run is compared with the config in its checkpoint, a sweep with `config.json`. A run without
    a finished step accepts any config.
    """
    new, recorded, fields = _by_stage(config), {}, []
    with contextlib.suppress(ConfigError):  # The checkpoints decide, whatever is in this file.
        recorded = _by_stage(_read_config_file(folder) or {})
    # Stages with checkpoints that neither this config nor `config.json` has are differences, too.
    inside = folder.iterdir() if folder.is_dir() and "" not in new else ()
    saved = {path.name: None for path in inside if layout.list_steps(path / layout.FOLDER)}
    for name in {"": None} | recorded | saved | new:
        old = read_saved_config(folder / name)
        if old is None and _has_sweep_results(folder / name):
            old = recorded.get(name)
        if old is None:
            continue
        prefix = f"stages.{name}" if name else ""
        if name in new:
            fields += fixed_differences(old, new[name], prefix and f"{prefix}.")
        else:
            fields.append(prefix or "stages")
    if fields:
        raise other_config_error(folder, fields)


def config_notes(folder: pathlib.Path, config: dict) -> list[str]:
    """Returns notes about a resumed run: a wrong `config.json`, and changed values."""
    runs = _by_stage(config)
    saved = {name: read_saved_config(folder / name) for name in runs}
    if not any(saved.values()):
        return []
    notes = [_config_file_note(folder, config)]
    for name, old in saved.items():
        changed = old and config_lib.differing_fields(old, runs[name])
        if changed:
            notes.append(
                f"{folder / name}: resuming with changed values, from flags or {CONFIG}: "
                f"{', '.join(changed)}."
            )
    return list(filter(None, notes))


def _config_file_note(folder: pathlib.Path, config: dict) -> str:
    try:
        values = _read_config_file(folder)
    except ConfigError as error:
        return f"{error} The config of the checkpoint is used."
    if values is None:
        return f"{folder / CONFIG} is missing; the config of the checkpoint is used."
    fields = ", ".join(fixed_differences(values, config))
    return fields and (
        f"{folder / CONFIG} differs from the checkpoint in {fields}; the config of the checkpoint "
        "is used."
    )


def other_config_error(folder: pathlib.Path, fields: list[str]) -> ConfigError:
    """Returns the error of a folder whose run has other values of these fields."""
    return ConfigError(
        f"workdir {folder} contains a run with another config; it differs in {', '.join(fields)}. "
        "To resume this run, leave out --config or do not change these fields. To start a run "
        f"from its weights, use another --workdir with --config.init.path={folder}."
    )


def _by_stage(config: dict) -> dict[str, dict]:
    """Returns the configs of a `config.json` by stage; a config without stages is the stage ''."""
    if not config:
        return {}
    return config.get("stages") or {"": {k: v for k, v in config.items() if k != "stages"}}


def _has_sweep_results(folder: pathlib.Path) -> bool:
    """Returns True if a run of a sweep has a finished step or a loss that was not finite."""
    runs = [*folder.glob("seed_*"), *folder.glob(f"{GRID}/*")]
    return any(layout.list_steps(run / layout.FOLDER) or (run / DIVERGED).exists() for run in runs)


def fixed_differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Returns the fields in which two configs of one run differ and must not."""
    fields = config_lib.differing_fields(old, new)
    return [f"{prefix}{name}" for name in fields if not _may_change(name)]


def _may_change(name: str) -> bool:
    parts = name.split(".")
    name = ".".join(parts[2:] if parts[0] == "stages" else parts)
    return any(name == free or name.startswith(f"{free}.") for free in MAY_CHANGE)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect the numbers of a run."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def git_revision() -> str | None:
    """Returns the git commit of the source tree, with a + if files differ; None outside git."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
