"""Checkpoints by Orbax, with a checksum for every array; nothing else knows Orbax.

`checkpoints/<step>/` holds the items `state` (arrays), `data` (the loader's place), `meta`
(config, classes, preprocessing, versions) and `manifest`: name, shape, dtype and CRC-32C of
every array, and the checksums of the other items. All are committed by one rename. Orbax
itself restores an array with a flipped bit without a word.
"""

import functools
import json
import logging
import pathlib
import re
import shutil
import sys

import google_crc32c
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vit_jax import trees
from vit_jax.distributed import multihost
from vit_jax.errors import CheckpointError

FOLDER, BEST = "checkpoints", "best"
MAX_LISTED = 20


class Checkpoints:
    """The checkpoints of one run, written in the background."""

    def __init__(self, folder: pathlib.Path, keep_last: int = 2, keep_every: int | None = None):
        policies = [preservation_policy.LatestN(keep_last)]
        if keep_every:
            policies.append(preservation_policy.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            # Two writers of a run may save the same step; their barriers have names of their own.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix="_".join(folder.parts[-2:])
            ),
        )
        for name in ("absl", "asyncio"):  # What fails is raised, too, and told in one line.
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _hush_reads_left_behind()
        self.folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state, *, data: dict, meta: dict) -> None:
        """Starts to write a step; arrays may be changed as soon as this returns.

        Raises CheckpointError for this step, or an earlier one whose writing failed.
        """
        # Written later, in the background: a copy that the caller cannot change meanwhile.
        items = json.loads(json.dumps({"data": data, "meta": meta}))
        arguments = {name: ocp.args.JsonSave(item) for name, item in items.items()}
        tree = trees.unflatten(trees.flatten(state))
        self._report(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(tree),
                    manifest=ocp.args.JsonSave(make_manifest(state, items)),
                    **arguments,
                ),
                force=True,
            ),
        )

    def set_aside(self, step: int) -> pathlib.Path:
        """Moves a damaged step out of the way, into the folder `damaged` of the run."""
        place = self.folder.parent / "damaged" / str(step)
        if multihost.is_first():
            place.parent.mkdir(exist_ok=True)
            if place.exists():
                shutil.rmtree(place)
            (self.folder / str(step)).rename(place)
        multihost.barrier(f"step {step} set aside")
        self._manager.reload()
        return place

    def wait(self) -> None:
        """Returns when everything is on disk; raises CheckpointError if it is not."""
        self._report(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for what is being written and stops the writers."""
        self._report(self._manager.close)

    def _report(self, action) -> None:
        try:
            action()
        except Exception as error:  # Orbax and TensorStore raise many kinds.
            raise CheckpointError(f"cannot save under {self.folder}: {_one_line(error)}") from error


class BestWeights:
    """The weights with the best score on `val` so far, in the run's folder `best`.

    The score is top1, or, where there is none, the loss.
    """

    def __init__(self, folder: pathlib.Path):
        folder = folder / BEST
        self._checkpoints = Checkpoints(folder, keep_last=1)
        self.step, self.means = 0, {}
        for step in multihost.from_first("best", lambda: steps_in(folder))[-1:]:
            self.step, self.means = step, read_item(folder / str(step), "meta")["means"]

    def offer(self, step: int, params, means: dict, meta: dict) -> None:
        """Keeps the weights of a step if they are better than all before."""
        if not self.means or score(means) > score(self.means):
            self.step, self.means = step, means
            self._checkpoints.save(step, {"params": params}, data={}, meta=meta | {"means": means})

    def wait(self) -> None:
        """Returns when everything is on disk; raises CheckpointError if it is not."""
        self._checkpoints.wait()

    def close(self) -> None:
        """Waits, and stops the writers."""
        self._checkpoints.close()


def score(means: dict) -> float:
    """By which a run is judged: top1, or less loss."""
    return means["top1"] if "top1" in means else -means["loss"]


def steps_in(folder: pathlib.Path) -> list[int]:
    """Committed steps, oldest first; what a killed writer left behind is not one."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if re.fullmatch(r"\d+", p.name))


def crc32c(array) -> int:
    """CRC-32C of an array's bytes in C order, gathered from all hosts if need be."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            array = array.addressable_data(0)
        else:
            array = multihost_utils.process_allgather(array, tiled=True)
    return google_crc32c.value(np.ascontiguousarray(array).tobytes())


def make_manifest(state, items: dict) -> dict:
    """Shape, dtype and checksum of every leaf, checksums of the items, and its own."""
    manifest = {
        "leaves": {
            name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "crc32c": crc32c(leaf)}
            for name, leaf in trees.flatten(state).items()
        },
        "items": {name: _crc_of_json(item) for name, item in items.items()},
    }
    return manifest | {"crc32c": _crc_of_json(manifest)}


def _crc_of_json(item: dict) -> int:
    return google_crc32c.value(json.dumps(item, sort_keys=True).encode())


def read_manifest(step_folder: pathlib.Path) -> dict:
    """The manifest of a step; raises CheckpointError where it is damaged."""
    manifest = _read_json(step_folder, "manifest")
    body = {name: part for name, part in manifest.items() if name != "crc32c"}
    if _crc_of_json(body) != manifest.get("crc32c") or not {"leaves", "items"} <= set(body):
        raise CheckpointError(f"{step_folder / 'manifest'} is damaged: its checksum is wrong.")
    return manifest


def read_item(step_folder: pathlib.Path, name: str) -> dict:
    """The item `data` or `meta` of a step, checked against the manifest."""
    item = _read_json(step_folder, name)
    if _crc_of_json(item) != read_manifest(step_folder)["items"].get(name):
        raise CheckpointError(f"{step_folder / name} is damaged: its checksum is wrong.")
    return item


def _read_json(step_folder: pathlib.Path, name: str) -> dict:
    path = step_folder / name / "metadata"
    try:
        item = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{step_folder}: no checkpoint of ours ({path} is missing)."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({_one_line(error)}).") from error
    if not isinstance(item, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object.")
    return item


def restore(step_folder: pathlib.Path, like):
    """The arrays of a step, in the structure and at the places that `like` asks for.

    Args:
      like: a tree of ShapeDtypeStruct: a whole state, or some parts of it such as
        {'params': ...}. A leaf without a sharding is restored as a numpy array.

    Raises CheckpointError that names every leaf that is missing, unexpected or of another
    shape or dtype, the first whose checksum is wrong, or the folder if it no longer decodes.
    """
    wanted = trees.flatten(like)
    parts = {name.partition("/")[0] for name in wanted}
    stored = {
        name: leaf
        for name, leaf in read_manifest(step_folder)["leaves"].items()
        if name.partition("/")[0] in parts
    }
    refuse_differences(
        {name: (tuple(leaf["shape"]), leaf["dtype"]) for name, leaf in stored.items()},
        {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in wanted.items()},
        str(step_folder),
    )
    with multihost.all_or_none("restored", CheckpointError):
        leaves = _read(step_folder, wanted)
    with multihost.all_or_none("verified", CheckpointError):
        # All sums are taken before any is judged: each may need an array of all hosts.
        sums = {name: crc32c(leaf) for name, leaf in leaves.items()}
        for name in wanted:
            if sums[name] != stored[name]["crc32c"]:
                raise CheckpointError(f"{step_folder}: {name} is damaged: its checksum is wrong.")
    return trees.map_with_names(lambda name, _: leaves[name], like)


def _read(step_folder: pathlib.Path, wanted: dict) -> dict:
    """The arrays of a step by name, this host's part of them; no host waits for another."""
    tree = trees.unflatten(wanted)
    places = trees.unflatten({name: _restore_args(leaf) for name, leaf in wanted.items()})
    arguments = ocp.args.PyTreeRestore(item=tree, restore_args=places, partial_restore=True)
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
    _hush_reads_left_behind()
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            restored = reader.restore((step_folder / "state").absolute(), args=arguments)
    except Exception as error:  # Orbax and TensorStore raise many kinds.
        files = re.findall(r'local file "([^"]+)"', str(error))
        where = files[-1] if files else step_folder / "state"
        raise CheckpointError(f"{where} is damaged: {_one_line(error)}") from error
    return trees.flatten(restored)


@functools.cache
def _hush_reads_left_behind() -> None:
    """Keeps a failed restore to its one line.

    Orbax closes its event loop at the first error; TensorStore's other reads then each
    print a traceback that tells nothing.
    """
    report = sys.unraisablehook

    def hook(args):
        if str(args.exc_value) != "Event loop is closed":
            report(args)

    sys.unraisablehook = hook


def stored_params(step_folder: pathlib.Path) -> dict:
    """Shapes and dtypes of a step's parameters, as `restore` takes them.

    They are the averaged ones, 'ema', where the run kept an average; else 'params'.
    """
    leaves = trees.unflatten(
        {
            name: jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"])
            for name, leaf in read_manifest(step_folder)["leaves"].items()
            if name.startswith(("params/", "ema/"))
        }
    )
    kind = "ema" if "ema" in leaves else "params"
    return {kind: leaves[kind]}


def _restore_args(leaf: jax.ShapeDtypeStruct):
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding)


