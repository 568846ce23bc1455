"""Contents of `summary.json`: the results and the costs of a finished stage."""

from vit_jax import trees
from vit_jax.checkpoints import workdir
from vit_jax.models import flops
from vit_jax.training import metrics
from vit_jax.training.stage import Stage


def make_summary(stage: Stage, params, step: int, seconds: dict[str, float], best=None) -> dict:
    """Returns metrics, sizes, times and versions of a finished stage.

    Args:
      params: arrays, or their shapes.
      step: the last step.
      seconds: seconds by activity.
      best: the `BestWeights` of a run with `select="best"`.
    """
    values = metrics.last_values(metrics.read(stage.folder))
    step = values.pop("step", step)
    if best is not None:
        values |= {f"val/{name}": value for name, value in best.metrics.items()}
        values["best_step"] = best.step
    return {
        "step": step,
        "metrics": values,
        "num_examples": {
            "train": len(stage.train_source),
            "val": len(stage.val_source or ()),
        },
        "parameters": trees.count(params),
        "flops": flops.training_flops(stage.model, step * stage.config.batch_size),
        "seconds": {
            **seconds,
            "wall": sum(seconds.values()),
            "device": (seconds["train"] + seconds["eval"]) * stage.mesh.size,
        },
        "devices": [str(device) for device in stage.mesh.devices.flat],
        "versions": workdir.versions(),
        "git_revision": workdir.git_revision(),
    }


def is_finished(summary: dict | None, stage: Stage) -> bool:
    """Returns True if a `summary.json` is that of the complete stage, with its evaluations."""
    if summary is None or summary.get("step") != stage.total_steps:
        return False
    values = summary.get("metrics")
    if not isinstance(values, dict):
        return False
    wanted = {"val"} if stage.val_source is not None else set()
    wanted |= {"fewshot"} if stage.fewshot_sources else set()
    return wanted <= {name.partition("/")[0] for name in values}
