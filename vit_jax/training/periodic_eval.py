"""Evaluation during training: scores on `val`, and few-shot accuracy on other data.

Each has its own schedule, and both also run at the last step. They read their own data and draw
no random numbers of training, so training is the same with and without them.
"""

import dataclasses
from collections.abc import Callable

from vit_jax.data.preprocess import EvalRecipe
from vit_jax.evaluation import frozen, scoring
from vit_jax.evaluation.evaluators import find_evaluator
from vit_jax.training.build import Programs
from vit_jax.training.stage import Stage


class Evaluation:
    """The evaluations of a stage."""

    def __init__(self, stage: Stage, programs: Programs, is_stopped: Callable[[], bool]):
        """`is_stopped` is called between batches."""
        self.stage, self.programs = stage, programs
        config = stage.config
        self.recipe = EvalRecipe.from_data(config.data, stage.model.image_size)
        self.options = {
            "batch_size": config.batch_size,
            "sharding": programs.batch_sharding,
            "data": config.data,
            "is_stopped": is_stopped,
        }

    def due(self, step: int) -> list[str]:
        """Returns the evaluations that follow a step: 'val', 'fewshot', both or none."""
        config, total = self.stage.config, self.stage.total_steps
        names = []
        if self.stage.val_source is not None and _is_due(step, config.eval_every, total):
            names.append("val")
        if self.stage.fewshot_sources and _is_due(step, config.fewshot.every, total):
            names.append("fewshot")
        return names

    def measure(self, name: str, params) -> dict | None:
        """Returns metrics by their names in `metrics.jsonl`, or None if it is stopped."""
        try:
            return self._val(params) if name == "val" else self._fewshot(params)
        except scoring.Stopped:
            return None

    def _val(self, params) -> dict | None:
        evaluate, config = find_evaluator(self.stage.config.task), self.stage.config
        recipe = dataclasses.replace(self.recipe, crops=config.data.eval_crops)
        score, source = self.programs.score, self.stage.val_source
        scores = evaluate(score, params, source, recipe, **self.options)
        return scores and {f"val/{name}": value for name, value in scores.means().items()}

    def _fewshot(self, params) -> dict:
        stage, section = self.stage, self.stage.config.fewshot
        extract = self.programs.extract
        features_of = frozen.make_feature_function(extract, params, self.recipe, **self.options)
        draws, metrics = {"shots": section.shots, "seeds": section.seeds}, {}
        for title, (train, test) in stage.fewshot_sources.items():
            report = frozen.few_shot(features_of, train, test, len(train.classes), **draws)
            metrics[f"fewshot/{title}_n"] = report["n"]
            for shots in section.shots:
                accuracy = report[f"{shots}shot"]
                metrics[f"fewshot/{title}_{shots}shot"] = accuracy["mean"]
                metrics[f"fewshot/{title}_{shots}shot_std"] = accuracy["std"]
        return metrics

    def format(self, step: int, metrics: dict) -> str:
        """Returns the line of an evaluation: accuracies, loss, and numbers of examples.

        Scores on examples that are held out of training (`data.dev`) are called `dev/...`.
        """
        scores = {
            name: value
            for name, value in metrics.items()
            if name in ("val/top1", "val/loss") or name.endswith("shot")
        }
        val = "val/" if self.stage.config.data.dev is None else "dev/"
        text = "  ".join(
            f"{name.replace('val/', val, 1)} {value:.4f}" for name, value in scores.items()
        )
        counts = [value for name, value in metrics.items() if name.endswith(("/n", "_n"))]
        sizes = (
            [len(self.stage.val_source)]
            if "val/n" in metrics
            else [len(test) for _, test in self.stage.fewshot_sources.values()]
        )
        n = " ".join(f"n={count}/{size}" for count, size in zip(counts, sizes, strict=True))
        bad = metrics.get("val/bad_images")
        skipped = f" bad_images={bad}" if bad else ""
        return f"step {step}/{self.stage.total_steps}  {text}  {n}{skipped}"


def _is_due(step: int, every: int | None, total: int) -> bool:
    return step == total or bool(every and step and step % every == 0)
