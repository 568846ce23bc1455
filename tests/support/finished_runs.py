"""Workdirs of finished runs, written without training."""

import json

from vit_jax import config as config_lib
from vit_jax.config.schema import Config


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
