"""What a run is measured by as it trains: on `val`, and few-shot on other data.

Each has a schedule of its own, and both come at the end. They read data of their own and draw no
number of the training's, so that training goes on as it would have without them.
"""

import dataclasses
from collections.abc import Callable

from vit_jax.evaluation import accuracy, frozen, masked_accuracy
from vit_jax.training.build import Programs
from vit_jax.training.stage import Stage
from vit_jax.weights import load

EVALUATORS = {
    "classification": accuracy.score_examples,
    "masked_patches": masked_accuracy.evaluate,
}


class Evaluation:
    """The evaluators of a stage."""

    def __init__(self, stage: Stage, programs: Programs, is_stopped: Callable[[], bool]):
        """`is_stopped` is asked between batches."""
        self.stage, self.programs = stage, programs
        config = stage.config
        self.recipe = load.eval_recipe(config, stage.model)
        self.options = {
            "batch_size": config.batch_size,
            "sharding": programs.batch_sharding,
            "workers": config.data.workers,
            "is_stopped": is_stopped,
        }

    def due(self, step: int) -> list[str]:
        """What is measured after a step: 'val', 'fewshot', both or nothing."""
        config, total = self.stage.config, self.stage.total_steps
        names = []
        if self.stage.val_source is not None and _is_due(step, config.eval_every, total):
            names.append("val")
        if self.stage.fewshot_sources and _is_due(step, config.fewshot.every, total):
            names.append("fewshot")
        return names

    def measure(self, name: str, params) -> dict | None:
        """Metrics by their names in `metrics.jsonl`, or None where it was stopped."""
        try:
            return self._val(params) if name == "val" else self._fewshot(params)
        except frozen.Stopped:
            return None

    def _val(self, params) -> dict | None:
        score, task = self.programs.score, self.stage.config.task.name
        recipe = dataclasses.replace(self.recipe, crops=self.stage.config.data.eval_crops)
        scores = EVALUATORS[task](score, params, self.stage.val_source, recipe, **self.options)
        return scores and {f"val/{name}": value for name, value in scores.means().items()}

    def _fewshot(self, params) -> dict:
        stage, rule = self.stage, self.stage.config.fewshot
        see = frozen.make_seer(self.programs.extract, params, self.recipe, **self.options)
        draws, found = {"shots": rule.shots, "seeds": rule.seeds}, {}
        for title, (train, test) in stage.fewshot_sources.items():
            report = frozen.few_shot(see, train, test, len(train.classes), **draws)
            found[f"fewshot/{title}_n"] = report["n"]
            for shots in rule.shots:
                told = report[f"{shots}shot"]
                found[f"fewshot/{title}_{shots}shot"] = told["mean"]
                found[f"fewshot/{title}_{shots}shot_std"] = told["std"]
        return found

    def format(self, step: int, metrics: dict) -> str:
        """Returns the line of an evaluation: accuracies, loss on `val`, and numbers of examples."""
        scores = {
            name: value
            for name, value in metrics.items()
            if name in ("val/top1", "val/loss") or name.endswith("shot")
        }
        text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        counts = [value for name, value in metrics.items() if name.endswith(("/n", "_n"))]
        sizes = (
            [len(self.stage.val_source)]
            if "val/n" in metrics
            else [len(test) for _, test in self.stage.fewshot_sources.values()]
        )
        n = " ".join(f"n={count}/{size}" for count, size in zip(counts, sizes, strict=True))
        return f"step {step}/{self.stage.total_steps}  {text}  {n}"


def _is_due(step: int, every: int | None, total: int) -> bool:
    return step == total or bool(every and step and step % every == 0)
