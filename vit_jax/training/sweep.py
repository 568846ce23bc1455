"""Runs the stages of a config in order, and the runs of those that are sweeps."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Mapping

from vit_jax import config as config_lib
from vit_jax.atomic_io import write_atomically
from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.workdir import GRID
from vit_jax.config.schema import Config
from vit_jax.distributed import multihost
from vit_jax.errors import ConfigError, InUseError, NonFiniteError
from vit_jax.markdown import markdown
from vit_jax.training import stage, sweep_runs, train
from vit_jax.training.profiler import Window

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
) -> dict | None:
    """Runs the stages that are not finished, each in its own folder.

    Returns the contents of `summary.json`, or None if other processes still work on runs of a
    sweep.

    A config without stages is the one stage '', in the folder itself. All stages are
    checked against their data and starting weights before the first begins.

    Args:
      shard: this process is one of several that go through the runs of the config's sweeps.
    """
    sweep_runs.check(stages)
    if shard and not any(map(sweep_runs.is_sweep, stages.values())):
        raise ConfigError("--shard: this config has no sweep, so there is nothing to share.")
    as_dict = config_lib.to_dict(stages)
    multihost.check_equal("config", as_dict)
    workdir.check_same_run(folder, as_dict)
    prepared: dict[str, stage.Stage] = {}
    sweeps: dict[str, Sweep] = {}
    options = {"fallback": fallback, "profile": profile}
    for name, config in stages.items():
        if sweep_runs.is_sweep(config):
            sweeps[name] = Sweep(name, config, folder / name, prepared, shard, options)
        else:
            prepared[name] = stage.prepare(name, config, folder / name, prepared)
    longest = max(
        each.total_steps
        for group in (prepared, *(sweep.prepared for sweep in sweeps.values()))
        for each in group.values()
    )
    if profile is not None and profile.first > longest:
        raise ConfigError(f"--profile begins with step {profile.first}; there are {longest} steps.")
    if "" in prepared:
        return train.train_stage(prepared[""], **options)
    # Those that share a folder go by the locks of single runs.
    with workdir.lock_on_all(folder) if shard is None else contextlib.nullcontext():
        if multihost.is_process_0():
            folder.mkdir(parents=True, exist_ok=True)
            workdir.write_json(folder / workdir.CONFIG, as_dict)
        summaries: dict[str, dict] = {}
        for name in stages:
            with _passing_over(shard):
                go = (
                    sweeps[name].go
                    if name in sweeps
                    else functools.partial(train.train_stage, prepared[name], **options)
                )
                summaries[name] = go()
            if summaries.get(name) is None:
                return None
        if "" in stages:
            return summaries[""]
        summary = _combined(summaries)
        if multihost.is_process_0():
            workdir.write_json(folder / workdir.SUMMARY, summary)
    return summary


def _passing_over(shard: Shard | None):
    """A context that passes over a run which another of the processes works at."""
    return contextlib.suppress(InUseError) if shard else contextlib.nullcontext()


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
        """Checks every run of the grid, and one of those that come last, before any begins."""
        self.name, self.config, self.folder = name, config, folder
        self.shard, self.options = shard, options
        self.prepared = dict(earlier)  # By folder, too: whoever comes next finds its data open.
        self.grid = {f"{GRID}/{words}": trial for words, trial in sweep_runs.grid(config).items()}
        values = next((trial.values for trial in self.grid.values()), {})
        last = next(iter(sweep_runs.finals(config, values).items()))
        for place, single in [*((p, trial.config) for p, trial in self.grid.items()), last]:
            self._prepare(place, single)

    def go(self) -> dict | None:
        """The sweep's summary, or None where other processes have runs left.

        Writes it into `summary.json`, and what every run scored into `sweep.md`. Raises
        NonFiniteError where the whole grid, or one of the last runs, was not finite.
        """
        scored = self._run_all({name: trial.config for name, trial in self.grid.items()})
        if scored is None:
            return None
        chosen, values = "", {}
        if self.grid:
            if not any(scored.values()):
                raise NonFiniteError(f"{self.folder / GRID}: no run of the grid has stayed finite.")
            chosen = sweep_runs.best(scored)
            values = self.grid[chosen].values
        finals = self._run_all(sweep_runs.finals(self.config, values))
        if finals is None:
            return None
        for name, found in finals.items():
            if found is None:
                raise NonFiniteError(
                    f"{self.folder / name}: not finite, with what was best of the grid."
                )
        names = {name: name.removeprefix(f"{GRID}/") for name in scored}
        told = {names[name]: found for name, found in scored.items()}
        table = sweep_runs.rows(told, names.get(chosen, ""), finals)
        summary = {
            "metrics": sweep_runs.combined(list(finals.values())),
            "num_examples": next(iter(finals.values()))["num_examples"],
            "best": values,
            "runs": table,
        }
        if multihost.is_process_0():
            write_atomically(self.folder / TABLE, markdown(table) + "\n")
            workdir.write_json(self.folder / workdir.SUMMARY, summary)
        return summary

    def _run_all(self, runs: dict[str, Config]) -> dict | None:
        """Each run's summary, None for one that diverged; None where runs of others are left.

        This process begins with its own share of them, goes on with what nobody works at, and
        looks again at what others had as long as something else was left to do.
        """
        order, found, before = list(enumerate(runs)), {}, -1
        if self.shard:
            index, count = self.shard.index, self.shard.count
            order.sort(key=lambda at: (at[0] - index) % count)
        while before < len(found) < len(runs):
            before = len(found)
            for _, name in order:
                if name not in found and not (self.shard and _is_in_use(self.folder / name)):
                    with _passing_over(self.shard):
                        found[name] = self._run(name, runs[name])
        return {name: found[name] for name in runs} if len(found) == len(runs) else None

    def _run(self, name: str, config: Config) -> dict | None:
        """One run's summary; None if it was not finite, now or when it was tried before."""
        path = self.folder / name / DIVERGED
        if multihost.broadcast_from_process_0("diverged", lambda: workdir.read_json(path)):
            return None
        self._prepare(name, config)
        try:
            summary = train.train_stage(self.prepared[name], **self.options)
        except NonFiniteError as error:
            if multihost.is_process_0():
                print(f"{name}: {error}", flush=True)
                workdir.write_json(path, {"error": str(error)})
            return None
        return summary if sweep_runs.is_finite(summary) else None

    def _prepare(self, name: str, config: Config) -> None:
        label = f"{self.name}/{name}".removeprefix("/").removeprefix(f"{GRID}/")
        self.prepared[name] = stage.prepare(label, config, self.folder / name, self.prepared)


def _is_in_use(folder: pathlib.Path) -> bool:
    """Whether another process works at a run, as the first of ours sees it."""

    def look() -> bool:
        try:
            workdir.check_not_in_use(folder)
        except InUseError:
            return True
        return False

    return multihost.broadcast_from_process_0("in use", look)


def _combined(summaries: dict[str, dict]) -> dict:
    metrics = {
        f"{name}/{key}": value
        for name, summary in summaries.items()
        for key, value in summary["metrics"].items()
    }
    return {"metrics": metrics, "stages": summaries}
