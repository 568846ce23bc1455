"""Random kills of runs with two stages, data workers and evaluations: equal to the bit."""

import collections
import itertools
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.support.runs import ROOT, records
from vit_jax import atomic_io
from vit_jax.checkpoints import layout

INTERVAL, EVALS, STEPS = 12, 18, 72
KILLS = {"classification": 50, "masked_patches": 10, "mae": 10, "dino": 10}  # By first task.
STAGES = ("pretrain", "finetune")
# Dropout, stochastic depth, augmentation and shuffling: all that depends on random numbers.
CONFIG = f"""
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config("pretrain", "finetune")
    pretrain, finetune = config.stages.pretrain, config.stages.finetune
    for stage in config.stages.values():
        stage.model.update(name="vit_ti16", patch=7, num_layers=2, hidden_size=32, mlp_size=64)
        stage.model.update(num_heads=2, dropout=0.1, drop_path=0.1)
        stage.data.update(source="digits", image_size=28, per_class=9)
        stage.optimizer.update(warmup_steps=5, weight_decay=0.1)
        stage.update(batch_size=16, steps={STEPS}, log_every=1)
        stage.update(checkpoint_every={INTERVAL}, eval_every={EVALS})
    pretrain.data.workers = 2
    pretrain.task.name = arg
    if arg == "mae":
        pretrain.task.update(decoder_layers=1, decoder_size=16, decoder_heads=2)
    if arg == "dino":
        pretrain.task.update(prototypes=32, head_hidden=32, bottleneck=16, patch_weight=1.0)
        pretrain.task.update(koleo_weight=0.1, end_teacher_temperature=0.07)
        pretrain.task.teacher_warmup_steps = 50
        pretrain.data.update(local_crops=2, local_size=14)
        pretrain.optimizer.update(ema=0.99, end_ema=1.0, end_weight_decay=0.2)
    finetune.select = "best"
    finetune.init.update(stage="pretrain", new_head=True)
    return config
"""
# Place of a kill -> its share of the kills.
PLACES = {"start": 3, "step": 6, "save": 5, "evaluation": 4, "between stages": 2, "worker": 5}


