"""Runs that are killed, running, damaged or mixed with other folders."""

import shutil
import subprocess
import sys

import pytest

from tests.support.written_pages import ALWAYS, WITH_MODEL, Page, copy_as_killed
from vit_jax import main
from vit_jax.checkpoints import lock
from vit_jax.errors import ConfigError

pytestmark = pytest.mark.slow  # Shares a trained quickstart.


def test_killed_run_has_a_page_of_what_it_logged(reported, tmp_path):
    folder = copy_as_killed(reported / "finetune", tmp_path / "killed")
    assert main.run(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert page.sections == ALWAYS | WITH_MODEL
    assert "stopped" in page.text
    assert "of 20 steps" in page.text
    assert list(page.charts()["Loss"]["train/loss"]) == [1, 5]


def test_run_killed_before_its_first_checkpoint_has_a_page(quickstart, tmp_path):
    folder = copy_as_killed(quickstart / "finetune", tmp_path / "killed", keep_checkpoints=False)
    (folder / "metrics.jsonl").unlink()
    assert main.run(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert page.sections == ALWAYS | {"model-outputs"}
    assert "No step has been logged yet" in page.text
    assert "contains no checkpoint" in page.text


HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_run_locked_by_another_process_is_running(quickstart, tmp_path):
    folder = copy_as_killed(quickstart / "finetune", tmp_path / "running")
    command = [sys.executable, "-c", HOLD_LOCK, str(folder / lock.LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        process.stdout.read(4)
        assert main.run(["report", "--no_model", str(folder)]) == 0
    assert "running" in Page(folder / "report.html").text


def test_workdirs_in_a_folder_are_found_with_their_stages_in_order(quickstart, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(quickstart, tmp_path / name)
    assert main.run(["report", "--no_model", str(tmp_path)]) == 0
    stages = ("pretrain", "finetune", "scratch")
    expected = [f"{name}/{stage}/report.html" for name in ("a", "b") for stage in stages]
    assert Page(tmp_path / "report.html").links == expected


def test_config_json_of_other_programs_is_skipped(quickstart, tmp_path, capsys):
    folder = shutil.copytree(quickstart, tmp_path / "quickstart")
    for name, text in (("weights", '{"architectures": ["ViT"]}'), ("list", "[1]"), ("cut", "{")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
    assert main.run(["report", "--no_model", str(folder)]) == 0
    assert not (folder / "weights" / "report.html").exists()
    assert capsys.readouterr().err.count("Skipped: ") == 3


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", '{"stages": 5}', "no run in it"),
        ("config.json", '{"data": 5}', "config.json: "),
        ("summary.json", '{"step": 5}', "metrics is None; the file was not written by a run"),
        (
            "summary.json",
            '{"step": 5, "metrics": {"val/top1": "x"}, "flops": 1, "seconds": {}}',
            "val/top1 is 'x'; expected a number",
        ),
    ],
)
def test_damaged_json_is_rejected_alone_and_skipped_beside_other_runs(
    quickstart, tmp_path, capsys, file, text, message
):
    for name in ("a", "b"):
        shutil.copytree(quickstart / "scratch", tmp_path / name)
    (tmp_path / "a" / file).write_text(text)
    if file == "config.json":  # The config inside a checkpoint would replace it.
        shutil.rmtree(tmp_path / "a" / "checkpoints")
    with pytest.raises(ConfigError, match=message):
        main.run(["report", "--no_model", str(tmp_path / "a")])
    assert main.run(["report", "--no_model", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"done: {tmp_path / 'b' / 'report.html'}"


def test_folder_without_a_run_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match=r"no run in it; a run's folder contains config\.json"):
        main.run(["report", str(tmp_path)])
    with pytest.raises(ConfigError, match="missing: no such folder"):
        main.run(["report", str(tmp_path / "missing")])
