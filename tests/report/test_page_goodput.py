"""The section of a page with the time of all attempts at a run."""

import re

import pytest

from tests.support.finished_runs import write_attempts, write_run_without_labels
from tests.support.written_pages import Page
from vit_jax import main
from vit_jax.training import attempts


@pytest.fixture
def folder(tmp_path):
    write_run_without_labels(tmp_path / "run")
    return tmp_path / "run"


def test_goodput_section_has_the_time_by_part_and_a_row_per_attempt(folder):
    write_attempts(folder)
    assert main.run(["report", "--no_model", str(folder)]) == 0
    page = Page(folder / "report.html")
    # 180 + 180 + 38 seconds of steps that count, and 2 seconds of the first step of each attempt.
    assert "Goodput 78.0% of 8:38, 86.3% without the time down." in page.text
    rows = re.findall(r"<tr>(.*?)</tr>", page.html[page.html.index('id="goodput"') :])
    cells = [re.sub(r"<[^>]+>", "|", row) for row in rows]
    assert any("training|" in row and "404.0 s" in row for row in cells)
    assert any("lost training|" in row and "40.0 s" in row for row in cells)
    (first,) = (row for row in cells if "1 to 101" in row)
    assert "2027-01-15 08:00:00" in first
    assert "killed" in first
    assert any("181 to 200" in row and "finished" in row for row in cells)


def test_goodput_bar_has_its_parts_as_text(folder):
    write_attempts(folder)
    assert main.run(["report", "--no_model", str(folder)]) == 0
    (bar,) = (at for _, at in Page(folder / "report.html").tags if at.get("class") == "bar")
    assert bar["role"] == "img"
    assert bar["aria-label"].startswith("training 78.0%, start 2.9%, compilation ")


def test_page_of_a_run_without_recorded_times_reports_it(folder):
    assert main.run(["report", "--no_model", str(folder)]) == 0
    assert "No time has been recorded yet." in Page(folder / "report.html").text


def test_hostile_attempts_are_skipped(folder):
    (folder / attempts.FILE).write_text('{"started": 1e300}\n[' + "[" * 100_000)
    assert main.run(["report", "--no_model", str(folder)]) == 0
    assert "No time has been recorded yet." in Page(folder / "report.html").text
