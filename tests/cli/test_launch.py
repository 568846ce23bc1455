"""The command `launch`: the file, the printed command, and mistakes found before it is written."""

import pytest

from tests.support.config_mistakes import TINY
from vit_jax import main
from vit_jax.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a config file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


def launch(*flags: str, engine: str = "slurm", config: str = "tiny.py") -> int:
    return main.run(
        ["launch", f"--engine={engine}", f"--config={config}", "--workdir=runs/Tiny", *flags]
    )


def test_launch_writes_the_job_file_and_prints_the_command_to_submit_it(folder, capsys):
    assert launch("--nodes=2", "--config.seed=3") == 0
    text = (folder / "tiny.sbatch").read_text()
    assert "--config=tiny.py --config.seed=3 --workdir=runs/Tiny &" in text
    assert f"#SBATCH --chdir={folder}" in text
    line = capsys.readouterr().out
    assert line == "tiny.sbatch: job for 2 nodes; to submit it: sbatch tiny.sbatch\n"
    assert not (folder / "runs").exists()


def test_launch_with_dry_run_prints_the_file_and_writes_nothing(folder, capsys):
    assert launch("--dry_run") == 0
    out = capsys.readouterr().out
    assert out.startswith("#!/bin/bash\n")
    assert [path.name for path in folder.iterdir() if path.suffix != ".py"] == []
    assert launch("--out=other.sh") == 0
    assert (folder / "other.sh").read_text() == out.replace("tiny.sbatch", "other.sh")


def test_launch_replaces_a_different_file_only_with_overwrite(folder):
    launch()
    assert launch() == 0
    with pytest.raises(ConfigError, match=r"tiny\.sbatch exists and is different; give --overwri"):
        launch("--nodes=2")
    assert launch("--nodes=2", "--overwrite") == 0
    assert "--nodes=2" in (folder / "tiny.sbatch").read_text()


def test_launch_accepts_the_url_of_a_workdir(folder, capsys):
    flags = ["--config=tiny.py", "--workdir=gs://bucket/runs/x", "--image=vit:1", "--dry_run"]
    for engine in ("jobset", "kubeflow"):
        assert main.run(["launch", f"--engine={engine}", "--nodes=2", *flags]) == 0
        out = capsys.readouterr().out
        assert "--workdir=gs://bucket/runs/x" in out
        assert "gs://bucket/runs/.programs" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.sed=1"], "no field 'sed'"),
        (["--config.batch_size=0"], "config.batch_size is 0; it must be at least 1"),
        (["--nodes=2", "--gpus_per_node=3"], "batch_size 8 is not divisible by 6 devices"),
        (["--config.init.path=tiny.py"], "tiny.py"),
        (["--nodes=0"], "'0' is not a whole number of at least 1"),
        (["--gpus_per_node=h100"], r"'h100' is not \[TYPE:\]N"),
        (["--time=1h"], "'1h' is not a time limit"),
        (["--volume=claim"], "'claim' is not SOURCE:PATH"),
        (["--volume=claim:/shared"], "--volume has no effect with --engine=slurm"),
        (["--dry_run", "--submit"], "--dry_run and --submit: give one of them"),
        (["--name=My_Run"], "--name=My_Run is invalid"),
    ],
)
def test_launch_finds_mistakes_before_the_file_is_written(folder, flags, message):
    with pytest.raises(Exception, match=message) as caught:
        launch(*flags)
    assert caught.value.exit_code in (2, 4)
    assert not (folder / "tiny.sbatch").exists()


def test_launch_rejects_an_unknown_engine(folder):
    with pytest.raises(ConfigError, match="invalid choice: 'slrm'"):
        launch(engine="slrm")


def test_launch_rejects_a_config_other_than_that_of_the_run(folder):
    assert main.run(["--config=tiny.py", "--workdir=runs/Tiny"]) == 0
    assert launch() == 0
    with pytest.raises(ConfigError, match=r"contains a run with another config; .* seed"):
        launch("--config.seed=7")
    resumed = ["launch", "--engine=slurm", "--workdir=runs/Tiny", "--out=resume.sbatch"]
    assert main.run(resumed) == 0
    text = (folder / "resume.sbatch").read_text()
    assert "train --workdir=runs/Tiny &" in text


def test_inspect_lists_the_newest_step_of_every_run(folder, capsys):
    assert main.run(["inspect", "--steps", "runs"]) == 0
    assert capsys.readouterr().out == ""
    assert main.run(["--config=tiny.py", "--workdir=runs/a"]) == 0
    assert main.run(["--config=tiny.py", "--workdir=runs/sweep", "--config.sweep.seeds=2"]) == 0
    capsys.readouterr()
    assert main.run(["inspect", "--steps", "runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["runs/a 4", "runs/sweep/seed_0 4", "runs/sweep/seed_1 4"]
