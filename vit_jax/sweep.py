"""Runs the stages of a config in order."""

import pathlib

from vit_jax import config as config_lib
from vit_jax import hosts, stage, train, workdir
from vit_jax.errors import ConfigError
from vit_jax.profiler import Window
from vit_jax.schema import Config


def run(
    stages: dict[str, Config],
    folder: pathlib.Path,
    *,
    fallback: bool = False,
    profile: Window | None = None,
) -> str:
    """Runs what is not finished, each stage in its sub-folder; returns the closing line.

    A config without stages is the one stage '', in the folder itself. All stages are
    checked against their data and starting weights before the first begins.
    """
    as_dict = config_lib.to_dict(stages)
    hosts.refuse_difference("config", as_dict)
    workdir.refuse_other_run(folder, as_dict)
    prepared: dict[str, stage.Stage] = {}
    for name, config in stages.items():
        prepared[name] = stage.prepare(name, config, folder / name, prepared)
    longest = max(each.total_steps for each in prepared.values())
    if profile is not None and profile.first > longest:
        raise ConfigError(f"--profile begins with step {profile.first}; there are {longest} steps.")
    options = {"fallback": fallback, "profile": profile}
    if "" in stages:
        return _closing_line({"": train.train(prepared[""], **options)}, prepared, folder)
    with workdir.claim(folder):
        if hosts.is_first():
            workdir.write_json(folder / workdir.CONFIG, as_dict)
        summaries = {}
        for name, checked in prepared.items():
            summaries[name] = train.train(checked, **options)
        if hosts.is_first():
            workdir.write_json(folder / workdir.SUMMARY, _combined(summaries))
    return _closing_line(summaries, prepared, folder)


def _combined(summaries: dict[str, dict]) -> dict:
    metrics = {
        f"{name}/{key}": value
        for name, summary in summaries.items()
        for key, value in summary["metrics"].items()
    }
    return {"metrics": metrics, "stages": summaries}


def _closing_line(summaries: dict, prepared: dict[str, stage.Stage], folder) -> str:
    if "" in summaries:
        summary, source = summaries[""], prepared[""].val_source
        found = summary["metrics"]
        line = f"done: steps={summary['step']}"
        if source is not None:
            line += f" val/top1={found['val/top1']:.4f} n={found['val/n']}/{len(source)}"
        return f"{line} workdir={folder}"
    scores = [
        f"{name}/top1={summary['metrics']['val/top1']:.4f}"
        for name, summary in summaries.items()
        if "val/top1" in summary["metrics"]
    ]
    return f"done: stages={len(summaries)} {' '.join(scores)} workdir={folder}"
