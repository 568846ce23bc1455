"""Contents of `summary.json`: the results and the costs of a finished stage."""

from vit_jax import config as config_lib
from vit_jax.checkpoints import layout, workdir
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import flops, trees
from vit_jax.training import metrics
from vit_jax.training.attempts import Clock
from vit_jax.training.stage import Stage


def make_summary(stage: Stage, params, step: int, clock: Clock, best=None) -> dict:
    """Returns metrics, sizes, times and versions of a finished stage.

    Args:
      params: arrays, or their shapes.
      step: the last step.
      clock: seconds by activity, and the attempts of the run.
      best: the `BestWeights` of a run with `select="best"`.
    """
    seconds = clock.seconds
    values = metrics.last_values(metrics.read(stage.folder))
    step = values.pop("step", step)
    if best is not None and best.step:
        values |= _best_values(best.step, best.metrics)
    return {
        "step": step,
        "metrics": values,
        "num_examples": _num_examples(stage),
        "parameters": trees.count(params),
        "flops": flops.training_flops(stage.model, step * stage.config.batch_size),
        "seconds": {
            **seconds,
            "wall": sum(seconds.values()),
            "device": (seconds["train"] + seconds["eval"]) * stage.mesh.size,
        },
        "goodput": clock.goodput(),
        "devices": [str(device) for device in stage.mesh.devices.flat],
        "versions": workdir.versions(),
        "git_revision": workdir.git_revision(),
    }


def _best_values(step: int, metrics: dict) -> dict:
    return {f"val/{name}": value for name, value in metrics.items()} | {"best_step": step}


def _num_examples(stage: Stage) -> dict[str, int]:
    return {"train": len(stage.train_source), "val": len(stage.val_source or ())}


def read_finished(stage: Stage) -> dict | None:
    """Returns the `summary.json` of a complete stage, or None if steps or evaluations are left.

    The file alone does not prove that the stage is complete: the checkpoint of the last step must
    exist, and the scores must be those of `metrics.jsonl` and of the best weights. Otherwise
    training resumes and writes the file again.

    Raises:
      CheckpointError: the stage has a complete summary and no checkpoint.
      DataError: the checkpoint belongs to other data.
    """
    try:
        summary = workdir.read_json(stage.folder / workdir.SUMMARY)
    except ConfigError:  # Damaged.
        return None
    if not _is_complete(summary, stage):
        return None
    if not layout.list_steps(stage.folder / layout.FOLDER):
        raise CheckpointError(
            f"{stage.folder} has the {workdir.SUMMARY} of a finished run and no checkpoint. "
            f"Restore its folder {layout.FOLDER}, or remove {workdir.SUMMARY} to train again."
        )
    last = stage.folder / layout.FOLDER / str(stage.total_steps)
    try:
        workdir.check_saved_config(last, config_lib.to_dict({"": stage.config}))
        meta, data = (layout.read_item(last, name) for name in ("meta", "data"))
        expected = _expected_values(stage)
    except CheckpointError:  # The resumed run reports it.
        return None
    stage.check_same_data(meta, data)
    found = summary["metrics"]
    return summary if all(found.get(name) == value for name, value in expected.items()) else None


def _is_complete(summary: dict | None, stage: Stage) -> bool:
    """Returns True if a summary is that of the last step, with its evaluations."""
    if summary is None or summary.get("step") != stage.total_steps:
        return False
    values, num_examples = summary.get("metrics"), _num_examples(stage)
    if not isinstance(values, dict) or summary.get("num_examples", num_examples) != num_examples:
        return False
    wanted = {"val"} if stage.val_source is not None else set()
    wanted |= {"fewshot"} if stage.fewshot_sources else set()
    wanted |= {"probe"} if stage.probe_sets else set()
    return wanted <= {name.partition("/")[0] for name in values}


def _expected_values(stage: Stage) -> dict:
    """Returns the metrics of the last step, and those of the best weights if they are selected."""
    records = [r for r in metrics.read(stage.folder) if r["step"] == stage.total_steps]
    values = {name: value for name, value in metrics.last_values(records).items() if name != "step"}
    if stage.config.select == "best":
        folder = stage.folder / layout.BEST
        for step in layout.list_steps(folder)[-1:]:
            means = layout.read_item(folder / str(step), "meta").get("means", {})
            values |= _best_values(step, means)
        if not values.get("best_step"):
            raise CheckpointError(f"{folder} has no weights.")
    return values
