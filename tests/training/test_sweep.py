"""Whole sweeps: killed and shared, they end with the table of one that ran through."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.support.runs import ROOT
from vit_jax import config, main
from vit_jax.checkpoints import lock, workdir
from vit_jax.errors import ConfigError, DataError, NonFiniteError
from vit_jax.training import sweep

FILE = '''"""A sweep on digits."""
from vit_jax.config import base_config

def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=4, num_layers=1, hidden_size=16, mlp_size=32)
    config.model.num_heads = 2
    config.data.update(source="digits", image_size=8, augment="resize", per_class=20)
    config.optimizer.update(name="adamw", lr=1e-3)
    config.update(batch_size=16, steps=12, checkpoint_every=4, log_every=4)
    config.sweep.update(grid=(("optimizer.lr", (1e-4, 1e-3, 1e-2)),), seeds=2, dev=0.2)
    return config
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("configs") / "sweep.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory) -> pathlib.Path:
    """The folder of a sweep that ran through."""
    folder = tmp_path_factory.mktemp("whole")
    assert main.run([f"--config={file}", f"--workdir={folder}"]) == 0
    return folder


def table(folder: pathlib.Path) -> str:
    return (folder / sweep.TABLE).read_text()


@pytest.mark.slow
def test_a_sweep_tells_every_run_and_the_mean_of_its_seeds(whole):
    rows = [line.split() for line in table(whole).splitlines()[2:]]
    mean = rows.pop()
    assert [row[1] for row in rows] == ["lr=0.0001", "lr=0.001", "lr=0.01", "seed_0", "seed_1"]
    assert [row[5] for row in rows] == ["40"] * 3 + ["359"] * 2, "a fifth of 200; all of val"
    found = json.loads((whole / "summary.json").read_text())
    singles = [json.loads((whole / f"seed_{i}/summary.json").read_text()) for i in (0, 1)]
    scores = [single["metrics"]["val/top1"] for single in singles]
    assert found["metrics"]["val/top1"] == sum(scores) / 2
    assert mean[1:4] == ["seed_0", "to", "seed_1"]
    assert f"| {sum(scores) / 2:.4f} +- " in table(whole)
    best = max(rows[:3], key=lambda row: float(row[7]))
    assert best[1] == f"lr={found['best']['optimizer.lr']}"
    trial = json.loads((whole / "grid" / best[1] / "summary.json").read_text())
    assert found["dev"] == {name: trial["metrics"][f"val/{name}"] for name in found["dev"]}
    assert found["dev"]["n"] == 40


@pytest.mark.slow
def test_trials_train_and_are_scored_on_parts_of_the_training_examples(whole):
    meta = json.loads((whole / "grid/lr=0.001/config.json").read_text())
    trial = config.from_dict(meta)[""]
    from vit_jax.data.sources import open_both, open_training

    rest, held = open_both(trial.data)
    assert (len(rest), len(held)) == (160, 40)
    names = [{part.name(i) for i in range(len(part))} for part in (rest, held)]
    assert not names[0] & names[1]
    final = config.from_dict(json.loads((whole / "seed_0/config.json").read_text()))[""]
    everything = open_training(final.data)
    assert names[0] | names[1] == {everything.name(i) for i in range(200)}


def start(*flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "vit_jax.main", *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when(process: subprocess.Popen, path: pathlib.Path) -> None:
    until = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.stress
def test_a_sweep_that_was_killed_twice_ends_with_the_same_table(file, whole, tmp_path):
    folder = tmp_path / "killed"
    flags = [f"--config={file}", f"--workdir={folder}"]
    kill_when(start(*flags), folder / "grid/lr=0.001/checkpoints/4")
    kill_when(start(*flags), folder / "seed_0/checkpoints/8")
    assert not (folder / sweep.TABLE).exists()
    assert main.run([f"--workdir={folder}"]) == 0, "its config is in the workdir"
    assert table(folder) == table(whole)
    first, last = (json.loads((each / "summary.json").read_text()) for each in (whole, folder))
    assert first == last


@pytest.mark.slow
def test_processes_leave_each_other_the_runs_they_work_at(file, whole, tmp_path, capsys):
    flags = [f"--config={file}", f"--workdir={tmp_path}"]
    with lock.Lock(tmp_path / "grid/lr=0.01"):
        assert main.run([*flags, "--shard=1/3"]) == 0
    out = capsys.readouterr().out
    steps = [line.split()[0] for line in out.splitlines() if "step 12/12  dev" in line]
    assert steps == ["lr=0.001", "lr=0.0001"], "first the share of process 1, from 0"
    assert "done: the remaining runs are in progress in other processes" in out
    assert main.run([*flags, "--shard=2/3"]) == 0
    assert table(tmp_path) == table(whole)


@pytest.mark.stress
def test_who_passes_over_a_run_looks_at_it_again_when_others_were_left(file, whole, tmp_path):
    """Two processes at once: whoever ends last has the table."""
    flags = [f"--config={file}", f"--workdir={tmp_path}"]
    both = [start(*flags, f"--shard={i}/2") for i in (0, 1)]
    said = [process.communicate(timeout=280)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("done: runs=5" in text for text in said), said
    assert table(tmp_path) == table(whole)


@pytest.mark.slow
def test_what_comes_last_is_checked_first(file, tmp_path):
    flags = [f"--config={file}", f"--workdir={tmp_path / 'w'}"]
    with pytest.raises(DataError, match="splits train and val, not 'tset'"):
        main.run([*flags, "--config.data.val_split=tset"])
    grid = "--config.sweep.grid=(('steps',(20,5)),)"
    with pytest.raises(ConfigError, match="warmup_steps is 10; it must be at most the 5 steps"):
        main.run([*flags, grid, "--config.optimizer.warmup_steps=10"])
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_last_runs_that_diverge_end_the_sweep_by_name(file, tmp_path, capsys):
    flags = [f"--config={file}", "--config.sweep.grid=()", "--config.optimizer.lr=1e35"]
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="seed_0: the loss became NaN"):
            main.run([*flags, f"--workdir={tmp_path}"])


@pytest.mark.slow
def test_a_shard_of_what_is_no_sweep_is_refused(tmp_path):
    flags = ["--config=configs/finetune.py:smoke", f"--workdir={tmp_path}", "--shard=0/2"]
    with pytest.raises(ConfigError, match="this config has none"):
        main.run(flags)
    with pytest.raises(ConfigError, match=r"2/2.*is not I/N"):
        main.run([*flags[:2], "--shard=2/2"])


@pytest.mark.slow
def test_a_trial_that_diverges_loses_and_the_sweep_goes_on(file, tmp_path, capsys):
    grid = "--config.sweep.grid=(('optimizer.lr',(1e35,1e-3)),)"
    flags = [f"--config={file}", grid, "--config.sweep.seeds=1", f"--workdir={tmp_path}"]
    assert main.run(flags) == 0
    assert "optimizer.lr=0.001" in capsys.readouterr().out
    assert "not finite" in table(tmp_path).splitlines()[2]
    (tmp_path / "summary.json").unlink()
    assert main.run(flags) == 0, "it is not tried again"
    assert "lr=1e+35" not in capsys.readouterr().out
    none = "--config.sweep.grid=(('optimizer.lr',(1e35,)),)"
    with pytest.raises(NonFiniteError, match="the loss of every run was not finite"):
        main.run([flags[0], none, f"--workdir={tmp_path / 'none'}"])


def test_a_run_has_diverged_if_the_file_says_so_for_its_config(tmp_path):
    path = tmp_path / workdir.DIVERGED
    own = config.to_dict(config.resolve(config.base_config(), {"steps": 5}))
    assert not sweep._has_diverged(path, own)
    for values, expected in (
        ({"error": "not finite"}, True),  # Of version 0.1.0.
        ({"error": "not finite", "config": own | {"log_every": 3}}, True),
        ({"error": "not finite", "config": own | {"batch_size": 3}}, False),
    ):
        workdir.write_json(path, values)
        assert sweep._has_diverged(path, own) == expected
    path.write_text('{"err')
    assert not sweep._has_diverged(path, own)
