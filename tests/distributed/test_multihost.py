"""Tests of `multihost` in a run of one process."""

import types

import numpy as np
import pytest

from vit_jax.distributed import multihost, watchdog
from vit_jax.errors import ConfigError


def test_functions_of_a_single_process_return_its_own_values():
    multihost.connect()
    assert not multihost.attach()
    assert multihost.is_process_0()
    assert multihost.allgather_json("name", 5) == [5]
    np.testing.assert_array_equal(multihost.allgather(3, 4), [[3, 4]])
    multihost.check_equal("seed", 3)
    multihost.barrier("name")
    multihost.detach()


def test_attached_in_a_single_process_raises_errors():
    with pytest.raises(ConfigError, match="mistake"), multihost.attached():
        raise ConfigError("mistake")


@pytest.fixture
def runtime(monkeypatch):
    """State of a runtime of two processes that the program has initialised."""
    state = types.SimpleNamespace(coordinator_address="a:1", num_processes=2, process_id=1)
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: pytest.fail("started again"))
    monkeypatch.setattr(watchdog, "global_state", lambda: state)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")  # The runtime takes precedence.


@pytest.mark.usefixtures("runtime")
def test_connect_starts_no_second_runtime():
    multihost.connect()
    multihost.connect("a:1", 2, 1)


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("b:1", None, None), "--coordinator=b:1 contradicts .* initialised already with a:1"),
        ((None, 3, None), "--num_processes=3 contradicts .* already with 2"),
        ((None, 2, 0), "--process_id=0 contradicts .* already with 1"),
    ],
)
def test_connect_rejects_flags_that_contradict_an_initialised_runtime(flags, message):
    with pytest.raises(ConfigError, match=message):
        multihost.connect(*flags)


def test_is_lost_process_recognises_failures_of_communication_in_a_run_of_several(monkeypatch):
    import jax

    gloo = ValueError("UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer")
    assert not multihost.is_lost_process(gloo)
    monkeypatch.setattr(multihost, "_watchdog", object())
    assert multihost.is_lost_process(gloo)
    assert multihost.is_lost_process(jax.errors.JaxRuntimeError("UNAVAILABLE: connection closed"))
    assert not multihost.is_lost_process(ValueError("shapes (2,) and (3,) differ"))
