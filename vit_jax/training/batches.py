"""Training batches of a stage: the rows of this host, and their transfer to devices."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from vit_jax.data import loader
from vit_jax.data.workers import Patience
from vit_jax.training.stage import Stage


class TrainBatches:
    """Reads the rows of this host of every global batch."""

    def __init__(
        self,
        stage: Stage,
        sharding: jax.sharding.Sharding,
        is_stopped: Callable[[], bool],
        report: Callable[[str], None],
    ):
        """This host reads the rows that `sharding` places on its devices.

        Args:
          is_stopped: called while a batch is waited for; when it returns True, the batches end.
          report: prints a line about a data worker.
        """
        config = stage.config
        self._patience = Patience(config.data.timeout, is_stopped, report)
        self._stage, self._sharding, self._batch_size = stage, sharding, config.batch_size
        self._sampler = loader.make_sampler(stage.train_source, config.seed, config.data.repeats)
        self._shard = loader.HostShard.from_sharding(sharding, config.batch_size)

    def after(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this host's rows of the batches after `step`; raises DataError, StalledError."""
        data = self._stage.config.data
        if step >= self._stage.total_steps:
            return
        rows = loader.TrainRows(
            self._stage.train_source,
            self._stage.train_recipe,
            self._sampler,
            self._shard,
            self._stage.config.seed,
            step,
            self._stage.total_steps,
            on_bad_image=data.on_bad_image,
        )
        yield from loader.host_batches(rows, self._shard, data.workers, self._patience)

    def to_devices(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Returns the global arrays of a batch of this host's rows."""
        return loader.to_devices(batch, self._sharding)

    def crc(self, step: int, ids: np.ndarray) -> int:
        """Returns the CRC-32 of the ids of a step's global batch.

        Args:
          ids: ids that this host read; ids of other hosts are computed.
        """
        if len(ids) < self._batch_size:
            own, ids = ids, self._sampler.batch(step - 1, self._batch_size)
            ids[[self._shard.position(row) for row in range(len(own))]] = own
        return loader.crc_of_ids(ids)
