"""The function `on_log` of a training run: which metrics it gets, and what it may ask for."""

import json

import pytest

import vit_jax
from tests.support.tiny_flags import tiny_flags
from vit_jax import config as config_lib
from vit_jax.checkpoints import layout
from vit_jax.cli import parser

STEPS, EVERY, REQUESTED = 16, 8, 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Workdir of a run, and the calls of `on_log`, which asks for a checkpoint once."""
    folder, calls = tmp_path_factory.mktemp("run"), []

    def on_log(*call) -> bool:
        saved = layout.list_steps(folder / layout.FOLDER)
        calls.append((*call, saved))
        return call[1] == REQUESTED and "train/loss" in call[2]

    fields = ("log_every=1", "eval_every=6", "keep_last=99")
    flags = tiny_flags(folder, *fields, f"steps={STEPS}", f"checkpoint_every={EVERY}")
    _, file, overrides = parser.split_config_flags(flags)
    vit_jax.train(config_lib.load(file), folder, overrides=overrides, on_log=on_log)
    return folder, calls


def test_on_log_gets_the_records_of_training_and_of_evaluations(run):
    folder, calls = run
    found: dict[int, dict] = {}
    for where, step, values, _ in calls:
        assert where == folder
        found[step] = found.get(step, {"step": step}) | values
    written = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert list(found.values()) == written
    assert {"train/loss", "val/top1"} <= set(found[6])


def test_on_log_saves_a_checkpoint_when_it_returns_true(run):
    folder, calls = run
    steps = layout.list_steps(folder / layout.FOLDER)
    [requested] = set(steps) - {EVERY, STEPS}
    # A step is recorded when up to two later ones are in flight.
    assert REQUESTED <= requested <= REQUESTED + 2
    assert [saved for _, step, _, saved in calls if step == REQUESTED] == [[]]
