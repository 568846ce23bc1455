"""Checkpoints of a stage: what a resumed run starts from, and what each step saves."""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence

import jax

from vit_jax import config as config_lib
from vit_jax.atomic_io import describe_space
from vit_jax.checkpoints import best_weights, checkpoint, layout, workdir
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.distributed import multihost
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.training.build import Programs
from vit_jax.training.metrics import TrainingLog
from vit_jax.training.stage import Stage
from vit_jax.training.train_step import TrainState
from vit_jax.weights import load
from vit_jax.weights.finite import require_finite_params


class Saver:
    """Restores and saves the state of a stage, and its best weights if they are selected."""

    def __init__(self, stage: Stage, programs: Programs, log: TrainingLog):
        config = stage.config
        self._stage, self._programs, self._log = stage, programs, log
        self._config = config_lib.to_dict({"": config})
        self._checkpoints = checkpoint.Checkpoints(
            stage.folder / layout.FOLDER, config.keep_last, config.keep_every
        )
        self.best: best_weights.BestWeights | None = None
        self.saved_step = 0
        self._assumed: Sequence[str] = ()  # Of the starting weights.
        self.num_bad_images = 0  # Unreadable images so far, in all processes.
        self.num_non_finite = 0  # Steps in a row, up to now, whose update was skipped.

    def restore(self, init_key: jax.Array, fallback: bool) -> tuple[int, TrainState]:
        """Returns the step and state of the newest checkpoint, or step 0 and the initial state.

        Args:
          fallback: move a damaged checkpoint aside and use the one before.
        """
        self._check_space()
        step, state, meta = self._restore_newest(fallback)
        self._log.open(step, meta.get("metrics"))
        start = self._stage.start_from  # None for a restored run.
        self._assumed = (start and start.metadata.assumed) or meta.get("init_assumed", ())
        if state is None:
            state = self._init_state(init_key)
        self.saved_step = step
        if self._stage.config.select == "best":
            self._restore_best(step, state, meta.get("best_step"), fallback)
        return step, state

    def _check_space(self) -> None:
        """Prints a warning if a checkpoint may be larger than the free space of its disk."""
        num_bytes = trees.num_bytes(self._programs.abstract_state)
        folder = self._checkpoints.folder
        if num_bytes > shutil.disk_usage(folder).free:
            space = describe_space(folder / "step", num_bytes)
            self._log.say(f"{folder}: a checkpoint may not fit on the disk ({space})")

    def _restore_best(
        self, step: int, state: TrainState, recorded_step: int | None, fallback: bool
    ) -> None:
        self.best = best_weights.BestWeights(self._stage.folder)
        try:
            self.best.restore(step, recorded_step, self._config)
        except CheckpointError as error:
            if not fallback:
                raise CheckpointError(
                    f"{error} --fallback selects the best weights again from step {step}."
                ) from error
            moved = "".join(f" Moved to {path}." for path in self.best.move_aside())
            self._log.say(f"{error}{moved} The best weights are selected again from step {step}.")
        # A kill may have come after the record of an evaluation and before its weights were saved.
        if metrics := self._log.values(step, "val"):
            self.save_if_best(step, state.eval_params, metrics)

    def _restore_newest(self, fallback: bool) -> tuple[int, TrainState | None, dict]:
        folder = self._checkpoints.folder
        steps = multihost.broadcast_from_process_0("steps", lambda: layout.list_steps(folder))
        for step in reversed(steps):
            path = folder / str(step)
            try:
                meta, data = (layout.read_item(path, name) for name in ("meta", "data"))
                workdir.check_saved_config(path, self._config)
                if data.get("examples_seen") != step * self._stage.config.batch_size:
                    raise CheckpointError(
                        f"{path}: examples_seen is {data.get('examples_seen')}; expected {step} "
                        f"batches of {self._stage.config.batch_size}."
                    )
                state = checkpoint.restore(path, self._programs.abstract_state)
            except CheckpointError as error:
                if not fallback or step == steps[0]:
                    raise
                path = self._checkpoints.move_damaged_step(step)
                self._log.say(f"{error} Moved to {path}; falling back to an older step.")
                continue
            if note := self._stage.check_same_data(meta, data):
                self._log.say(note)
            self._log.clock.resume(step, meta["seconds"])
            self.num_bad_images = meta.get("bad_images", 0)
            self.num_non_finite = meta.get("non_finite", 0)
            if step < self._stage.total_steps:
                self._log.say(f"resuming from step {step}")
            return step, state, meta
        return 0, None, {}

    def _init_state(self, key: jax.Array) -> TrainState:
        stage, programs = self._stage, self._programs
        if stage.plan is None:
            return programs.init_state(key)
        for note in stage.plan.notes:
            self._log.say(f"{stage.start_from.where}: {note}")
        shardings = jax.tree.map(lambda leaf: leaf.sharding, programs.abstract_state.params)
        params = load.read_params(stage.start_from, stage.plan, shardings)
        require_finite_params(params, stage.start_from.where)
        return programs.init_state(key, params)

    def is_due(self, step: int) -> bool:
        """Returns True for a step after which a checkpoint is saved."""
        is_last = step == self._stage.total_steps
        is_periodic = step % self._stage.config.checkpoint_every == 0
        return is_last or is_periodic or self._log.is_save_requested

    def save(self, step: int, state: TrainState) -> None:
        """Writes a checkpoint, after the lines of metrics that belong to it.

        With `checkpoint_async`, this returns when the arrays are copied, before they are on disk.
        """
        self._log.sync()
        self._write(step, state)
        if not self._stage.config.checkpoint_async:
            self._checkpoints.wait()
            self._log.clock.lap("save")

    def save_last(self, step: int, state: TrainState) -> None:
        """Writes a checkpoint of the step at which the run ends, if it has none yet.

        Lines of metrics that cannot be written do not prevent it.
        """
        if step > self.saved_step:
            with contextlib.suppress(OSError):  # Closing the log raises it again.
                self._log.sync()
            self._write(step, state)
        self.wait()

    def _write(self, step: int, state: TrainState) -> None:
        if self.best is not None:  # A checkpoint names its best weights: they come first.
            self.best.wait()
        num_examples = len(self._stage.train_source)
        examples_seen = step * self._stage.config.batch_size
        self._checkpoints.save(
            step,
            state,
            data={
                "seed": self._stage.config.seed,
                "epoch": examples_seen // num_examples,
                "examples_seen": examples_seen,
                "num_examples": num_examples,
                "fingerprints": self._stage.fingerprints,
                "sketch": self._stage.sketch,
            },
            meta=self._meta() | {"metrics": self._log.digest()},
        )
        self.saved_step = step
        self._log.is_save_requested = False
        self._log.clock.lap("save")

    def raise_if_failed(self) -> None:
        """Raises CheckpointError if a checkpoint that is being written has failed."""
        self._checkpoints.raise_if_failed()
        if self.best is not None:
            self.best.raise_if_failed()

    def save_if_best(self, step: int, params: dict, metrics: dict) -> None:
        """Saves weights as the best if `select` is "best" and their score is the highest yet."""
        if self.best is not None:
            self.best.save_if_better(step, params, metrics, self._meta())
            self._log.clock.lap("save")

    def _meta(self) -> dict:
        stage = self._stage
        recipe = EvalRecipe.from_data(stage.config.data, stage.model.image_size)
        return {
            "config": self._config,
            "classes": list(stage.classes),
            "preprocessing": dataclasses.asdict(recipe),
            "seconds": self._log.clock.seconds,
            "bad_images": self.num_bad_images,
            "non_finite": self.num_non_finite,
            "best_step": self.best and self.best.step,
            "init_assumed": list(self._assumed),
            "versions": workdir.versions(),
        }

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._checkpoints.wait()
        if self.best is not None:
            self.best.wait()

    def close(self) -> None:
        """Waits until everything is on disk and stops the writer threads."""
        try:
            self._checkpoints.close()
        finally:
            if self.best is not None:
                self.best.close()
