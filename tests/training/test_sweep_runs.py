"""What runs a `config.sweep` stands for, which of them is best, and what they tell together."""

import dataclasses
import json

import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.config.schema import Config, Data, Init, Sweep, Task
from vit_jax.errors import ConfigError
from vit_jax.training import sweep_runs

GRID = (("optimizer.lr", (0.003, 0.01)), ("steps", (50, 100)))


def config_of(grid=GRID, **fields) -> Config:
    fields = {"epochs": 2.0, "sweep": Sweep(grid, dev=0.2, seeds=3), "seed": 5} | fields
    return Config(**fields)


def scored(top1: float, n: int = 10) -> dict:
    return {"metrics": {"val/top1": top1, "val/loss": 1 - top1, "val/n": n, "train/loss": 7.0}}


def test_a_grid_tries_every_combination_on_a_part_of_the_training_examples():
    grid = sweep_runs.grid(config_of())
    names = ["lr=0.003,steps=50", "lr=0.003,steps=100", "lr=0.01,steps=50", "lr=0.01,steps=100"]
    assert list(grid) == names
    trial = grid["lr=0.01,steps=50"]
    assert trial.values == {"optimizer.lr": 0.01, "steps": 50}
    assert (trial.config.optimizer.lr, trial.config.data.dev) == (0.01, 0.2)
    assert (trial.config.steps, trial.config.epochs) == (50, None), "one length replaces another"
    assert not trial.config.sweep.has_several_runs


def test_the_last_runs_differ_in_their_seeds_and_train_on_everything():
    runs = sweep_runs.finals(config_of(), {"optimizer.lr": 0.01})
    assert list(runs) == ["seed_5", "seed_6", "seed_7"]
    assert [run.seed for run in runs.values()] == [5, 6, 7]
    assert {(run.optimizer.lr, run.data.dev) for run in runs.values()} == {(0.01, None)}


def test_grid_with_seeds_selects_the_combination_with_the_best_mean():
    grid = sweep_runs.grid(config_of((("optimizer.lr", (0.003, 0.01)), ("seed", (0, 7)))))
    assert list(grid) == ["lr=0.003,seed=0", "lr=0.003,seed=7", "lr=0.01,seed=0", "lr=0.01,seed=7"]
    assert [run.config.seed for run in grid.values()] == [0, 7, 0, 7]
    found = dict(zip(grid, map(scored, (0.5, 0.7, 0.1, 0.9)), strict=True))
    means = sweep_runs.mean_over_seeds(grid, found)
    assert list(means) == ["lr=0.003", "lr=0.01"]
    assert sweep_runs.best(means) == "lr=0.003", "0.6 is more than 0.5, though 0.9 is the best run"
    rows = sweep_runs.mean_rows(grid, means, "lr=0.003", {"seed_0": scored(0.5)})
    assert [row["run"] for row in rows] == ["lr=0.003", "lr=0.01"]
    assert [row["top1"] for row in rows] == ["0.6000 +- 0.1414", "0.5000 +- 0.5657"]
    assert [row[""] for row in rows] == ["best", ""]
    assert not sweep_runs.mean_rows(sweep_runs.grid(config_of()), means, "lr=0.003", {})
    diverged = found | {"lr=0.003,seed=7": None}
    assert sweep_runs.best(sweep_runs.mean_over_seeds(grid, diverged)) == "lr=0.01"
    assert sweep_runs.finals(config_of(), {"optimizer.lr": 0.003})["seed_5"].seed == 5


def test_sections_and_tuples_can_be_swept():
    config = config_of((("optimizer.stair_at", ((0.05, 1.0), (0.3, 1.0))),))
    grid = sweep_runs.grid(config)
    assert list(grid) == ["stair_at=(0.05,1.0)", "stair_at=(0.3,1.0)"]
    assert grid["stair_at=(0.3,1.0)"].config.optimizer.stair_at == (0.3, 1.0)
    written = json.loads(json.dumps(config_lib.to_dict({"": config})))
    assert sweep_runs.grid(config_lib.from_dict(written)[""]) == grid, (
        "a workdir has lists of lists"
    )


