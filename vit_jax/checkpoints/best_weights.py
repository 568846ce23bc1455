"""Weights with the best score of a run, which `config.select = "best"` keeps."""

import math
import pathlib

from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.checkpoint import Checkpoints
from vit_jax.checkpoints.layout import BEST, list_steps, read_item
from vit_jax.distributed import multihost
from vit_jax.errors import CheckpointError


class BestWeights:
    """Weights with the best score on `val` so far, stored in the run's folder `best`.

    Attributes:
      step: the step of these weights; 0 if there are none.
      metrics: validation metrics of these weights.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder / BEST
        self._checkpoints = Checkpoints(self.folder, keep_last=1)
        self.step, self.metrics = 0, {}

    def restore(self, restored_step: int, recorded_step: int | None, config: dict) -> None:
        """Reads step and metrics of the stored weights.

        Args:
          restored_step: the step that the run resumes from.
          recorded_step: the step of the best weights when that checkpoint was saved; 0 for none,
            None if the checkpoint does not contain it.
          config: the config of the run.

        Raises:
          CheckpointError: the weights are damaged, missing, or those of another run.
        """
        steps = multihost.broadcast_from_process_0("best", lambda: list_steps(self.folder))
        step = steps[-1] if steps else 0
        # A later step is possible: the run was killed after it, and before its next checkpoint.
        if recorded_step not in (None, step) and step < restored_step:
            raise CheckpointError(
                f"{self.folder} has {f'weights of step {step}' if step else 'no weights'}; the "
                f"checkpoint of step {restored_step} expects step {recorded_step or 'none'}."
            )
        if step:
            path = self.folder / str(step)
            workdir.check_saved_config(path, config)
            meta = read_item(path, "meta")
            if "means" not in meta:
                raise CheckpointError(f"{path} is a checkpoint of the run, not its best weights.")
            self.step, self.metrics = step, meta["means"]

    def move_aside(self) -> list[pathlib.Path]:
        """Moves all stored weights to the folder `damaged` of the run; returns their new paths."""
        steps = multihost.broadcast_from_process_0("best", lambda: list_steps(self.folder))
        return [self._checkpoints.move_damaged_step(step) for step in steps]

    def save_if_better(self, step: int, params, metrics: dict, meta: dict) -> None:
        """Saves the weights of a step if their score is better than all before.

        Args:
          step: number of the step.
          params: the weights.
          metrics: validation metrics of the weights, with `top1` or `loss`.
          meta: item `meta` of the checkpoint.
        """
        if selection_score(metrics) > selection_score(self.metrics):
            # Weights of this step or a later one are from before a resume.
            self._checkpoints.delete_from(step)
            self.step, self.metrics = step, metrics
            meta = meta | {"means": metrics}
            self._checkpoints.save(step, {"params": params}, data={}, meta=meta)

    def raise_if_failed(self) -> None:
        """Raises CheckpointError if the weights could not be written; does not wait."""
        self._checkpoints.raise_if_failed()

    def wait(self) -> None:
        """Waits until all steps are on disk; raises CheckpointError if one cannot be written."""
        self._checkpoints.wait()

    def close(self) -> None:
        """Waits until all steps are on disk and stops the writer threads."""
        self._checkpoints.close()


def selection_score(metrics: dict) -> float:
    """Returns the score that selects the best weights and runs: top1, or else minus the loss.

    It is minus infinity for a score that is missing or not finite.
    """
    top1, loss = metrics.get("top1"), metrics.get("loss")
    score = top1 if top1 is not None else -loss if loss is not None else math.nan
    return score if math.isfinite(score) else -math.inf
