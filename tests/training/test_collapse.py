"""Warnings of a collapse: which metrics give one, when, and how often."""

import pytest

from vit_jax.config.schema import Config, Task
from vit_jax.training.collapse import SIGNS, CollapseWarnings, find_signs
from vit_jax.training.metrics import TrainingLog

DINO_LIKE = Config(steps=2000)
MAE = Config(steps=2000, task=Task(name="mae"))
HEALTHY = {
    "probe/knn": 0.1,
    "probe/feature_std": 0.6,
    "probe/rankme": 23.0,
    "train/loss": 4.0,
    "train/teacher_entropy": 0.6,
    "train/mean_entropy": 0.9,
    "train/kl": 0.4,
}
COLLAPSED = [
    ({"probe/feature_std": 0.004}, "nearly the same features (probe/feature_std 0.004"),
    ({"probe/rankme": 1.01}, "have one dimension (probe/rankme 1.01, healthy far above 1)"),
    ({"train/teacher_entropy": 0.99995}, "uniform over the prototypes (train/teacher_entropy 1.0"),
    (
        {"train/teacher_entropy": 0.001, "train/mean_entropy": 0.002},
        "the same prototype (train/mean_entropy 0.002, train/teacher_entropy 0.001",
    ),
    ({"train/kl": 1e-5}, "the student equals the teacher (train/kl 0.00001"),
    (
        {"probe/knn": 0.44, "probe/knn at step 0": 0.5, "probe/n": 400},
        "worse than those of step 0 (probe/knn 0.4400, at step 0 0.5000)",
    ),
]


def warnings_of(values, step=500, config=DINO_LIKE) -> list[str]:
    return list(CollapseWarnings(config, 2000)(step, values))


def test_healthy_metrics_give_no_warning():
    assert warnings_of(HEALTHY) == []
    assert warnings_of({}) == []
    assert warnings_of({"train/loss": float("nan"), "train/kl": float("nan")}, config=MAE) == []


@pytest.mark.parametrize(("values", "text"), COLLAPSED)
def test_each_sign_gives_one_line_that_names_the_figure(values, text):
    (line,) = warnings_of(HEALTHY | values)
    assert line.startswith("step 500: warning: ")
    assert text in line
    assert line.endswith("see Features in report.html and docs/selfsupervised.md")
    assert "\n" not in line


def test_a_fall_of_nearest_neighbours_is_compared_with_step_0_and_its_error():
    warn = CollapseWarnings(DINO_LIKE, 2000)
    assert list(warn(0, {"probe/knn": 0.5, "probe/n": 400})) == []
    assert list(warn(400, {"probe/knn": 0.451, "probe/n": 400})) == [], "two standard errors: 0.05"
    (line,) = warn(500, {"probe/knn": 0.449, "probe/n": 400})
    assert "(probe/knn 0.4490, at step 0 0.5000); see Features in report.html" in line
    assert list(warn(600, {"probe/knn": 0.1, "probe/n": 400})) == []
    resumed = CollapseWarnings(DINO_LIKE, 2000)
    assert list(resumed(600, {"probe/knn": 0.1, "probe/n": 400})) == [], "no probe at step 0"


def test_low_entropy_of_single_targets_is_healthy_if_images_differ():
    assert warnings_of(HEALTHY | {"train/teacher_entropy": 0.01}) == []


def test_a_warning_is_given_once_and_not_in_the_first_tenth():
    warn, values = CollapseWarnings(DINO_LIKE, 2000), HEALTHY | {"train/kl": 0.0}
    assert list(warn(199, values)) == []
    assert len(list(warn(200, values))) == 1
    assert list(warn(201, values)) == []
    (other,) = warn(201, values | {"probe/rankme": 1.0})
    assert "rankme" in other


def test_loss_of_the_mean_is_a_sign_for_normalised_targets_of_mae_only():
    values = {"train/loss": 1.0}
    (line,) = warnings_of(values, config=MAE)
    assert "little more than the mean of a patch (train/loss 1.000" in line
    assert warnings_of({"train/loss": 0.6}, config=MAE) == []
    plain = Config(steps=1, task=Task(name="mae", normalize_targets=False))
    assert warnings_of(values, config=plain) == []
    assert warnings_of(values) == []


def test_every_sign_has_a_test():
    tested = [values for values, _ in COLLAPSED] + [{"train/loss": 1.0}]
    found = {
        sign
        for values in tested
        for sign in find_signs(MAE, {"train/loss": 0.5} | values, 500, 2000)
    }
    assert found == set(SIGNS)


def test_a_short_run_is_not_warned_in_its_first_hundred_steps():
    warn = CollapseWarnings(DINO_LIKE, 120)
    assert list(warn(99, {"train/kl": 0.0})) == []
    assert len(list(warn(100, {"train/kl": 0.0}))) == 1


def test_a_resumed_run_repeats_no_warning_and_compares_with_step_0(tmp_path, capsys):
    def open_at(step) -> TrainingLog:
        log = TrainingLog(tmp_path, "", 2000, 4, CollapseWarnings(DINO_LIKE, 2000))
        log.open(step)
        return log

    log = open_at(0)
    log.write(0, {"probe/knn": 0.5, "probe/n": 400})
    log.write(300, {"train/kl": 0.0})
    log.close()
    assert capsys.readouterr().out.count("the student equals the teacher") == 1
    log = open_at(300)
    log.write(400, {"train/kl": 0.0, "probe/knn": 0.1, "probe/n": 400})
    log.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert "worse than those of step 0" in line
