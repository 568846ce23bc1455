"""Pages of a run: sections, texts and the command that repeats the run."""

import json
import pathlib
import re
import shlex
import shutil

import pytest

from tests.support.written_pages import ALWAYS, WITH_MODEL, Page, change_config
from vit_jax import main
from vit_jax.checkpoints import workdir
from vit_jax.evaluation import setup
from vit_jax.training import metrics

pytestmark = pytest.mark.slow  # Trains or runs models for seconds.


def test_training_writes_a_page_per_stage_and_a_comparison(quickstart):
    for name in ("pretrain", "finetune", "scratch"):
        page = Page(quickstart / name / "report.html")
        assert page.sections == ALWAYS | {"model-outputs"}
        assert "finished" in page.text
    page = Page(quickstart / "report.html")
    assert page.links == [f"{name}/report.html" for name in ("pretrain", "finetune", "scratch")]


def test_report_adds_the_sections_that_need_the_model(reported):
    page = Page(reported / "finetune" / "report.html")
    assert page.sections == ALWAYS | WITH_MODEL
    summary = json.loads((reported / "finetune" / "summary.json").read_text())
    assert f"{100 * summary['metrics']['val/top1']:.2f} % val/top1, n=359" in page.text
    assert len(page.html) < 3_000_000


def test_page_with_missing_data_has_all_other_sections(quickstart, tmp_path, capsys):
    folder = shutil.copytree(quickstart / "finetune", tmp_path / "run")
    change_config(folder, "data", source="folder", dir=str(tmp_path / "missing"))
    assert main.run(["report", "--no_model", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert "missing" in page.text
    assert "Unavailable: " in page.text
    error = capsys.readouterr().err
    assert error.startswith("report: the section Inputs is unavailable: ")
    assert str(tmp_path / "missing") in error
    assert "Loss" in page.charts()


def test_page_with_an_unavailable_device_has_all_other_sections(quickstart, tmp_path, monkeypatch):
    def raise_busy(*_):
        raise RuntimeError("device or resource busy")

    folder = shutil.copytree(quickstart / "scratch", tmp_path / "run")
    monkeypatch.setattr(setup, "prepare_setup", raise_busy)
    assert main.run(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert "Unavailable: device or resource busy" in page.text
    assert "Loss" in page.charts()


def test_page_without_a_scored_split_says_so(quickstart, tmp_path):
    folder = shutil.copytree(quickstart / "scratch", tmp_path / "run")
    change_config(folder, "data", val_split="")
    assert main.run(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert page.sections == ALWAYS | {"model-outputs", "position-embeddings"}
    assert "its data.val_split is empty" in page.text


def test_page_loads_nothing_from_the_network(reported):
    for path in reported.rglob("report.html"):
        for tag, attributes in Page(path).tags:
            assert tag not in ("link", "iframe", "object")
            assert "src" not in attributes or attributes["src"].startswith("data:"), tag
            assert not attributes.get("href", "").startswith(("http", "//")), tag


@pytest.mark.slow
def test_command_of_a_page_repeats_the_run(quickstart, tmp_path):
    folder = quickstart / "scratch"
    repeated = tmp_path / "again"
    page = Page(folder / "report.html")
    assert f"--config={folder}/config.json" in page.text
    assert main.run([f"--config={folder}/config.json", f"--workdir={repeated}"]) == 0
    assert train_losses(repeated) == train_losses(folder)
    assert workdir.read_config(repeated) == workdir.read_config(folder)


@pytest.mark.slow
def test_command_of_a_grid_run_finds_the_stages_it_needs(quickstart, tmp_path):
    folder = shutil.copytree(quickstart, tmp_path / "work")
    run = shutil.copytree(folder / "finetune", folder / "tuned" / "grid" / "lr=0.1")
    assert main.run(["report", "--no_model", str(run)]) == 0
    flags = command_flags(run)
    assert main.run(flags) == 0
    (flag,) = (flag for flag in flags if flag.startswith("--workdir="))
    repeated = pathlib.Path(flag.partition("=")[2])
    assert repeated == tmp_path / "work_tuned_grid_lr=0.1_again", "outside of the workdir"
    assert train_losses(repeated) == train_losses(run)

    change_config(run, "task", teacher="scratch")
    assert main.run(["report", "--no_model", str(run)]) == 0
    assert f"--config.task.teacher={folder / 'scratch'}" in command_flags(run)


def train_losses(run: pathlib.Path) -> list[float]:
    return [line["train/loss"] for line in metrics.read(run)]


def command_flags(run: pathlib.Path) -> list[str]:
    """Returns the flags of the command in a run's page."""
    text = Page(run / "report.html").text
    command = re.search(r"python -m vit_jax.main( \\\n +\S+)+", text)[0]
    return shlex.split(command.replace("\\\n", ""))[3:]