def test_grid_can_vary_options_of_the_optimizer():
    grid = sweep_runs.grid(config_of((("optimizer.kwargs.b2", (0.98, 0.999)),)))
    assert list(grid) == ["b2=0.98", "b2=0.999"]
    assert grid["b2=0.98"].config.optimizer.kwargs == {"b2": 0.98}
    assert grid["b2=0.999"].config.optimizer.kwargs == {}
    with pytest.raises(ConfigError, match=r"sweep\.grid.*kwargs has no option 'momentum'"):
        sweep_runs.grid(config_of((("optimizer.kwargs.momentum", (0.9,)),)))


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ((("optimizer.rate", (0.1,)),), r"sweep\.grid.*no field 'rate'"),
        ((("optimizer.lr", (0.1, -1.0)),), r"sweep\.grid.*optimizer\.lr is -1\.0"),
        ((("optimizer.lr", ("fast",)),), r"sweep\.grid.*must be a number"),
        ((("optimizer.lr", ()),), r"has no values for 'optimizer\.lr'"),
        ((("mesh.data", (1, 2)),), r"'mesh\.data'; set it in the config"),
        ((("data.dev", (0.1, 0.2)),), r"'data\.dev'; set it in the config"),
        ((("data.per_class", (1, 2)),), r"'data\.per_class'; set it in the config"),
        ((("steps", (5,)), ("steps", (6,))), "'steps' more than once"),
        ((("steps", (5, 5)),), "has steps=5 twice"),
        ((("optimizer", (1,)),), "expected a section of fields"),
        ((("optimizer", ({"lr": 1.0},)),), "which is a section; name a field of it"),
        ((("steps", (5,)), ("epochs", (1.0,))), "expected one"),
        ((("init.path", ("x" * 300,)),), "whose name is too long"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_by_name(grid, words):
    with pytest.raises(ConfigError, match=words):
        sweep_runs.grid(config_of(grid))


def test_no_run_learns_from_a_sweep():
    taught = Config(steps=5, task=Task(teacher="tune"))
    with pytest.raises(ConfigError, match=r"stages\.then\.task\.teacher is 'tune', which is a"):
        sweep_runs.check({"tune": config_of(), "then": taught})


def test_no_run_starts_from_a_sweep():
    after = Config(steps=5, init=Init(stage="tune", new_head=True))
    with pytest.raises(ConfigError, match=r"stages\.then\.init\.stage is 'tune', which is a"):
        sweep_runs.check({"tune": config_of(), "then": after})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"val_split": ""}, "data.val_split is empty; a sweep needs it"),
        ({"dev": 0.5}, r"data\.dev must be None in a sweep"),
    ],
)
def test_a_sweep_has_something_to_be_judged_by(data, words):
    wrong = dataclasses.replace(config_of(), data=Data(**data))
    with pytest.raises(ConfigError, match=words):
        config_lib.check(config_lib.to_config_dict({"": wrong}))


def test_a_sweep_does_not_choose_weights_by_what_it_reports():
    wrong = dataclasses.replace(config_of(), select="best", eval_every=5)
    with pytest.raises(ConfigError, match="would select on the split that they are scored on"):
        config_lib.check(config_lib.to_config_dict({"": wrong}))


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_no_score(loss):
    assert not sweep_runs.is_finite({"metrics": {"val/top1": 0.5, "val/loss": loss}})
    assert sweep_runs.is_finite(scored(0.5))


def test_the_runs_of_a_sweep_are_counted():
    assert sweep_runs.count(config_of()) == 4 + 3
    assert sweep_runs.count(config_of(grid=())) == 3
    assert sweep_runs.count(Config(steps=1)) == 1


def test_the_best_is_the_first_of_the_highest_accuracy_and_never_one_that_diverged():
    found = {"a": None, "b": scored(0.5), "c": scored(0.75), "d": scored(0.75)}
    assert sweep_runs.best(found) == "c"
    found["d"]["metrics"]["val/loss"] -= 0.1
    assert sweep_runs.best(found) == "d", "of equal accuracies, the smaller loss"
    losses = {name: {"metrics": {"val/loss": loss}} for name, loss in (("a", 2.0), ("b", 1.0))}
    assert sweep_runs.best(losses) == "b", "where there is no accuracy, the smaller loss"


def test_seeds_tell_their_mean_and_the_deviation_of_a_sample():
    values = [0.9, 0.93, 0.96]
    found = sweep_runs.combined([scored(value) for value in values])
    assert found["val/n"] == 10
    np.testing.assert_allclose(found["val/top1"], np.mean(values))
    np.testing.assert_allclose(found["val/top1_std"], np.std(values, ddof=1))
    assert "train/loss" not in found
    assert set(sweep_runs.combined([scored(0.5)])) == {"val/top1", "val/loss", "val/n"}


def test_seeds_of_final_runs_have_a_row_with_mean_and_deviation():
    finals = {f"seed_{seed}": scored(score) for seed, score in ((3, 0.5), (4, 0.7), (5, 0.9))}
    [row] = sweep_runs.mean_rows({}, {}, "", finals)
    assert (row["run"], row["scored on"]) == ("seed_3 to seed_5", "val, mean")
    assert row["top1"] == "0.7000 +- 0.2000"


def test_a_grid_of_more_runs_than_can_be_trained_is_refused():
    grid = tuple((f"optimizer.{name}", tuple(range(1, 200))) for name in ("lr", "clip_norm"))
    with pytest.raises(ConfigError, match=r"sweep\.grid has 39,604 runs; expected at most 20,000"):
        sweep_runs.grid(config_of((*grid,)))
