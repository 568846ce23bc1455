"""Evaluators by name: the scores of a split for the task of a model."""

from collections.abc import Callable
from typing import Protocol

from vit_jax.config import registry
from vit_jax.config.schema import Task
from vit_jax.evaluation import accuracy, masked_accuracy, self_distillation
from vit_jax.tasks.registry import find_task


class SplitScores(Protocol):
    """Scores of the examples of a split, in its order."""

    @property
    def n(self) -> int:
        """Number of examples."""

    def means(self) -> dict[str, float]:
        """Returns `n`, and means such as `loss` and `top1`, as in metrics.jsonl."""


class Evaluator(Protocol):
    """Scores every example of a source exactly once; returns None if it is stopped.

    Args:
      score: (params, batch) -> arrays of the examples, as `scoring.make_score` returns it.
      source: a `data.sources.Source`.
      recipe: the `EvalRecipe` of the images.
      **options: those of `scoring.score_all`, which computes the arrays.
    """

    def __call__(
        self, score: Callable, params, source, recipe: Callable, **options
    ) -> SplitScores | None: ...


EVALUATORS: dict[str, Evaluator] = {
    "classification": accuracy.score_examples,
    "masked_patches": masked_accuracy.score_examples,
    "self_distillation": self_distillation.score_examples,
}


def find_evaluator(section: Task) -> Evaluator:
    """Returns the evaluator of a `config.task` section."""
    name, place = find_task(section).evaluator, "evaluator of config.task"
    registry.import_objects([(place, name)])  # Trusted as the task is.
    return registry.find(EVALUATORS, name, place)
