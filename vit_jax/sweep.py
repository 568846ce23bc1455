"""Runs the stages of a config in order, and the runs of those that are sweeps."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping

from vit_jax import config as config_lib
from vit_jax import hosts, stage, train, trials, workdir
from vit_jax.errors import ConfigError, InUseError, NonFiniteError
from vit_jax.files import write_whole
from vit_jax.profiler import Window
from vit_jax.schema import Config
from vit_jax.tables.markdown import markdown

GRID = "grid"  # Folder of a sweep's trials.
DIVERGED = "diverged.json"  # In the folder of a trial whose loss was no number.
TABLE = "sweep.md"


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which of several processes that share the runs of sweeps this one is."""

    index: int
    count: int


def run(
    stages: dict[str, Config],
    folder: pathlib.Path,
    *,
    fallback: bool = False,
    profile: Window | None = None,
    shard: Shard | None = None,
) -> str:
    """Runs what is not finished, each stage in its sub-folder; returns the closing line.

    A config without stages is the one stage '', in the folder itself. All stages are
    checked against their data and starting weights before the first begins.

    Args:
      shard: this process is one of several that go through the runs of the config's sweeps.
    """
    trials.check(stages)
    if shard and not any(map(trials.is_sweep, stages.values())):
        raise ConfigError("--shard: this config has no sweep, so there is nothing to share.")
    as_dict = config_lib.to_dict(stages)
    hosts.refuse_difference("config", as_dict)
    workdir.refuse_other_run(folder, as_dict)
    prepared: dict[str, stage.Stage] = {}
    for name, config in stages.items():
        first = next(iter(_first_runs(config).values()))
        prepared[name] = stage.prepare(name, first, folder / name, prepared)
    longest = max(each.total_steps for each in prepared.values())
    if profile is not None and profile.first > longest:
        raise ConfigError(f"--profile begins with step {profile.first}; there are {longest} steps.")
    options = {"fallback": fallback, "profile": profile}
    if "" in stages and not trials.is_sweep(stages[""]):
        return _closing_line({"": train.train(prepared[""], **options)}, folder)
    # Those that share a folder go by the locks of single runs.
    with workdir.claim(folder) if shard is None else contextlib.nullcontext():
        if hosts.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            workdir.write_json(folder / workdir.CONFIG, as_dict)
        summaries = {}
        for name, config in stages.items():
            if trials.is_sweep(config):
                sweep = Sweep(name, config, folder / name, prepared, shard, options)
                summaries[name] = sweep.go()
            else:
                is_left = shard and _is_in_use(folder / name)
                summaries[name] = None if is_left else train.train(prepared[name], **options)
            if summaries[name] is None:
                return f"done: other processes work at what is left workdir={folder}"
        if "" not in stages and hosts.is_first():
            workdir.write_json(folder / workdir.SUMMARY, _combined(summaries))
    return _closing_line(summaries, folder)


def _first_runs(config: Config) -> dict[str, Config]:
    """The runs that a config begins with: itself, or the first of a sweep."""
    if not trials.is_sweep(config):
        return {"": config}
    grid = {name: trial.config for name, trial in trials.grid(config).items()}
    return grid or trials.finals(config, {})


class Sweep:
    """The runs of one sweep: its grid, then the best of it for every seed."""

    def __init__(
        self,
        name: str,
        config: Config,
        folder: pathlib.Path,
        earlier: Mapping[str, stage.Stage],
        shard: Shard | None,
        options: dict,
    ):
        self.name, self.config, self.folder = name, config, folder
        self.earlier, self.shard, self.options = dict(earlier), shard, options

    def go(self) -> dict | None:
        """The sweep's summary, or None where other processes have runs left.

        Writes it into `summary.json`, and what every run scored into `sweep.md`.
        """
        grid = trials.grid(self.config)
        runs = {name: trial.config for name, trial in grid.items()}
        scored = self._run_all(self.folder / GRID, runs)
        if scored is None:
            return None
        chosen, values = "", {}
        if grid:
            if not any(scored.values()):
                raise NonFiniteError(f"{self.folder / GRID}: no run of the grid has stayed finite.")
            chosen = trials.best(scored)
            values = grid[chosen].values
        runs = trials.finals(self.config, values)
        finals = self._run_all(self.folder, runs)
        if finals is None:
            return None
        table = trials.rows(scored, chosen, finals)
        summary = {
            "metrics": trials.combined(list(finals.values())),
            "num_examples": next(iter(finals.values()))["num_examples"],
            "best": values,
            "runs": table,
        }
        if hosts.is_first():
            write_whole(self.folder / TABLE, markdown(table) + "\n")
            workdir.write_json(self.folder / workdir.SUMMARY, summary)
        return summary

    def _run_all(self, folder: pathlib.Path, runs: dict[str, Config]) -> dict | None:
        """Each run's summary, None for one that diverged; None where runs of others are left.

        This process begins with its own share of them, and goes on with what nobody works at.
        """
        order, found = list(enumerate(runs)), {}
        if self.shard:
            index, count = self.shard.index, self.shard.count
            order.sort(key=lambda at: (at[0] - index) % count)
        for _, name in order:
            if self.shard and _is_in_use(folder / name):
                continue
            label = f"{self.name}/{name}".strip("/")
            found[name] = self._run(folder / name, label, runs[name])
        return {name: found[name] for name in runs} if len(found) == len(runs) else None

    def _run(self, folder: pathlib.Path, name: str, config: Config) -> dict | None:
        """One run's summary; None if its loss was no number."""
        if hosts.from_first("diverged", lambda: workdir.read_json(folder / DIVERGED)):
            return None
        prepared = stage.prepare(name, config, folder, self.earlier)
        self.earlier[""] = prepared  # Whoever comes next finds its data open.
        try:
            return train.train(prepared, **self.options)
        except NonFiniteError as error:
            if hosts.is_first():
                print(f"{name}: {error}", flush=True)
                workdir.write_json(folder / DIVERGED, {"error": str(error)})
            return None


def _is_in_use(folder: pathlib.Path) -> bool:
    """Whether another process works at a run, as the first of ours sees it."""

    def look() -> bool:
        try:
            workdir.refuse_in_use(folder)
        except InUseError:
            return True
        return False

    return hosts.from_first("in use", look)


def _combined(summaries: dict[str, dict]) -> dict:
    metrics = {
        f"{name}/{key}": value
        for name, summary in summaries.items()
        for key, value in summary["metrics"].items()
    }
    return {"metrics": metrics, "stages": summaries}


def _closing_line(summaries: dict, folder) -> str:
    if "" in summaries:
        return f"done: {_scores(summaries[''])} workdir={folder}"
    scores = [
        f"{name}/top1={summary['metrics']['val/top1']:.4f}"
        for name, summary in summaries.items()
        if "val/top1" in summary["metrics"]
    ]
    return f"done: stages={len(summaries)} {' '.join(scores)} workdir={folder}"


def _scores(summary: dict) -> str:
    """Of the one stage of a config: its steps, or runs, and what stands in `val`."""
    found = summary["metrics"]
    line = f"steps={summary['step']}" if "step" in summary else f"runs={len(summary['runs'])}"
    for name, value in summary.get("best", {}).items():
        line += f" {name}={value}"
    if "val/top1" in found:
        line += f" val/top1={found['val/top1']:.4f}"
    if "val/top1_std" in found:
        line += f" std={found['val/top1_std']:.4f}"
    if "val/n" in found:
        line += f" n={found['val/n']}/{summary['num_examples']['val']}"
    return line
