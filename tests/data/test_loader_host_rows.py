"""Tests of the rows that a host reads of every batch."""

import pytest

from vit_jax.data import loader


class RowSharding:
    """Sharding that assigns row ranges (start, stop) to the devices of this process."""

    def __init__(self, *spans):
        self.spans = spans

    def addressable_devices_indices_map(self, shape):
        return {device: (slice(*span),) for device, span in enumerate(self.spans)}


@pytest.mark.parametrize(
    ("spans", "rows"),
    [
        ([(8, 12), (12, 16)], [8, 9, 10, 11, 12, 13, 14, 15]),  # Second of two hosts.
        ([(4, 8), (0, 4)], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([(0, 4), (8, 12)], [0, 1, 2, 3, 8, 9, 10, 11]),  # Not adjacent, as on a torus.
        ([(0, 8), (0, 8)], [0, 1, 2, 3, 4, 5, 6, 7]),  # Both devices have each example.
        ([(None,)], list(range(16))),
    ],
)
def test_host_shard_contains_the_rows_of_the_local_devices(spans, rows):
    shard = loader.HostShard.from_sharding(RowSharding(*spans), 16)
    assert shard.num_rows == len(rows)
    indices = [shard.position(row) for row in range(2 * shard.num_rows)]
    assert indices == rows + [16 + row for row in rows]
