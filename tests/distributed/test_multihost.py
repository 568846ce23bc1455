"""Tests of `multihost` in a run of one process."""

import numpy as np

from vit_jax.distributed import multihost


def test_functions_of_a_single_process_return_its_own_values():
    multihost.initialize(None)
    assert multihost.is_process_0()
    assert multihost.allgather_json("name", 5) == [5]
    np.testing.assert_array_equal(multihost.allgather(3, 4), [[3, 4]])
    multihost.check_equal("seed", 3)
    multihost.barrier("name")
    multihost.shutdown()
