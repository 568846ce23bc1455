"""Workdirs of finished runs, written without training."""

import dataclasses
import json

from vit_jax import config as config_lib
from vit_jax.config.schema import Config
from vit_jax.training import attempts


def write_finished_run(
    folder, top1: float, *, flops: float = 2e18, device: float = 43_200, **fields
) -> str:
    """Writes config.json and summary.json of a finished run; fields are given as `model__name`."""
    values = {name.replace("__", "."): value for name, value in fields.items()}
    config = config_lib.replaced(Config(steps=5), values, "config")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_lib.to_dict({"": config})))
    metrics = {"val/top1": top1, "val/n": 10, "fewshot/imagenet2012_5shot": 0.6}
    summary = {"step": 5, "metrics": metrics, "flops": flops, "seconds": {"device": device}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def write_run_without_labels(folder) -> None:
    """Writes a finished run with probes and the targets of a teacher, which have collapsed."""
    write_finished_run(folder, 0.5, task__name="mae", probe__every=10)
    names = ("train/teacher_entropy", "train/mean_entropy", "train/kl", "train/center_norm")
    names += ("train/loss", "train/class_loss", "train/prototypes_used", "probe/knn")
    names += ("probe/linear", "probe/rankme", "probe/feature_std")
    lines = [{"step": step} | dict.fromkeys(names, 1 / (1 + step)) for step in range(0, 900, 100)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((folder / "summary.json").read_text())
    metrics = {name: value for name, value in lines[-1].items() if name != "step"}
    (folder / "summary.json").write_text(json.dumps(summary | {"metrics": metrics}))


def write_attempts(folder) -> None:
    """Writes three attempts at a run: two were killed, and the last is finished."""
    parts = dict.fromkeys(attempts.ACTIVITIES, 0.0) | {"start": 5.0, "compile": 3.0, "save": 2.0}
    lines = [
        attempts.Attempt(start, start, resumed, before, step, 2.0, parts | {"train": train}, end)
        for start, resumed, before, step, train, end in (
            (1.8e9, 0, 0.0, 101, 200.0, ""),
            (1.8e9 + 250, 90, 180.0, 191, 200.0, ""),
            (1.8e9 + 470, 180, 360.0, 200, 38.0, "finished"),
        )
    ]
    text = "".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in lines)
    (folder / attempts.FILE).write_text(text)
