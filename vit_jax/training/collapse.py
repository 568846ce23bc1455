"""Signs that training without labels has collapsed, from the metrics of a step."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from vit_jax.config.schema import Config, Task

# Steps, and fraction of a run, before which a healthy run looks the same.
START_STEPS, START = 100, 0.1


class Sign(NamedTuple):
    """Row of `SIGNS`.

    Attributes:
      metrics: names in metrics.jsonl, or of `at_step_0`, of the values that `is_found` takes.
      is_found: the values -> True if they show a collapse.
      text: message, with places for the values.
      has_meaning: `config.task` -> True for the tasks whose metrics it is of.
    """

    metrics: tuple[str, ...]
    is_found: Callable[..., bool]
    text: str
    has_meaning: Callable[[Task], bool] = lambda task: True


SIGNS = (
    Sign(
        ("probe/knn", "probe/knn at step 0", "probe/n"),
        # Twice the standard error of the first accuracy.
        lambda accuracy, first, n: first - accuracy > 2 * math.sqrt(first * (1 - first) / n),
        "the frozen features are worse than those of step 0 (probe/knn {:.4f}, at step 0 {:.4f})",
    ),
    Sign(
        ("probe/feature_std",),
        lambda deviation: deviation < 0.05,
        "all images have nearly the same features (probe/feature_std {:.3f}, healthy near 1)",
    ),
    Sign(
        ("probe/rankme",),
        lambda rank: rank < 2,
        "the features have one dimension (probe/rankme {:.2f}, healthy far above 1)",
    ),
    Sign(
        ("train/teacher_entropy",),
        lambda entropy: entropy > 0.999,
        "the targets are uniform over the prototypes (train/teacher_entropy {:.4f}, healthy "
        "below 1)",
    ),
    Sign(
        ("train/mean_entropy", "train/teacher_entropy"),
        lambda mean, single: max(mean, single) < 0.05,
        "all images have the same prototype (train/mean_entropy {:.3f}, train/teacher_entropy "
        "{:.3f}, healthy above 0)",
    ),
    Sign(
        ("train/kl",),
        lambda divergence: divergence < 1e-3,
        "the student equals the teacher (train/kl {:.5f}, healthy above 0)",
    ),
    Sign(
        ("train/loss",),
        lambda loss: loss > 0.97,
        "the decoder predicts little more than the mean of a patch (train/loss {:.3f}, that of the "
        "mean is 1)",
        lambda task: task.name == "mae" and task.normalize_targets,
    ),
)


def at_step_0(values: Mapping[str, float]) -> dict[str, float]:
    """Returns metrics of step 0 by names such as `probe/knn at step 0`."""
    return {f"{name} at step 0": value for name, value in values.items()}


def find_signs(
    config: Config, values: Mapping[str, float], step: int, total_steps: int
) -> Iterator[Sign]:
    """Yields the signs of a collapse in metrics of a step, which may have those of `at_step_0`."""
    for sign in SIGNS if step >= max(START_STEPS, START * total_steps) else ():
        found = [values.get(name) for name in sign.metrics]
        if None not in found and sign.has_meaning(config.task) and sign.is_found(*found):
            yield sign


class CollapseWarnings:
    """Warnings of a run, each of which is given once.

    It is called with the metrics of all steps in order, also with those before a restart.
    """

    def __init__(self, config: Config, total_steps: int):
        self._config, self._total_steps = config, total_steps
        self._given: set[Sign] = set()
        self._first: dict[str, float] = {}

    def __call__(self, step: int, values: Mapping[str, float]) -> Iterator[str]:
        """Yields new warnings about the metrics of a step."""
        if step == 0:
            self._first |= at_step_0(values)
        values = {**values, **self._first}
        for sign in find_signs(self._config, values, step, self._total_steps):
            if sign not in self._given:
                self._given.add(sign)
                yield (
                    f"step {step}: warning: {describe(sign, values)}; see Features in report.html "
                    "and docs/selfsupervised.md"
                )


def describe(sign: Sign, values: Mapping[str, float]) -> str:
    """Returns the message of a sign with the values that show it."""
    return sign.text.format(*(values[name] for name in sign.metrics))
