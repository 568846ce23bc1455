"""Tests of `lock`: one run in a workdir, also after a kill."""

import os
import signal
import subprocess
import sys

import pytest

from vit_jax.checkpoints.lock import LOCK, Lock, check_not_in_use
from vit_jax.errors import ConfigError, InUseError

HOLD_LOCK = """
import sys, time, pathlib
from vit_jax.checkpoints.lock import Lock
with Lock(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(120)
"""


def test_lock_is_exclusive_until_it_is_released(tmp_path):
    folder = tmp_path / "new"
    with Lock(folder), pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on"):
        Lock(folder).__enter__()
    with Lock(folder):
        pass


def test_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), Lock(tmp_path):
        raise ZeroDivisionError
    with Lock(tmp_path):
        pass


@pytest.mark.slow
def test_lock_of_a_running_process_holds_and_of_a_killed_one_is_released(tmp_path):
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        for _ in range(2):  # The rejected process does not overwrite the holder's name.
            with pytest.raises(ConfigError) as caught, Lock(tmp_path):
                pass
            assert f"workdir {tmp_path} is in use by process {holder.pid} on " in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        with Lock(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_check_not_in_use_names_the_holder_and_changes_nothing(tmp_path):
    check_not_in_use(tmp_path)
    assert not list(tmp_path.iterdir())
    with Lock(tmp_path), pytest.raises(InUseError, match=f"by process {os.getpid()} on"):
        check_not_in_use(tmp_path)
    check_not_in_use(tmp_path)
