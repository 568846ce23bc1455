"""Workers that are killed, stand still, or are waited for when a signal arrives."""

import multiprocessing
import os
import pathlib
import signal
import threading
import time

import numpy as np
import pytest

from vit_jax.data import workers
from vit_jax.data.workers import Patience, batches
from vit_jax.errors import DataError, StalledError


@pytest.fixture
def short_stop(monkeypatch):
    """Waits less than usual at the end for a thread that stands still."""
    monkeypatch.setattr(workers, "STOP_TIMEOUT", 0.1)


class Rows:
    """Forty rows; one of them may do something before it is returned."""

    def __init__(self, at: int = -1, action=None, *args):
        self.at, self.action, self.args = at, action, args

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> dict:
        if row == self.at:
            self.action(*self.args)
        return {"image": np.full((2, 2), row), "id": np.int64(row)}

    def name(self, row: int) -> str:
        return f"{row}.png"


def ids(rows: Rows, num_workers: int, patience: Patience | None = None) -> list[int]:
    found = [batch["id"] for batch in batches(rows, 4, num_workers, patience)]
    return np.concatenate(found).tolist() if found else []


def kill_once(marker: pathlib.Path) -> None:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_batches_restart_a_killed_worker_at_the_same_rows(tmp_path):
    lines = []
    rows = Rows(17, kill_once, tmp_path / "killed")
    assert ids(rows, 2, Patience(report=lines.append)) == list(range(40))
    assert lines == [
        "a data worker process ended unexpectedly with exit code -9; restarted (1 of 3)"
    ]


@pytest.mark.slow
def test_batches_name_the_row_that_kills_its_worker_every_time():
    lines = []
    rows = Rows(17, os.abort)
    with pytest.raises(DataError, match=r"exit code -6 at example 17\.png, after 3 restarts"):
        ids(rows, 2, Patience(report=lines.append))
    assert len(lines) == workers.MAX_RESTARTS
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_batches_do_not_restart_a_worker_that_exits_by_itself():
    with pytest.raises(DataError, match=r"exit code 3 at example 17\.png\."):
        ids(Rows(17, os._exit, 3), 2)


def test_batches_name_a_thread_without_progress_and_its_row(short_stop):
    is_over = threading.Event()
    with pytest.raises(StalledError, match=r"for 0\.3 s at example 17\.png;.*data\.timeout"):
        ids(Rows(17, is_over.wait), 0, Patience(timeout=0.3))
    is_over.set()


def test_batches_name_a_first_row_without_progress(short_stop):
    is_over = threading.Event()
    with pytest.raises(StalledError, match=r"at example 0\.png;") as caught:
        ids(Rows(0, is_over.wait), 0, Patience(timeout=0.1))
    assert caught.value.exit_code == 6
    is_over.set()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow
def test_batches_name_a_suspended_worker_process_and_end_it():
    with pytest.raises(StalledError, match=r"process \(\d+\) .* at example 17\.png;"):
        ids(Rows(17, stop), 2, Patience(timeout=6.0))
    assert not multiprocessing.active_children()


def test_slow_rows_are_no_stall():
    rows = Rows(17, time.sleep, 0.5)
    assert ids(rows, 0, Patience(timeout=5.0)) == list(range(40))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_end_when_a_signal_arrives_while_a_worker_is_waited_for(num_workers, short_stop):
    start = time.monotonic()
    waits = []
    patience = Patience(is_stopped=lambda: waits.append(1) or time.monotonic() - start > 0.5)
    found = ids(Rows(17, time.sleep, 120 if num_workers else 5), num_workers, patience)
    assert found == list(range(len(found)))
    assert len(found) <= 16
    assert waits