class Run:
    """A run in a process of its own, whose lines are read as they come."""

    def __init__(self, flags: list[str], environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vit_jax.main", *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.progress: list[tuple[str, int]] = []  # Stage and number of each step, in order.
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if found := re.match(r"(\w+)  step (\d+)/\d+  loss", line):
                self.progress.append((found[1], int(found[2])))

    def wait_until(self, condition) -> bool:
        """Returns False if the run ends first."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        return True

    def workers(self) -> list[int]:
        """Returns the process ids of its data workers."""
        try:
            children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            pids = [int(pid) for pid in children.read_text().split()]
            commands = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
        except OSError:
            return []
        return [pid for pid, command in zip(pids, commands) if b"spawn_main" in command]

    def end(self) -> str:
        """Waits for the end of the process; returns what it wrote on standard error."""
        self.process.wait(300)
        self.reader.join()
        with self.process.stderr:
            return self.process.stderr.read()


def saved_steps(folder: pathlib.Path) -> dict[str, int]:
    """Returns the newest checkpoint of each stage."""
    steps = {stage: layout.list_steps(folder / stage / layout.FOLDER) for stage in STAGES}
    return {stage: max(found, default=0) for stage, found in steps.items()}


def temporary_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [
        path
        for path in folder.rglob("*")
        if atomic_io.is_temporary(path) or "tmp" in path.name or path.name.startswith(".~")
    ]


def is_writing(folder: pathlib.Path) -> bool:
    folders = [folder / stage / kind for stage in STAGES for kind in (layout.FOLDER, layout.BEST)]
    return any("tmp" in path.name for each in folders if each.is_dir() for path in each.iterdir())


def reach(place: str, run: Run, folder: pathlib.Path, random, start_up: float) -> bool:
    """Waits until a run is at a place; returns False if it ends first."""
    if place == "start":
        over = time.monotonic() + random.uniform(0.05, start_up)
        return run.wait_until(lambda: time.monotonic() > over)
    if place == "between stages":
        is_reached = (folder / "pretrain" / "summary.json").exists
    elif place == "worker":
        later = len(run.progress) + random.integers(1, EVALS)
        run.wait_until(lambda: len(run.progress) >= later or is_in_second_stage(run))
        return bool(run.workers())
    elif place == "save":
        run.wait_until(lambda: run.progress)  # Left-overs of an earlier kill are gone.
        is_reached = lambda: is_writing(folder)  # noqa: E731
    elif place == "evaluation":
        first = len(run.progress)
        is_reached = lambda: any(step % EVALS == 0 for _, step in run.progress[first:])  # noqa: E731
    else:
        later = len(run.progress) + random.integers(1, 2 * INTERVAL)
        is_reached = lambda: len(run.progress) >= later  # noqa: E731
    reached = run.wait_until(is_reached)
    time.sleep(random.uniform(0, 0.03))
    return reached


def is_in_second_stage(run: Run) -> bool:
    """Returns True in the stage without data workers."""
    return any(stage == STAGES[1] for stage, _ in run.progress)


def contents(folder: pathlib.Path) -> dict:
    """Returns metrics, checksums of all arrays of the last and best weights, and results."""
    found = {}
    for stage in STAGES:
        found[stage, "metrics"] = records(folder / stage)
        summary = json.loads((folder / stage / "summary.json").read_text())
        found[stage, "results"] = {
            name: value
            for name, value in summary["metrics"].items()
            if not re.search("img_per_sec|data_wait|device|host", name)
        }
        for kind in (layout.FOLDER, layout.BEST):
            steps = layout.list_steps(folder / stage / kind)
            for step in steps[-1:]:
                manifest = layout.read_manifest(folder / stage / kind / str(step))
                found[stage, kind, step] = manifest["leaves"]
    return found


@pytest.mark.stress
@pytest.mark.parametrize("task", KILLS)
def test_kills_change_no_bit_and_leave_no_files(tmp_path, task):
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    config, num_kills = f"{file}:{task}", KILLS[task]
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
        "PYTHONPATH": str(ROOT),
    }
    whole = tmp_path / "whole"
    reference = Run([f"--config={config}", f"--workdir={whole}"], environment)
    begun = time.monotonic()
    assert reference.wait_until(lambda: reference.progress)
    start_up = time.monotonic() - begun
    assert not reference.end()
    assert len(reference.progress) == len(STAGES) * STEPS
    expected = contents(whole)

    random = np.random.default_rng(0)
    names = list(PLACES)
    shares = np.array(list(PLACES.values())) / sum(PLACES.values())
    kills, lost = collections.Counter(), []
    for round_number in itertools.count():
        folder = tmp_path / f"killed_{round_number}"
        while not (folder / "summary.json").exists():
            before = saved_steps(folder)
            run = Run([f"--config={config}", f"--workdir={folder}"], environment)
            number = signal.SIGKILL if random.random() < 0.7 else signal.SIGTERM
            for _ in range(3):
                place = str(random.choice(names, p=shares))
                is_over = kills.total() >= num_kills
                if is_over or not reach(place, run, folder, random, start_up):
                    break
                if place != "worker":
                    run.process.send_signal(number)
                    kills[place, number.name] += 1
                    break
                for pid in run.workers()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    kills[place, "SIGKILL"] += 1
            else:
                run.process.send_signal(number)
                kills["step", number.name] += 1
            err = run.end()
            # A data worker that was just being started prints one when its parent is killed.
            assert "Traceback" not in err or run.process.returncode == -signal.SIGKILL, err
            for stage in STAGES:  # Steps run on from the newest checkpoint, without a gap.
                steps = [step for name, step in run.progress if name == stage]
                assert steps == list(range(before[stage] + 1, before[stage] + 1 + len(steps)))
                if steps and run.process.returncode:
                    lost.append(steps[-1] - saved_steps(folder)[stage])
                    print(f"{place}, {number.name}: {stage} {steps[-1]}, lost {lost[-1]}")
                    assert run.process.returncode == -signal.SIGKILL or lost[-1] <= 0, err
        found = contents(folder)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == value, key
        assert not temporary_files(folder)
        if kills.total() >= num_kills:
            break
    print(f"\n{kills.total()} kills: {dict(kills)}; {round_number + 1} rounds equal to the bit")
    print(f"steps lost per kill: median {statistics.median(lost)}, most {max(lost)}")
    assert max(lost) <= INTERVAL
    assert not running_with(environment)


def running_with(environment: dict[str, str]) -> list[str]:
    """Returns the processes with the compilation cache of an environment."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_text(errors="replace")
        except OSError:
            continue
        if environment["JAX_COMPILATION_CACHE_DIR"] in variables:
            found.append(path.parent.name)
    return found
