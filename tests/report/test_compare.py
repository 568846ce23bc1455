"""The page that compares runs."""

import pytest

from tests.support.written_pages import Page
from vit_jax import main

pytestmark = pytest.mark.slow  # Trains or runs models for seconds.


def test_comparison_has_a_curve_per_run_and_the_config_differences(quickstart, tmp_path):
    out = tmp_path / "both.html"
    folders = [str(quickstart / name) for name in ("finetune", "scratch")]
    assert main.run(["report", "--no_model", *folders, f"--out={out}"]) == 0
    page = Page(out)
    curves = page.charts()["Accuracy: val/top1"]
    assert list(curves) == ["quickstart/finetune", "quickstart/scratch"]
    differences = page.text[page.text.index("Config differences") :]
    assert "init.stage" in differences
    assert '"pretrain"' in differences
    assert "optimizer.lr" not in differences
