"""The training batches of a stage: this host's rows, and where they go."""

from collections.abc import Iterator

import jax
import numpy as np

from vit_jax.data import loader
from vit_jax.training import build
from vit_jax.training.stage import Stage


class Feed:
    """Reads this host's share of every global batch."""

    def __init__(self, stage: Stage, sharding: jax.sharding.Sharding):
        """Rows are read where `sharding` puts them."""
        config = stage.config
        self._stage, self._sharding, self._batch_size = stage, sharding, config.batch_size
        self._order = loader.make_order(stage.train_source, config.seed, config.data.repeats)
        self._share = loader.share_of(sharding, config.batch_size)

    def batches(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        """This host's rows of the batches after `step`; raises DataError for a bad record."""
        data = self._stage.config.data
        rows = loader.TrainRows(
            self._stage.train_source,
            build.train_recipe(data, self._stage.model.image_size),
            self._order,
            self._share,
            self._stage.config.seed,
            step,
            self._stage.total_steps,
            on_bad_image=data.on_bad_image,
        )
        if len(rows):
            yield from loader.host_batches(rows, self._share, data.workers)

    def to_devices(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The global arrays of which this host has read its rows."""
        return loader.to_devices(batch, self._sharding)

    def crc(self, step: int, ids: np.ndarray) -> int:
        """CRC-32 of the ids of a step's global batch.

        Those of this host are as they were read, `ids`, and others' as the order has them.
        """
        if len(ids) < self._batch_size:
            own, ids = ids, self._order.batch(step - 1, self._batch_size)
            ids[[self._share.place(row) for row in range(len(own))]] = own
        return loader.crc_of_ids(ids)
