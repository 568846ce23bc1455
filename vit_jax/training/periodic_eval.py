"""Evaluation during training: scores on `val`, few-shot accuracy, and probes of frozen features.

Each has its own schedule, and all of them also run at the last step. They read their own data and
draw no random numbers of training, so training is the same with and without them.
"""

import dataclasses
import re
from collections.abc import Callable

from vit_jax.data.preprocess import EvalRecipe
from vit_jax.evaluation import frozen, online, scoring
from vit_jax.evaluation.evaluators import find_evaluator
from vit_jax.training.build import Programs
from vit_jax.training.stage import Stage

# Names of printed metrics.
PRINTED = r"val/(top1|loss|feature_std|teacher_entropy)|fewshot/.*shot|probe/(?!n$).*"


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
        """Returns the evaluations that follow a step: some of 'val', 'fewshot' and 'probe'."""
        config, total = self.stage.config, self.stage.total_steps
        names = []
        if self.stage.val_source is not None and _is_due(step, config.eval_every, total):
            names.append("val")
        if self.stage.fewshot_sources and _is_due(step, config.fewshot.every, total):
            names.append("fewshot")
        # Later probes are compared with that of the initial weights.
        has_probe = self.stage.probe_sets is not None
        if has_probe and (step == 0 or _is_due(step, config.probe.every, total)):
            names.append("probe")
        return names

    def measure(self, name: str, params) -> dict | None:
        """Returns metrics by their names in `metrics.jsonl`, or None if it is stopped."""
        measure = {"val": self._val, "fewshot": self._fewshot, "probe": self._probe}[name]
        try:
            return measure(params)
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
        features_of = self._features_of(params)
        draws, metrics = {"shots": section.shots, "seeds": section.seeds}, {}
        for title, (train, test) in stage.fewshot_sources.items():
            report = frozen.few_shot(features_of, train, test, len(train.classes), **draws)
            metrics[f"fewshot/{title}_n"] = report["n"]
            for shots in section.shots:
                accuracy = report[f"{shots}shot"]
                metrics[f"fewshot/{title}_{shots}shot"] = accuracy["mean"]
                metrics[f"fewshot/{title}_{shots}shot_std"] = accuracy["std"]
        return metrics

    def _probe(self, params) -> dict:
        section = self.stage.config.probe
        return online.score_features(self._features_of(params), *self.stage.probe_sets, section)

    def _features_of(self, params) -> Callable:
        extract = self.programs.extract
        return frozen.make_feature_function(extract, params, self.recipe, **self.options)

    def format(self, step: int, metrics: dict) -> str:
        """Returns the line of an evaluation: its scores, and numbers of examples.

        Scores on examples that are held out of training (`data.dev`) are called `dev/...`.
        """
        val = "val/" if self.stage.config.data.dev is None else "dev/"
        text = "  ".join(
            f"{name.replace('val/', val, 1)} {value:.4f}"
            for name, value in metrics.items()
            if re.fullmatch(PRINTED, name)
        )
        counts = [value for name, value in metrics.items() if name.endswith(("/n", "_n"))]
        sizes = _sizes(self.stage, metrics)
        n = " ".join(f"n={count}/{size}" for count, size in zip(counts, sizes, strict=True))
        bad = metrics.get("val/bad_images")
        skipped = f" bad_images={bad}" if bad else ""
        return f"step {step}/{self.stage.total_steps}  {text}  {n}{skipped}"


def _sizes(stage: Stage, metrics: dict) -> list[int]:
    """Returns the number of examples of each set that an evaluation has scored."""
    if "val/n" in metrics:
        return [len(stage.val_source)]
    if "probe/n" in metrics:
        return [len(stage.probe_sets[1])]
    return [len(test) for _, test in stage.fewshot_sources.values()]


def _is_due(step: int, every: int | None, total: int) -> bool:
    return step == total or bool(every and step and step % every == 0)
