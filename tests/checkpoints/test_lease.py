"""Tests of `lease`: one holder at a time, taken over from dead processes only."""

import dataclasses
import os
import subprocess
import threading
import time

import pytest

from tests.support.buckets import use_memory
from vit_jax.atomic_io import to_json
from vit_jax.checkpoints import lease
from vit_jax.checkpoints.lease import NAME, Holder, Lease, find_holder
from vit_jax.data import object_store
from vit_jax.data.object_store import ObjectStore
from vit_jax.errors import CheckpointError, InUseError


@pytest.fixture
def store(monkeypatch, tmp_path) -> ObjectStore:
    for name, seconds in {"RENEWS": 0.04, "EXPIRES": 0.4, "SETTLES": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)
    return ObjectStore(f"{use_memory(monkeypatch, tmp_path)}/run")


def write_lease(store: ObjectStore, **changes) -> None:
    """Writes the lease of another process."""
    holder = dataclasses.replace(Holder.this_process(), **changes)
    store.write(NAME, to_json(dataclasses.asdict(holder) | {"token": "other", "count": 1}).encode())


def other_host() -> dict:
    return {"host": "other", "machine": "other boot"}


def test_a_lease_is_created_renewed_and_released(store):
    held = Lease(store)
    held.acquire()
    first = store.read(NAME)
    time.sleep(0.2)
    assert store.read(NAME) != first
    held.check()
    held.raise_if_lost()
    held.release()
    assert store.read(NAME) is None
    held.release()


def test_a_second_process_is_refused_while_the_lease_is_renewed(store):
    held = Lease(store)
    held.acquire()
    with pytest.raises(InUseError, match=rf"{store.url} is in use by process {os.getpid()} on"):
        Lease(store).acquire()
    held.check()
    held.release()
    Lease(store).acquire()


def test_a_lease_of_another_host_is_taken_over_once_it_has_expired(store, capsys):
    write_lease(store, **other_host())
    begun = time.monotonic()
    held = Lease(store)
    held.acquire()
    assert time.monotonic() - begun >= 0.4
    assert "has the lease of process" in capsys.readouterr().out
    held.check()


def test_a_lease_of_a_foreign_content_expires_too(store):
    store.write(NAME, b"process 3 on host\n")
    assert str(find_holder(store)) == "another process"
    Lease(store).acquire()


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(store, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRES", 1000.0)
    child = subprocess.Popen(["true"])
    child.wait()
    write_lease(store, process=child.pid, started="1")
    assert find_holder(store) is None
    Lease(store).acquire()


def test_a_process_with_the_number_of_a_dead_one_is_another(store):
    write_lease(store, started="1")
    assert find_holder(store) is None


def test_a_live_process_and_one_of_another_namespace_are_not_dead(store):
    write_lease(store)
    assert find_holder(store) == Holder.this_process()
    write_lease(store, process=2**22, machine="other namespace")
    assert find_holder(store) is not None


def test_the_slower_of_two_processes_that_take_over_is_refused(store, monkeypatch):
    monkeypatch.setattr(lease, "SETTLES", 0.3)
    write_lease(store, **other_host())
    results = []

    def acquire():
        try:
            Lease(store).acquire()
            results.append("held")
        except InUseError:
            results.append("refused")

    threads = [threading.Thread(target=acquire) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == ["held", "refused", "refused"]


def test_a_released_lease_is_taken_without_waiting_for_its_end(store, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRES", 1000.0)
    write_lease(store, **other_host())
    threading.Timer(0.1, store.delete, [[NAME]]).start()
    Lease(store).acquire()


def test_a_holder_that_lost_its_lease_stops(store):
    held = Lease(store)
    held.acquire()
    write_lease(store, **other_host())
    with pytest.raises(InUseError, match=r"was taken over by process \d+ on other, .* no more"):
        held.check()
    with pytest.raises(InUseError, match="was taken over"):
        held.raise_if_lost()
    held.release()
    assert b"other" in store.read(NAME)


def test_the_thread_finds_a_lost_lease_and_calls_back_after_renewals(store):
    renewals = []
    held = Lease(store, lambda: renewals.append(1))
    held.acquire()
    time.sleep(0.2)
    assert renewals
    write_lease(store, **other_host())
    deadline = time.monotonic() + 10
    with pytest.raises(InUseError):
        while time.monotonic() < deadline:
            held.raise_if_lost()
            time.sleep(0.01)


def test_a_bucket_that_cannot_be_reached_is_the_error_of_the_lease(store, monkeypatch):
    monkeypatch.setattr(object_store, "PATIENCE", 0.0)
    held = Lease(store)
    held.acquire()

    def fail(*_, **__):
        raise TimeoutError("slow")

    monkeypatch.setattr(store._system, "cat_file", fail)
    deadline = time.monotonic() + 10
    with pytest.raises(CheckpointError, match="slow"):
        while time.monotonic() < deadline:
            held.raise_if_lost()
            time.sleep(0.01)
