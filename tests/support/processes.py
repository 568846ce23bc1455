"""Runs of several processes on this machine."""

import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from tests.support.runs import ROOT, Finished, records

# Dropout, stochastic depth and mixup: losses depend on random keys and on the order of rows.
CONFIG = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=14, num_layers=2, hidden_size=16, mlp_size=32)
    config.model.update(num_heads=2, dropout=0.1, drop_path=0.1)
    config.data.update(image_size=28, num_classes=3, num_examples=100, mixup=0.3)
    config.optimizer.update(warmup_steps=5, weight_decay=0.1)
    config.update(batch_size=16, steps=60, log_every=1, checkpoint_every=20, eval_every=25)
    return config
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


def environment_of_runs(environ: Mapping[str, str], programs: pathlib.Path, devices: int) -> dict:
    """Environment of processes with CPU devices that share a cache of compiled programs."""
    return {
        **environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
    }


def run_processes(
    commands: Sequence[Sequence[str]],
    environments: Mapping[str, str] | Sequence[Mapping[str, str]],
    *,
    folder: pathlib.Path | None = None,
    step: int = 0,
    signals: Sequence[int | None] = (),
) -> list[Finished]:
    """Runs processes to their end; sends each its signal, if any, once `step` is logged.

    Args:
      environments: environment of all processes, or one for each.
    """
    if isinstance(environments, Mapping):
        environments = [environments] * len(commands)
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    try:
        while signals and not any(process.poll() is not None for process in started):
            path = folder / "metrics.jsonl"
            if path.is_file() and path.read_text().count("\n") >= step:
                for process, number in zip(started, signals):
                    if number:
                        process.send_signal(number)
                break
            time.sleep(0.01)
        ends = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Finished(p.returncode, out, err) for p, (out, err) in zip(started, ends)]


def printed_lines(finished: Finished) -> list[str]:
    """Returns the lines that a process printed, without those of Gloo about connections."""
    return [line for line in finished.out.splitlines() if "peer ranks" not in line]


def assert_same_run(folder: pathlib.Path, reference: pathlib.Path) -> None:
    """Asserts the same steps, the same examples, and losses within a relative 1e-5."""
    found = records(folder)
    expected = records(reference)[: len(found)]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    ids, counts = ([line.get(name) for line in found] for name in ("train/ids_crc", "val/n"))
    assert ids == [line["train/ids_crc"] for line in expected]
    # The signal may arrive between the last step and its evaluation.
    assert counts[:-1] == [line.get("val/n") for line in expected][:-1]
    losses = [[line["train/loss"] for line in run] for run in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
