"""The programs in examples/ run, and stay short."""

import importlib.util

import numpy as np
import pytest

import vit_jax
from tests.support.runs import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_custom_loop_learns_digits_and_saves_the_model(tmp_path):
    assert load_example("custom_loop").main(steps=60, out=tmp_path / "digits.npz") > 0.4
    assert vit_jax.load(tmp_path / "digits.npz").classes == tuple("0123456789")


@pytest.mark.slow
def test_patch_detector_gives_a_box_and_a_score_for_each_patch():
    outputs = load_example("patch_detector").main()
    assert outputs["boxes"].shape == (2, 8, 12, 4)
    assert outputs["scores"].shape == (2, 8, 12)


@pytest.mark.slow
def test_two_towers_pull_the_views_together():
    losses = load_example("two_towers").main(steps=8)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_have_at_most_60_lines(path):
    assert len(path.read_text().splitlines()) <= 60
