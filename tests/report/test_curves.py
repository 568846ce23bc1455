"""Curves in a page against the logged metrics."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.written_pages import Page, change_config
from vit_jax import main
from vit_jax.report import curves
from vit_jax.training import metrics

pytestmark = pytest.mark.slow  # Shares a trained quickstart.


def test_curves_equal_the_lines_of_metrics_jsonl(quickstart):
    charts = Page(quickstart / "finetune" / "report.html").charts()
    history = metrics.read(quickstart / "finetune")
    for title, names in {
        "Loss": ["train/loss", "val/loss"],
        "Accuracy": ["train/top1", "val/top1"],
        "Learning rate": ["train/lr"],
        "Gradient norm": ["train/grad_norm"],
        "Images per second": ["train/img_per_sec"],
        "Fraction of step time": ["train/data_wait", "train/device", "train/host"],
    }.items():
        assert sorted(charts[title]) == names
        for name in names:
            expected = {line["step"]: line[name] for line in history if name in line}
            assert charts[title][name] == pytest.approx(expected, rel=1e-5)


def test_long_curves_are_reduced_to_extremes_and_their_last_value(monkeypatch):
    monkeypatch.setattr(curves, "MAX_POINTS", 10)
    losses = {step: 1.0 / step for step in range(1, 38)} | {11: 7.0, 37: 0.027}
    history = [{"step": step, "train/loss": loss} for step, loss in losses.items()]
    short = [line for line in history if line["step"] % 3 == 0 and line["step"] < 20]
    runs = {"long": SimpleNamespace(history=history), "short": SimpleNamespace(history=short)}
    (chart,) = curves.comparison_charts(runs)
    assert chart["steps"] == [1, 8, 9, 16, 17, 24, 25, 32, 33, 37]  # Ends of intervals of 8 steps.
    long, short = (series["values"] for series in chart["series"])
    expected = [1, 1 / 8, 7, 1 / 16, 1 / 17, 1 / 24, 1 / 25, 1 / 32, 1 / 33, 0.027]
    np.testing.assert_allclose(long, expected, rtol=1e-5)
    np.testing.assert_allclose(short[:6], [1 / 3, 1 / 6, 1 / 9, 1 / 15, 1 / 18, 1 / 18], rtol=1e-5)
    assert short[6:] == [None] * 4


def test_curves_skip_values_that_are_not_finite_numbers(quickstart, tmp_path):
    folder = shutil.copytree(quickstart / "scratch", tmp_path / "run")
    lines = '{"step": 1, "train/loss": "abc"}\n{"step": 2, "train/loss": NaN}\n'
    (folder / "metrics.jsonl").write_text(lines + '{"step": 3, "train/loss": 2.0}\n')
    assert main.run(["report", "--no_model", str(folder)]) == 0
    assert Page(folder / "report.html").charts()["Loss"] == {"train/loss": {3: 2.0}}


def test_scores_on_a_part_of_the_training_split_are_called_dev(quickstart, tmp_path):
    folder = shutil.copytree(quickstart / "scratch", tmp_path / "run")
    change_config(folder, "data", dev=0.1)
    assert main.run(["report", "--no_model", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert "dev/top1, n=359" in page.text
    assert "val/top1" not in page.charts()["Accuracy"]
