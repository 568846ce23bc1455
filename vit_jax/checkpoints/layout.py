"""Folders of single steps: their names, and the JSON items in them with their checksums.

`<step>/` contains the items `state` (arrays), `data` (position of the data loader), `meta` (config,
classes, preprocessing, versions) and `manifest`: the number of the step, name, shape, dtype and
CRC-32C of every array, and checksums of the other items and of itself. A folder with the name of
another step is therefore detected, too. This module reads no arrays and imports no JAX.
"""

import pathlib
import re

import google_crc32c
import numpy as np

from vit_jax.atomic_io import json_object, to_json
from vit_jax.errors import CheckpointError, one_line

FOLDER, BEST = "checkpoints", "best"
DAMAGED = "damaged"  # Folder of a run for damaged files and steps that were replaced.


def list_steps(folder: pathlib.Path) -> list[int]:
    """Returns the committed steps, oldest first, without those of a killed writer.

    Files, and folders with other names, are not steps.
    """
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))


def newest_steps(folder: pathlib.Path) -> dict[str, int]:
    """Returns the newest step of every run in a workdir, by the folder of the run.

    A run is the workdir itself, a stage, or a run of a sweep; one without a step is left out.
    """
    found = {}
    if steps := list_steps(folder / FOLDER):
        found[str(folder)] = steps[-1]
    for inner in sorted(folder.iterdir()) if folder.is_dir() else ():
        if inner.is_dir() and inner.name not in (FOLDER, BEST, DAMAGED) and inner.name[0] != ".":
            found |= newest_steps(inner)
    return found


def find_step_folder(where: str | pathlib.Path) -> pathlib.Path:
    """Returns the folder of the newest step in a workdir, stage folder or `checkpoints` folder.

    The folder of a step is returned unchanged. A run that selects its best weights has them in
    `best`, which takes precedence over `checkpoints`.

    Raises:
      CheckpointError: the folder contains no checkpoint; lists what it contains.
    """
    path = pathlib.Path(where)
    if re.fullmatch(r"\d+", path.name) and (path / "manifest").is_dir():
        return path
    for folder in (path, path / BEST, path / FOLDER):
        if steps := list_steps(folder):
            step_folder = folder / str(steps[-1])
            if folder == path / FOLDER:
                _check_has_no_best(step_folder)
            return step_folder
    if not path.exists():
        raise CheckpointError(f"{where}: no such file or folder.")
    if not path.is_dir():
        raise CheckpointError(f"{where} is not a checkpoint: expected a folder, found a file.")
    names = ", ".join(sorted(p.name for p in path.iterdir())[:8])
    raise CheckpointError(f"{where} contains no checkpoint; it contains {names or 'nothing'}.")


def _check_has_no_best(step_folder: pathlib.Path) -> None:
    """Raises CheckpointError if the run of a step has best weights, which must be preferred."""
    if best := read_item(step_folder, "meta").get("best_step"):
        raise CheckpointError(
            f"{step_folder.parents[1] / BEST} is missing; it contained the best weights, those of "
            f"step {best}. To use the weights of this step instead, give {step_folder}."
        )


def make_manifest(step: int, leaves: dict, items: dict) -> dict:
    """Returns the manifest of a step.

    Args:
      step: number of the step.
      leaves: array name -> its shape, dtype and crc32c.
      items: the items `data` and `meta`.
    """
    manifest = {
        "step": step,
        "leaves": leaves,
        "items": {name: crc_of_json(item) for name, item in items.items()},
    }
    return manifest | {"crc32c": crc_of_json(manifest)}


def crc_of_json(item: dict) -> int:
    """Returns the CRC-32C of a JSON object, which the order of its keys does not change."""
    return google_crc32c.value(to_json(item, sort_keys=True).encode())


def read_manifest(step_folder: pathlib.Path) -> dict:
    """Returns the manifest of a step.

    Raises CheckpointError if it is damaged, or if it belongs to another step than the folder.
    """
    manifest = _read_json(step_folder, "manifest")
    body = {name: part for name, part in manifest.items() if name != "crc32c"}
    if crc_of_json(body) != manifest.get("crc32c") or not {"leaves", "items"} <= set(body):
        raise CheckpointError(f"{step_folder / 'manifest'} is damaged: wrong checksum.")
    if not _is_of_step(manifest, int(step_folder.name)):
        step = manifest.get("step", "another")
        raise CheckpointError(
            f"{step_folder} contains the checkpoint of step {step}; expected that of its own name. "
            "Restore the original folder, or remove this one."
        )
    return manifest


def _is_of_step(manifest: dict, step: int) -> bool:
    if "step" in manifest:
        return manifest["step"] == step
    # Version 0.1.0 stored the number of the step only as an array of the state.
    leaf = manifest["leaves"].get("step")
    return leaf is None or leaf["crc32c"] == google_crc32c.value(
        np.array(step, leaf["dtype"]).tobytes()
    )


def read_item(step_folder: pathlib.Path, name: str) -> dict:
    """Returns the item `data` or `meta` of a step after checking its checksum."""
    item = _read_json(step_folder, name)
    if crc_of_json(item) != read_manifest(step_folder)["items"].get(name):
        raise CheckpointError(f"{step_folder / name} is damaged: wrong checksum.")
    return item


def _read_json(step_folder: pathlib.Path, name: str) -> dict:
    path = step_folder / name / "metadata"
    try:
        return json_object(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{step_folder} is not a vit_jax checkpoint: {path} is missing."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({one_line(error)}).") from error
