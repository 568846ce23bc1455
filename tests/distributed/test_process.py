"""Tests of the settings of a process: compiled programs, and freed memory."""

import os
import subprocess
import sys
import time

import jax
import pytest

from tests.support.runs import ROOT, final_state, records, run_main
from tests.support.tiny_flags import tiny_flags
from vit_jax.distributed.process import prepare_process


@pytest.mark.parametrize("is_writable", [True, False])
def test_programs_are_kept_if_the_folder_can_be_written(tmp_path, monkeypatch, is_writable):
    home = tmp_path / "home"
    home.mkdir() if is_writable else home.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        prepare_process()
        folder = str(home / "vit_jax" / "programs") if is_writable else None
        assert jax.config.jax_compilation_cache_dir == folder
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


# Prints the MB that a freed block of 256 MB leaves in the process.
FREE_A_BLOCK = """
import pathlib
import numpy as np
from vit_jax.distributed.process import prepare_process

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

prepare_process()
before = resident()
block = np.ones(2**28, np.uint8)
del block
print(round(resident() - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
@pytest.mark.parametrize(
    ("variables", "is_kept"),
    [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "1000000"}, False)],
    ids=["default", "user"],
)
def test_freed_memory_is_kept_unless_the_user_sets_malloc(variables, is_kept):
    done = subprocess.run(
        [sys.executable, "-c", FREE_A_BLOCK],
        env=os.environ | variables | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(done.stdout) > 250) == is_kept


@pytest.mark.slow
def test_the_settings_of_memory_change_no_bit_of_a_run(tmp_path, monkeypatch):
    assert run_main(*tiny_flags(tmp_path / "default")).code == 0
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.setenv("JAX_CPU_ENABLE_ASYNC_DISPATCH", "true")
    assert run_main(*tiny_flags(tmp_path / "set")).code == 0
    assert records(tmp_path / "default") == records(tmp_path / "set")
    assert final_state(tmp_path / "default") == final_state(tmp_path / "set")


def test_start_time_is_between_the_call_that_starts_a_process_and_its_first_line(tmp_path):
    code = (
        "import time; first = time.time()\nfrom vit_jax.distributed import process\n"
        "print(process.start_time(), first)"
    )
    before = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    started, first = map(float, done.stdout.split())
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert before - 2 * tick <= started <= first + 2 * tick
