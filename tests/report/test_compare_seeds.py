"""Best runs, seeds, units and colours of a comparison, from runs made by hand."""

import dataclasses
import pathlib
import statistics

import pytest

from tests.support.written_pages import Page
from vit_jax.config.schema import Config, Data, Optimizer
from vit_jax.report import compare, curves
from vit_jax.report.run_record import RunRecord


def run(name: str, top1: float, seed: int = 0, lr: float = 0.1, **fields) -> RunRecord:
    data = Data(source="digits", **fields)
    config = Config(seed=seed, batch_size=50, steps=20, data=data, optimizer=Optimizer(lr=lr))
    history = [
        {"step": 10, "train/loss": 2.0, "train/img_per_sec": 100.0},
        {"step": 20, "train/loss": 1.0, "train/img_per_sec": 250.0, "val/top1": top1},
    ]
    summary = {
        "step": 20,
        "metrics": {"val/top1": top1, "train/img_per_sec": 250.0},
        "flops": 11_920_000_000.0,
        "seconds": {"train": 2.9094},
    }
    folder = pathlib.Path("runs") / name
    return RunRecord(folder, name, config, summary, history, "finished", {}, 20, 200)


RUNS = [run("a", 0.5), run("b", 0.7, seed=1), run("c", 0.9, lr=0.2), run("d", 0.1, dev=0.5)]


@pytest.fixture
def page(tmp_path) -> Page:
    path = tmp_path / "comparison.html"
    path.write_text(compare.render_comparison_page("runs", RUNS, path))
    return Page(path)


def test_best_run_is_best_among_runs_of_the_same_metric_and_data():
    by_name = {each.name: each for each in RUNS}
    assert compare.best_runs(by_name) == {"c"}
    assert compare.best_runs({"d": by_name["d"]}) == set()
    losses = {
        name: dataclasses.replace(each, summary=each.summary | {"metrics": {"val/loss": loss}})
        for (name, each), loss in zip(by_name.items(), (3.0, 1.0, 2.0, 0.5), strict=True)
    }
    assert compare.best_runs(losses) == {"b"}


def test_seeds_have_mean_and_sample_deviation(page):
    text = page.text[page.text.index("Seeds") : page.text.index("Curves")]
    assert f"{100 * statistics.fmean((0.5, 0.7)):.2f} %" in text
    assert f"{100 * statistics.stdev((0.5, 0.7)):.2f} %" in text
    assert "90.00 %" not in text, "c has another learning rate"


def test_runs_have_columns_of_differing_fields_and_human_units(page):
    text = page.text[: page.text.index("Curves")]
    for cell in ("lr", "dev", "seed", "0:03", "11.92 gigaFLOPs", "250", "70.00 %"):
        assert cell in text, cell
    assert "exaFLOPs" not in text
    values = [attributes.get("data-value") for tag, attributes in page.tags if tag == "td"]
    assert "2.9094" in values, "sorting by time compares seconds"
    assert "11,920,000,000" in values or "11920000000.0" in values


def test_run_keeps_its_place_and_with_it_its_colour_in_every_plot(page):
    (block,) = page.plots
    for chart in block["charts"]:
        for series in chart["series"]:
            assert block["runs"][series["run"]]["label"] == series["label"]
    only_d = [
        curves.comparison_charts({"x": dataclasses.replace(RUNS[0], history=[]), "d": RUNS[3]})
    ]
    assert {
        series["run"] for charts in only_d for chart in charts for series in chart["series"]
    } == {1}


def test_axes_are_epochs_by_examples_and_seconds_by_logged_speed():
    axes = curves.run_axes(RUNS[0])
    assert axes["epochs"] == 50 / 200
    assert axes["steps"] == [0, 10, 20]
    assert axes["seconds"] == [0, 5, 7]  # 500 images at 100 per second, then at 250.


def test_page_reloads_itself_only_while_a_run_is_running(tmp_path):
    path = tmp_path / "page.html"
    for state, refresh in (("finished", None), ("running", "30")):
        runs = [dataclasses.replace(RUNS[0], state=state), RUNS[1]]
        path.write_text(compare.render_comparison_page("runs", runs, path, refresh=30))
        (main,) = (attributes for tag, attributes in Page(path).tags if tag == "main")
        assert main.get("data-refresh") == refresh


def test_seeds_are_compared_by_their_mean(tmp_path):
    runs = [run("a", 0.5), run("b", 0.9, seed=1), run("c", 0.8, lr=0.2)]
    runs.append(run("d", 0.7, seed=1, lr=0.2))
    path = tmp_path / "comparison.html"
    path.write_text(compare.render_comparison_page("runs", runs, path))
    text = Page(path).text
    seeds = text.index("Seeds", text.index("differ only in their seed"))
    assert " best " not in text[text.index("compute") : seeds], "b has the best single score"
    assert "best" in text[text.index("lr=0.2", seeds) : text.index("lr=0.2", seeds) + 20]


def test_differing_fields_follow_the_name_of_the_run(page):
    header = page.text[page.text.index("Click a heading") :]
    assert header.index("lr") < header.index("state")
    assert "null" not in page.text[: page.text.index("Curves")]
