"""Tests of `summary`: a summary counts only with the records and checkpoint of the last step."""

import json
import types

import pytest

from tests.support.json_steps import write_step
from vit_jax import config as config_lib
from vit_jax.errors import CheckpointError
from vit_jax.training.summary import read_finished

(CONFIG,) = config_lib.resolve(config_lib.base_config(), {"steps": 8}).values()
METRICS = {"train/loss": 0.5, "val/top1": 0.75, "val/n": 2}


@pytest.fixture
def stage(tmp_path):
    """A finished stage without arrays."""
    step = write_step(tmp_path / "checkpoints", 8, config=config_lib.to_dict({"": CONFIG}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 8} | METRICS) + "\n")
    write_summary(tmp_path)
    return types.SimpleNamespace(
        folder=tmp_path,
        config=CONFIG,
        total_steps=8,
        train_source=range(3),
        val_source=range(2),
        fewshot_sources={},
        probe_sets=None,
        check_same_data=lambda meta, data: None,
        last_step=step,
    )


def write_summary(folder, **changes) -> None:
    summary = {"step": 8, "metrics": METRICS, "num_examples": {"train": 3, "val": 2}} | changes
    (folder / "summary.json").write_text(json.dumps(summary))


def test_read_finished_returns_the_summary_of_a_complete_stage(stage):
    assert read_finished(stage)["metrics"] == METRICS


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 4},
        {"metrics": METRICS | {"val/top1": 1.0}},
        {"metrics": {"train/loss": 0.5}},
        {"num_examples": {"train": 3, "val": 4}},
        {"metrics": [1]},
    ],
)
def test_read_finished_ignores_a_summary_that_other_files_contradict(stage, changes):
    write_summary(stage.folder, **changes)
    assert read_finished(stage) is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_read_finished_ignores_a_damaged_summary(stage, text):
    (stage.folder / "summary.json").write_text(text)
    assert read_finished(stage) is None


def test_read_finished_needs_the_checkpoint_of_the_last_step(stage):
    earlier = stage.last_step.with_name("4")
    stage.last_step.rename(earlier)
    assert read_finished(stage) is None
    earlier.rename(stage.folder / "elsewhere")
    with pytest.raises(CheckpointError, match=r"has the summary\.json of a finished run and no"):
        read_finished(stage)


def test_read_finished_ignores_a_checkpoint_of_another_run(stage):
    other = config_lib.to_dict({"": CONFIG}) | {"seed": 1}
    write_step(stage.folder / "checkpoints", 8, config=other)
    assert read_finished(stage) is None
