"""Probes of frozen features during training without labels."""

import json
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from tests.support.runs import final_state, records
from vit_jax import main
from vit_jax.errors import Interrupted
from vit_jax.evaluation import scoring
from vit_jax.training import periodic_eval

pytestmark = pytest.mark.slow  # Training runs.

TINY = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=7, num_layers=2, hidden_size=32, mlp_size=64)
    config.model.num_heads = 2
    config.data.update(source="digits", image_size=28, val_split="", augment="resize")
    config.task.update(name=arg or "mae")
    if config.task.name == "mae":
        config.task.update(decoder_layers=1, decoder_size=32, decoder_heads=2)
    config.optimizer.update(lr=3e-3, ema=0.9)
    config.update(batch_size=64, steps=12, log_every=4, checkpoint_every=6)
    return config
"""
PROBE = ("probe.every=6", "probe.count=300")
METRICS = {f"probe/{name}" for name in ("knn", "linear", "rankme", "feature_std", "n")}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(TINY)
    return path


def train(folder, config, *fields: str) -> dict:
    flags = [f"--config.{field}" for field in fields]
    assert main.run([f"--config={config}", f"--workdir={folder}", *flags]) == 0
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("plain")
    train(folder, config)
    return folder


@pytest.fixture(scope="module")
def probed(config, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("probed")
    train(folder, config, *PROBE)
    return folder


def probes(folder) -> dict[int, dict]:
    """The metrics of the probes of a run by step."""
    lines = {line["step"]: line for line in records(folder)}
    lines = {
        step: {name: value for name, value in line.items() if name.startswith("probe/")}
        for step, line in lines.items()
    }
    return {step: line for step, line in lines.items() if line}


@pytest.mark.parametrize("task", ["mae", "masked_patches", "classification"])
def test_probe_measures_features_of_every_task_from_the_first_step_on(
    config, probed, tmp_path, task, capsys
):
    folder = probed if task == "mae" else tmp_path
    if task != "mae":
        train(folder, f"{config}:{task}", *PROBE)
        output = capsys.readouterr().out
        assert "probe: 300 images, 300 scored; 10 classes" in output
        assert "step 6/12  probe/knn " in output
        assert "n=300/300" in output
    found = probes(folder)
    assert list(found) == [0, 6, 12]
    for line in found.values():
        assert set(line) == METRICS
        assert line["probe/n"] == 300
        assert line["probe/linear"] > 0.3, "random features are three times as good as chance"
        assert 1 < line["probe/rankme"] < 32
    summary = json.loads((folder / "summary.json").read_text())["metrics"]
    assert {name: summary[name] for name in METRICS} == found[12]


def test_probe_uses_the_averaged_weights(config, probed, tmp_path):
    train(tmp_path, config, *PROBE, "optimizer.ema=None")
    ours, last = probes(probed), probes(tmp_path)
    assert ours[0] == last[0]
    assert ours[12] != last[12]


def test_probe_changes_no_bit_of_training(plain, probed):
    assert final_state(probed) == final_state(plain)
    losses = [
        {line["step"]: line["train/loss"] for line in records(folder) if "train/loss" in line}
        for folder in (plain, probed)
    ]
    assert losses[0] == losses[1]


def test_probe_may_be_added_to_a_finished_run(config, plain, probed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(plain, folder)
    train(folder, config, *PROBE)
    assert list(probes(folder)) == [12]
    assert final_state(folder) == final_state(plain)
    for name, value in probes(probed)[12].items():
        np.testing.assert_allclose(probes(folder)[12][name], value, rtol=1e-5, err_msg=name)


def test_signal_during_a_probe_leaves_it_to_the_resumed_run(config, probed, tmp_path, monkeypatch):
    measure, count = scoring.scored_batches, iter(range(100))

    def stop_in_the_third(*args, **options):
        if next(count) == 2:  # Two sets were read at step 0: this is the first of step 6.
            os.kill(os.getpid(), signal.SIGTERM)
        yield from measure(*args, **options)

    monkeypatch.setattr("vit_jax.evaluation.frozen.scored_batches", stop_in_the_third)
    with pytest.raises(Interrupted, match="step 6 is saved"):
        train(tmp_path, config, *PROBE)
    assert list(probes(tmp_path)) == [0]
    train(tmp_path, config, *PROBE)
    assert records(tmp_path) == records(probed)
    assert final_state(tmp_path) == final_state(probed)


def test_probe_on_a_folder_of_its_own(config, photo_folder, tmp_path):
    own = ("probe.every=12", "probe.source=folder", f"probe.dir={photo_folder}", "probe.k=5")
    train(tmp_path, config, *own, "probe.linear=False")
    found = probes(tmp_path)[12]
    assert found["probe/n"] == 14
    assert set(found) == METRICS - {"probe/linear"}


def test_fewshot_measures_features_without_labels(config, tmp_path):
    summary = train(tmp_path, config, "fewshot.every=12", "fewshot.shots=(5,)", "fewshot.seeds=2")
    assert summary["metrics"]["fewshot/digits_5shot"] > 0.2


def test_names_of_printed_metrics_leave_out_counts():
    import re

    names = ("val/top1", "val/loss", "fewshot/a_5shot", "probe/knn", "probe/rankme")
    assert all(re.fullmatch(periodic_eval.PRINTED, name) for name in names)
    for name in ("val/n", "probe/n", "fewshot/a_n", "fewshot/a_5shot_std", "val/top5"):
        assert not re.fullmatch(periodic_eval.PRINTED, name)
