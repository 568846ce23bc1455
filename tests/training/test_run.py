"""Summaries of training runs from Python."""

from vit_jax.training.run import Summary


def test_summary_of_a_run_prints_its_steps_and_scores(tmp_path):
    metrics = {"val/top1": 0.94123, "val/n": 359, "val/loss": 0.2}
    summary = Summary({"step": 900, "metrics": metrics, "num_examples": {"val": 359}}, tmp_path)
    assert str(summary) == "steps=900 val/top1=0.9412 n=359/359"
    assert summary.metrics == metrics
    assert list(summary.stages) == [""]


def test_summary_of_stages_prints_the_accuracy_of_those_that_are_scored(tmp_path):
    stages = {
        "pretrain": {"step": 10, "metrics": {"val/loss": 0.5}},
        "finetune": {"step": 20, "metrics": {"val/top1": 0.5}},
        "scratch": {"step": 20, "metrics": {"val/top1": 0.25}},
    }
    summary = Summary({"metrics": {}, "stages": stages}, tmp_path)
    assert str(summary) == "stages=3 finetune/top1=0.5000 scratch/top1=0.2500"
    assert summary.stages == stages


def test_summary_of_a_sweep_prints_the_best_values_and_the_deviation_over_seeds(tmp_path):
    values = {
        "runs": [{}] * 5,
        "best": {"optimizer.lr": 0.003},
        "dev": {"top1": 0.85, "top1_std": 0.02, "n": 40},
        "metrics": {"val/top1": 0.9, "val/top1_std": 0.01, "val/n": 359},
        "num_examples": {"val": 359},
    }
    line = (
        "runs=5 optimizer.lr=0.003 dev/top1=0.8500 dev/top1_std=0.0200 "
        "val/top1=0.9000 std=0.0100 n=359/359"
    )
    assert str(Summary(values, tmp_path)) == line
