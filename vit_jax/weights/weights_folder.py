"""Folders of weights of Hugging Face, timm and open_clip: one file, or shards with an index."""

import dataclasses
import pathlib
import re

import numpy as np

from vit_jax.atomic_io import json_object
from vit_jax.errors import CheckpointError
from vit_jax.weights.archive import Archive, ArrayInfo, open_archive, reject_constant
from vit_jax.weights.file_kinds import NPZ, PICKLES, SAFETENSORS, pickle_error

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
OPEN_CLIP = "open_clip_model.safetensors"  # Beside open_clip_config.json.
SHARD = re.compile(r"[\w.-]+-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
MAX_JSON = 2**22  # Bytes of a config.json or an index.


@dataclasses.dataclass(frozen=True)
class ShardedArchive:
    """The arrays of several files, under the interface of `Archive`."""

    path: pathlib.Path
    arrays: dict[str, ArrayInfo]
    metadata: dict
    _shard_of: dict[str, Archive] = dataclasses.field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """Returns an array as float32, as `Archive.read`."""
        return self._shard_of[name].read(name)


def is_weights_folder(folder: pathlib.Path) -> bool:
    """Returns True for a folder with a file of weights, its shards, or their index."""
    files = (FILE, INDEX, OPEN_CLIP)
    return any((folder / name).is_file() for name in files) or bool(_shards_in(folder))


def open_weights(path: pathlib.Path) -> Archive | ShardedArchive:
    """Returns the arrays of a file or folder without reading their contents.

    Raises:
      CheckpointError: the file, or a shard, is missing, damaged or of another kind.
    """
    if path.is_dir():
        file = _single_file(path)
        return _open_shards(path) if file is None else open_archive(file)
    match = SHARD.fullmatch(path.name)
    if match and int(match[2]) > 1:
        raise CheckpointError(
            f"{path} is one of {int(match[2])} shards of a model; give their folder, {path.parent}."
        )
    return open_archive(path)


def _single_file(folder: pathlib.Path) -> pathlib.Path | None:
    """The file of weights that is not in shards; None if there is none."""
    has_shards = (folder / INDEX).is_file() or bool(_shards_in(folder))
    names = (FILE,) if has_shards else (FILE, OPEN_CLIP)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _open_shards(folder: pathlib.Path) -> ShardedArchive:
    index = read_json_object(folder / INDEX) if (folder / INDEX).is_file() else {}
    file_of = index.get("weight_map") or {}
    names = sorted(set(file_of.values())) if _is_map(file_of, folder) else _shards_in(folder)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(names)} shards are missing, such as {missing[0]}; "
            "download them."
        )
    if not names:
        raise CheckpointError(f"{folder / INDEX} names no shards, and {folder} contains none.")
    arrays: dict[str, ArrayInfo] = {}
    shard_of: dict[str, Archive] = {}
    for shard in (open_archive(folder / name) for name in names):
        for name, info in shard.arrays.items():
            if name in arrays:
                first = shard_of[name].path.name
                raise CheckpointError(f"{shard.path}: {name} is in {first} too.")
            arrays[name], shard_of[name] = info, shard
    for name in file_of.keys() ^ arrays.keys() if file_of else ():
        where = "in no shard" if name in file_of else f"not in {INDEX}"
        raise CheckpointError(f"{folder}: {name} is {where}; download the folder again.")
    return ShardedArchive(folder / INDEX, arrays, {}, shard_of)


def _is_map(file_of: object, folder: pathlib.Path) -> bool:
    """Returns True for a map of tensors to files of the folder; False for an empty one."""
    is_map = isinstance(file_of, dict) and all(
        isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", name, re.ASCII)
        for name in file_of.values()
    )
    if not is_map:
        raise CheckpointError(f"{folder / INDEX}: weight_map does not name .safetensors files.")
    return bool(file_of)


def _shards_in(folder: pathlib.Path) -> list[str]:
    """Names of all shards of the files in a folder, as their names count them."""
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    matches = filter(None, map(SHARD.fullmatch, files))
    totals = {(match[0][: match.start(1)], match[2]) for match in matches}
    return sorted(
        f"{start}{i:05}-of-{total}{SAFETENSORS}"
        for start, total in totals
        for i in range(1, int(total) + 1)
    )


def explain_missing(folder: pathlib.Path) -> None:
    """Raises CheckpointError that names the file to give or to convert."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if found := [path for path in files if path.suffix in (SAFETENSORS, NPZ)]:
        names = ", ".join(path.name for path in found[:3])
        raise CheckpointError(f"{folder} contains {names}; give the file, as in {found[0]}.")
    if found := [path for path in files if path.suffix in PICKLES]:
        raise pickle_error(found[0])


def read_json_object(path: pathlib.Path) -> dict:
    """Returns the JSON object of a file; raises CheckpointError if it holds none."""
    try:
        with open(path, "rb") as file:
            return json_object(file.read(MAX_JSON), parse_constant=reject_constant)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}).") from error
