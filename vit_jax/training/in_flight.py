"""Steps that are dispatched to the devices and not logged yet."""

import collections
import contextlib

import jax
import numpy as np

from vit_jax.data import loader
from vit_jax.errors import NonFiniteError, VitJaxError
from vit_jax.training.metrics import TrainingLog
from vit_jax.training.saver import Saver
from vit_jax.training.stage import Stage
from vit_jax.training.stop import StopSignal

STEPS_AHEAD = 2  # Steps in flight while the host prepares the next batch.
MAX_NON_FINITE = 3  # Skipped updates in a row that end the run.


class StepsInFlight:
    """Waits for dispatched steps in order, checks their metrics and logs them."""

    def __init__(self, stage: Stage, log: TrainingLog, saver: Saver, stop: StopSignal, crc):
        """`crc(step, ids)` returns the CRC-32 of the ids of a step's global batch."""
        self._stage, self._log, self._saver, self._stop = stage, log, saver, stop
        self._crc = crc
        self._steps: collections.deque = collections.deque()

    def add(self, step: int, metrics: dict, ids: np.ndarray, gathered) -> None:
        """Adds a dispatched step.

        Args:
          metrics: scalars on the devices.
          ids: ids of this process's rows of the batch.
          gathered: signal number and number of unreadable images of every process, on devices.
        """
        self._steps.append((step, metrics, ids, gathered))

    def settle_oldest(self) -> None:
        """Waits for the oldest step if more than STEPS_AHEAD are in flight."""
        if len(self._steps) > STEPS_AHEAD:
            self._settle()

    def settle_all(self, book: str = "train") -> None:
        """Waits for all steps; the clock books the time under `book`."""
        while self._steps:
            self._settle(book)

    def settle_after_error(self) -> None:
        """Waits for all steps and logs them; suppresses their errors."""
        while self._steps:
            with contextlib.suppress(VitJaxError, OSError):
                self._settle()

    def _settle(self, book: str = "train") -> None:
        step, metrics, ids, gathered = self._steps.popleft()
        with self._log.waiting(book):
            metrics, gathered = jax.device_get((metrics, gathered))
            attempt = self._log.clock.attempt
            attempt.step = max(attempt.step, step)
        self._stop.agree(gathered[:, 0])
        self._saver.num_bad_images += int(gathered[:, 1].sum())
        values = {name: float(value) for name, value in metrics.items()}
        config = self._stage.config
        if step % config.log_every == 0 or step in (1, self._stage.total_steps):
            values["ids_crc"] = self._crc(step, ids)
            if config.data.on_bad_image == "skip":
                values["bad_images"] = self._saver.num_bad_images
            self._log.log(step, values, is_timed=book == "train")
        self._check_finite(step, values)
        num_images, size = step * config.batch_size, len(self._stage.train_source)
        loader.check_bad_images(
            self._saver.num_bad_images,
            max(num_images, size),
            config.data.max_bad,
            num_epochs=-(-num_images // size),
        )

    def _check_finite(self, step: int, values: dict) -> None:
        """Raises NonFiniteError after MAX_NON_FINITE skipped updates in a row."""
        if not values["skipped"]:
            self._saver.num_non_finite = 0
            return
        self._saver.num_non_finite += 1
        self._log.say(
            f"step {step}: update skipped, not finite (loss {values['loss']}, "
            f"gradient norm {values['grad_norm']})"
        )
        count = self._saver.num_non_finite
        if count >= MAX_NON_FINITE:
            raise NonFiniteError(
                f"loss, gradients or updates were not finite in {count} steps in a row, "
                f"{step - count + 1} to {step}. Use a lower optimizer.lr or a longer warm-up. To "
                f"start from these weights, set init.path={self._stage.folder} in another workdir."
            )
