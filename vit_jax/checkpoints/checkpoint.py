"""Orbax checkpoints with a checksum for every array; the only module that imports Orbax.

One rename commits all items of a step (`layout`). The checksums are needed because Orbax
restores an array with a flipped bit without an error.
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import sys

import google_crc32c
import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.atomic_io import describe_space, to_json
from vit_jax.checkpoints import local_copy, mirror
from vit_jax.checkpoints.layout import (
    BEST,
    DAMAGED,
    FOLDER,
    make_manifest,
    read_manifest,
)
from vit_jax.distributed import multihost
from vit_jax.errors import CheckpointError, listed, one_line
from vit_jax.models import trees


def _orbax():
    """Imports Orbax, which takes 0.2 seconds: a new run needs it at its first checkpoint only."""
    import orbax.checkpoint as ocp

    return ocp


@dataclasses.dataclass(frozen=True)
class _KeepLinks:
    """Keeps steps that are links to other folders, which Orbax cannot remove."""

    folder: pathlib.Path

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        return [(self.folder / str(each.step)).is_symlink() for each in checkpoints]


def _handlers_of_own_folders(processes) -> dict:
    """Returns the handlers of the items of a step for processes without a shared folder.

    Every process writes the metadata and its own parts of the arrays. Files without OCDBT, whose
    databases refer to each other, make one whole step together.
    """
    from orbax.checkpoint import type_handlers

    ocp = _orbax()
    arrays = type_handlers.ArrayHandler(primary_host=processes.primary_host)
    registry = type_handlers.create_type_handler_registry((jax.Array, arrays))
    state = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, multiprocessing_options=processes, type_handler_registry=registry
    )
    json_items = ("manifest", "data", "meta")
    return {"state": state} | {
        name: ocp.JsonCheckpointHandler(multiprocessing_options=processes) for name in json_items
    }


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes unfinished steps, which failed or killed processes have left, and may fill a disk."""
    for name in filter(lambda name: (folder / name).is_dir(), (FOLDER, BEST)):
        for unfinished in (folder / name).glob(f"*{_orbax().path.atomicity.TMP_DIR_SUFFIX}"):
            shutil.rmtree(unfinished, ignore_errors=True)


class Checkpoints:
    """Checkpoints of one run, written by background threads; `wait` waits for them."""

    def __init__(self, folder: pathlib.Path, keep_last: int = 2, keep_every: int | None = None):
        self.folder, self._keep_last, self._keep_every = folder, keep_last, keep_every
        self._num_bytes, self._is_writing = 0, False  # Of the step that is being written.
        self._mirror = mirror.mirror_of(folder)
        folder.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def _manager(self):
        from orbax.checkpoint.checkpoint_managers import preservation_policy

        ocp = _orbax()
        policies = [preservation_policy.LatestN(self._keep_last), _KeepLinks(self.folder)]
        if self._keep_every:
            policies.append(preservation_policy.EveryNSteps(self._keep_every))
        is_own = self._mirror.has_own_folders
        processes = ocp.options.MultiprocessingOptions(
            primary_host=None if is_own else 0,
            # `checkpoints` and `best` may save the same step: make their barrier names differ.
            barrier_sync_key_prefix="_".join(self.folder.parts[-2:]),
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            multiprocessing_options=processes,
        )
        handlers = _handlers_of_own_folders(processes) if is_own else None
        for name in ("absl", "asyncio"):  # Failures are raised as well, as one line.
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _silence_cancelled_reads()
        return ocp.CheckpointManager(
            self.folder.absolute(), options=options, item_handlers=handlers
        )

    @property
    def _has_manager(self) -> bool:
        return "_manager" in self.__dict__

    def save(self, step: int, state, *, data: dict, meta: dict) -> None:
        """Starts to write a step; the arrays may be donated as soon as this returns.

        Raises:
          CheckpointError: this step or an earlier one could not be written.
        """
        self._mirror.wait(self.folder)  # Retention must not remove a step that is being copied.
        # A copy, because the caller may change the items before they are written.
        items = json.loads(to_json({"data": data, "meta": meta}))
        ocp = _orbax()
        arguments = {name: ocp.args.JsonSave(item) for name, item in items.items()}
        tree = trees.unflatten(trees.flatten(state))
        self._num_bytes = trees.num_bytes(tree)
        self._is_writing = True
        self._wrap_errors(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(tree),
                    manifest=ocp.args.JsonSave(make_manifest(step, describe(state), items)),
                    **arguments,
                ),
                force=True,
            ),
        )
        self._mirror.submit(self.folder / str(step), self._manager.wait_until_finished)

    def move_damaged_step(self, step: int) -> pathlib.Path:
        """Moves a damaged step to the folder `damaged` of the run; returns its new path."""
        if self._mirror.has_own_folders:  # Each process has its own folder.
            path = self._move(step)
        else:
            path = multihost.broadcast_from_process_0("damaged step", lambda: str(self._move(step)))
        if self._has_manager:
            self._manager.reload()
        return pathlib.Path(path)

    def _move(self, step: int) -> pathlib.Path:
        name = str(step) if self.folder.name == FOLDER else f"{self.folder.name}-{step}"
        path = self.folder.parent / DAMAGED / name
        path.parent.mkdir(exist_ok=True)
        while os.path.lexists(path):  # An earlier damaged step is kept.
            path = path.with_name(f"{path.name}-again")
        (self.folder / str(step)).rename(path)
        return path

    def delete_from(self, step: int) -> None:
        """Deletes this step and all later ones."""
        self.wait()
        for later in self._manager.all_steps():
            if later >= step:
                self._wrap_errors(functools.partial(self._manager.delete, later))

    def raise_if_failed(self) -> None:
        """Raises CheckpointError if a step could not be written; does not wait."""
        self._mirror.raise_if_failed()
        if self._is_writing and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until all steps are on disk, and in the bucket of the workdir if it has one.

        Raises CheckpointError if one cannot be written.
        """
        self._is_writing = False
        if self._has_manager:
            self._wrap_errors(self._manager.wait_until_finished)
        self._mirror.wait(self.folder)

    def close(self) -> None:
        """Waits until all steps are on disk and stops the writer threads."""
        if self._has_manager:
            self._wrap_errors(self._manager.close)
        self._mirror.wait(self.folder)

    def _wrap_errors(self, action) -> None:
        try:
            action()
        except Exception as error:  # Orbax and TensorStore raise many types.
            raise CheckpointError(
                f"cannot save a checkpoint in {self.folder}: {one_line(error).rstrip('.')} "
                f"({describe_space(self.folder, self._num_bytes)})."
            ) from error


def crc32c(array) -> int:
    """Returns the CRC-32C of an array's bytes in C order.

    An array sharded over several hosts is gathered: all processes must call this.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            array = array.addressable_data(0)
        else:
            array = multihost_utils.process_allgather(array, tiled=True)
    return google_crc32c.value(np.ascontiguousarray(array).tobytes())