def refuse_differences(found: dict, expected: dict, where: str) -> None:
    """Raises CheckpointError that lists every difference of name -> (shape, dtype) at once."""
    lines = []
    for name in [*expected, *(name for name in found if name not in expected)]:
        a, b = found.get(name), expected.get(name)
        if a != b:
            lines.append(f"{name}: checkpoint {_describe(a)}, model {_describe(b)}")
    if lines:
        more = f"; and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
        raise CheckpointError(f"{where} does not fit: {'; '.join(lines[:MAX_LISTED])}{more}.")


def _describe(shape_and_dtype) -> str:
    if shape_and_dtype is None:
        return "none"
    shape, dtype = shape_and_dtype
    return f"({', '.join(map(str, shape))}) {dtype}"


def find(where: str | pathlib.Path) -> pathlib.Path:
    """The newest step folder of a workdir, stage folder or `checkpoints`, or a step itself.

    Of a run that is judged by its best weights, those.
    Raises CheckpointError with what is there instead.
    """
    path = pathlib.Path(where)
    if re.fullmatch(r"\d+", path.name) and (path / "manifest").is_dir():
        return path
    for folder in (path, path / BEST, path / FOLDER):
        if steps_in(folder):
            return folder / str(steps_in(folder)[-1])
    if not path.exists():
        raise CheckpointError(f"{where}: no such file or folder.")
    held = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise CheckpointError(f"{where}: no checkpoint in it; it holds {held or 'nothing'}.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
