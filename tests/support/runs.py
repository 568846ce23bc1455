"""Runs of the command line, and what they leave in a workdir."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

from vit_jax.checkpoints import layout

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Finished:
    """Exit code and output of a command line."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a user's mistake; a traceback fails the test."""
        lines = [line for line in self.err.splitlines() if line.startswith("vit_jax: ")]
        assert "Traceback" not in self.err, self.err
        assert len(lines) == 1, self.err
        return lines[0]


def run_main(*arguments: str, devices: int = 1, timeout: float = 300) -> Finished:
    """`python -m vit_jax.main` in a process of its own."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.main", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def run_until(step: int, number: int, *arguments: str, folder: pathlib.Path) -> int:
    """Starts a run, sends a signal once metrics.jsonl has the step; returns the exit code."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vit_jax.main", *arguments, f"--workdir={folder}"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            path = folder / "metrics.jsonl"
            if path.is_file() and path.read_text().count("\n") >= step:
                process.send_signal(number)
                break
            time.sleep(0.005)
        return process.wait()


TIMINGS = ("train/img_per_sec", "train/data_wait", "train/device", "train/host")


def records(folder: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def final_state(folder: pathlib.Path) -> dict[str, dict]:
    """The checksum of every array of the newest checkpoint, optimiser included."""
    return layout.read_manifest(layout.find_step_folder(folder))["leaves"]