def describe(state) -> dict[str, dict]:
    """Returns shape, dtype and checksum of every array of a state, by name."""
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "crc32c": crc32c(leaf)}
        for name, leaf in trees.flatten(state).items()
    }


def restore(step_folder: pathlib.Path, abstract_state):
    """Returns the arrays of a step with the structure and shardings of `abstract_state`.

    Args:
      step_folder: folder of the step.
      abstract_state: a tree of ShapeDtypeStructs: a whole state or some of its top-level parts,
        such as {'params': ...}. A leaf without a sharding is restored as a numpy array.

    Raises:
      CheckpointError: leaves are missing, unexpected or of another shape or dtype (all are
        listed), a checksum is wrong, or a file cannot be decoded.
    """
    expected = trees.flatten(abstract_state)
    parts = {name.partition("/")[0] for name in expected}
    stored = {
        name: leaf
        for name, leaf in read_manifest(step_folder)["leaves"].items()
        if name.partition("/")[0] in parts
    }
    check_leaves(
        {name: (tuple(leaf["shape"]), leaf["dtype"]) for name, leaf in stored.items()},
        {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in expected.items()},
        str(step_folder),
    )
    with multihost.raise_on_all("restored", CheckpointError):
        local_copy.complete(step_folder)
        leaves = _read_arrays(step_folder, expected)
    with multihost.raise_on_all("verified", CheckpointError):
        # First all checksums, because `crc32c` may communicate with the other hosts.
        checksums = {name: crc32c(leaf) for name, leaf in leaves.items()}
        for name in expected:
            if checksums[name] != stored[name]["crc32c"]:
                raise CheckpointError(f"{step_folder}: {name} is damaged: wrong checksum.")
    return trees.map_with_names(lambda name, _: leaves[name], abstract_state)


def _read_arrays(step_folder: pathlib.Path, expected: dict) -> dict:
    """Returns this host's shards of the arrays of a step, by name.

    Each host reads independently, so that an error on one host does not block the others.
    """
    tree = trees.unflatten(expected)
    restore_args = trees.unflatten({name: _restore_args(leaf) for name, leaf in expected.items()})
    ocp = _orbax()
    arguments = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True)
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    _silence_cancelled_reads()
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
        with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
            restored = reader.restore((step_folder / "state").absolute(), args=arguments)
    except Exception as error:  # Orbax and TensorStore raise many types.
        files = re.findall(r'local file "([^"]+)"', str(error))
        where = files[-1] if files else step_folder / "state"
        raise CheckpointError(f"{where} is damaged: {one_line(error)}") from error
    return trees.flatten(restored)


@functools.cache
def _silence_cancelled_reads() -> None:
    """Hides tracebacks of reads that a failed restore has cancelled.

    Orbax closes its event loop at the first error; each of TensorStore's other reads then prints
    a traceback without information.
    """
    default_hook = sys.unraisablehook

    def hook(args):
        if str(args.exc_value) != "Event loop is closed":
            default_hook(args)

    sys.unraisablehook = hook


def stored_param_shapes(step_folder: pathlib.Path) -> dict:
    """Returns ShapeDtypeStructs of a step's parameters, for `restore`.

    The result is {'ema': ...} if the run stored averaged parameters, else {'params': ...}.
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
    ocp = _orbax()
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding)


def check_leaves(stored: dict, expected: dict, where: str) -> None:
    """Raises CheckpointError that lists all differences of two {name: (shape, dtype)}.

    Args:
      stored: leaves of the checkpoint.
      expected: leaves of the model.
      where: path of the checkpoint, for the error.
    """
    lines = []
    for name in [*expected, *(name for name in stored if name not in expected)]:
        a, b = stored.get(name), expected.get(name)
        if a != b:
            lines.append(f"{name}: checkpoint {_describe(a)}, model {_describe(b)}")
    if lines:
        raise CheckpointError(f"{where} does not match the model: {listed(lines)}.")


def _describe(shape_and_dtype) -> str:
    if shape_and_dtype is None:
        return "none"
    shape, dtype = shape_and_dtype
    return f"({', '.join(map(str, shape))}) {dtype}"
