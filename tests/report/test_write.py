"""Files that the verb `report` writes, keeps or refuses to overwrite."""

import os
import shutil

import pytest

from tests.support.written_pages import Page
from vit_jax import main
from vit_jax.errors import ConfigError

pytestmark = pytest.mark.slow  # Shares a trained quickstart.


def test_comparison_never_replaces_the_page_of_a_run(quickstart, tmp_path, monkeypatch):
    folder = shutil.copytree(quickstart, tmp_path / "quickstart")
    monkeypatch.chdir(folder / "finetune")
    run_page = (folder / "finetune" / "report.html").resolve()
    with pytest.raises(
        ConfigError, match="is the page of a single run; choose another file with --out"
    ):
        main.run(["report", "--no_model", ".", "../scratch", f"--out={run_page}"])
    assert main.run(["report", "--no_model", ".", "../scratch"]) == 0
    assert "Config differences" not in Page(run_page).text
    assert "Config differences" in Page(folder / "finetune" / "comparison.html").text


def test_training_command_of_a_finished_run_keeps_its_pages(quickstart, tmp_path):
    folder = shutil.copytree(quickstart, tmp_path / "quickstart")
    pages = [folder / "report.html", folder / "finetune" / "report.html"]
    contents = [page.read_bytes() + b"<!-- kept -->" for page in pages]
    for page, content in zip(pages, contents, strict=True):
        page.write_bytes(content)
    assert main.run([f"--workdir={folder}"]) == 0
    assert [page.read_bytes() for page in pages] == contents


def test_page_that_cannot_be_written_does_not_fail_training(quickstart, tmp_path, capsys):
    folder = shutil.copytree(quickstart / "scratch", tmp_path / "run")
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    os.utime(folder / "report.html", (0, 0))
    assert main.run([f"--workdir={folder}"]) == 0
    captured = capsys.readouterr()
    assert "report.html cannot be written" in captured.err
    assert captured.out.splitlines()[-1].startswith("done: steps=20 ")


def test_out_replaces_an_older_page_but_no_other_file(quickstart, tmp_path):
    run = str(quickstart / "scratch")
    for _ in range(2):
        assert main.run(["report", "--no_model", run, f"--out={tmp_path / 'one.html'}"]) == 0
        assert Page(tmp_path / "one.html").sections > {"curves"}
    (tmp_path / "notes.html").write_text("mine")
    os.mkfifo(tmp_path / "pipe.html")
    for name in ("notes", "pipe"):
        with pytest.raises(ConfigError, match=rf"{name}\.html exists and is not a page of"):
            main.run(["report", "--no_model", run, f"--out={tmp_path / f'{name}.html'}"])
    with pytest.raises(ConfigError, match="--out is empty"):
        main.run(["report", "--no_model", run, "--out="])


def test_page_that_cannot_be_written_does_not_stop_the_others(quickstart, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(quickstart / "scratch", tmp_path / name)
    (tmp_path / "a" / "report.html").unlink()
    (tmp_path / "a" / "report.html").mkdir()
    os.utime(tmp_path / "b" / "report.html", (0, 0))
    with pytest.raises(OSError, match="Is a directory"):
        main.run(["report", "--no_model", str(tmp_path)])
    assert (tmp_path / "b" / "report.html").stat().st_mtime > 0
    assert "Config differences" in Page(tmp_path / "report.html").text
