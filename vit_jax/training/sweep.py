"""Runs the stages of a config in order, and the runs of sweeps."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping

from vit_jax import config as config_lib
from vit_jax.atomic_io import write_atomically
from vit_jax.checkpoints import lock, workdir
from vit_jax.checkpoints.workdir import DIVERGED, GRID
from vit_jax.config.schema import Config
from vit_jax.config.validate import import_user_code
from vit_jax.distributed import multihost
from vit_jax.errors import ConfigError, InUseError, NonFiniteError
from vit_jax.text import markdown_table, print_line
from vit_jax.training import attempts, auto, stage, sweep_runs, train
from vit_jax.training.metrics import OnLog
from vit_jax.training.profiler import Window

TABLE = "sweep.md"


@dataclasses.dataclass(frozen=True)
class Shard:
    """Index of this process among those that share the runs of sweeps."""

    index: int
    count: int


def run(
    stages: dict[str, Config],
    folder: pathlib.Path,
    *,
    fallback: bool = False,
    profile: Window | None = None,
    shard: Shard | None = None,
    on_log: OnLog | None = None,
    launch: attempts.Launch | None = None,
) -> dict | None:
    """Runs the stages that are not finished, each in its own folder.

    Returns the contents of `summary.json`, or None if other processes still work on runs of a
    sweep.

    A config without stages is the stage '', in the folder itself. All stages are checked against
    their data and initial weights before the first one starts.

    Args:
      shard: index of this process among those that share the runs of the sweeps.
      on_log: as for `run.train`, like `fallback` and `profile`.
      launch: the start of this process; None for now.
    """
    stages = _with_own_values(stages, folder)
    if shard and not any(config.sweep.has_several_runs for config in stages.values()):
        raise ConfigError("--shard needs a config with a sweep; this config has none.")
    as_dict = config_lib.to_dict(stages)
    multihost.check_equal("config", as_dict)
    workdir.check_same_run(folder, as_dict)
    if multihost.is_process_0():
        for note in workdir.config_notes(folder, as_dict):
            print_line(note)
    prepared: dict[str, stage.Stage] = {}
    sweeps: dict[str, Sweep] = {}
    options = {"fallback": fallback, "profile": profile, "on_log": on_log}
    options["launch"] = launch or attempts.Launch()
    for name, config in stages.items():
        if config.sweep.has_several_runs:
            sweeps[name] = Sweep(name, config, folder / name, prepared, shard, options)
        else:
            prepared[name] = stage.prepare_stage(name, config, folder / name, prepared)
    _check_profile(profile, [prepared, *(sweep.prepared for sweep in sweeps.values())])
    for each in reversed(prepared.values()):  # Errors of user code before the workdir exists.
        train.programs_of(each)
    if "" in prepared:
        return train.train_stage(prepared[""], **options)
    # Processes that share a folder use the locks of the single runs.
    with lock.lock_on_all(folder) if shard is None else contextlib.nullcontext():
        if multihost.is_process_0():
            folder.mkdir(parents=True, exist_ok=True)
            chosen = {name: each.config for name, each in prepared.items()}
            workdir.write_json(folder / workdir.CONFIG, config_lib.to_dict(stages | chosen))
        summaries: dict[str, dict] = {}
        for name in stages:
            with _skip_in_use(shard):
                run_stage = (
                    sweeps[name].run
                    if name in sweeps
                    else functools.partial(train.train_stage, prepared[name], **options)
                )
                summaries[name] = run_stage()
            if summaries.get(name) is None:
                return None
        if "" in stages:
            return summaries[""]
        summary = _combined(summaries)
        records = list(filter(None, (attempts.read(folder / name) for name in stages)))
        if records and not sweeps:  # The runs of a sweep may be in progress at the same time.
            summary["goodput"] = attempts.goodput_of(*records)
        if multihost.is_process_0():
            workdir.write_json(folder / workdir.SUMMARY, summary)
    return summary


def _with_own_values(stages: dict[str, Config], folder: pathlib.Path) -> dict[str, Config]:
    """Imports user-defined objects, and returns the stages with the values of runs in a folder.

    Raises ConfigError for an invalid sweep.
    """
    stages = {
        name: import_user_code(config, f"config.stages.{name}" if name else "config")
        for name, config in stages.items()
    }
    sweep_runs.check(stages)
    return {name: auto.with_saved(config, folder / name) for name, config in stages.items()}


def _check_profile(profile: Window | None, groups: Iterable[Mapping[str, stage.Stage]]) -> None:
    """Raises ConfigError if no run reaches the first step to trace."""
    longest = max(each.total_steps for group in groups for each in group.values())
    if profile is not None and profile.first > longest:
        raise ConfigError(
            f"--profile starts at step {profile.first}; the longest run has {longest} steps."
        )


def _skip_in_use(shard: Shard | None):
    """Returns a context that skips a run which is in progress in another process."""
    return contextlib.suppress(InUseError) if shard else contextlib.nullcontext()


class Sweep:
    """The runs of one sweep: the grid, then its best values with every seed."""

    def __init__(
        self,
        name: str,
        config: Config,
        folder: pathlib.Path,
        earlier: Mapping[str, stage.Stage],
        shard: Shard | None,
        options: dict,
    ):
        """Checks every run of the grid and one final run before any of them starts."""
        self.name, self.config, self.folder = name, config, folder
        self.shard, self.options = shard, options
        self.prepared = dict(earlier)  # Later runs reuse data that is open.
        self.grid = {f"{GRID}/{name}": run for name, run in sweep_runs.grid(config).items()}
        values = next((run.values for run in self.grid.values()), {})
        last = next(iter(sweep_runs.finals(config, values).items()))
        for name, config in [*((name, run.config) for name, run in self.grid.items()), last]:
            self._prepare(name, config)

    def run(self) -> dict | None:
        """Returns the summary of the sweep, or None if other processes have runs in progress.

        Writes it to `summary.json`, and the scores of every run to `sweep.md`. Raises
        NonFiniteError if the loss of every run of the grid, or of a final run, became NaN or
        infinite.
        """
        scored = self._run_all({name: run.config for name, run in self.grid.items()})
        if scored is None:
            return None
        grid = {name.removeprefix(f"{GRID}/"): found for name, found in scored.items()}
        means = sweep_runs.mean_over_seeds(self.grid, scored)
        chosen, values = "", {}
        if self.grid:
            if not any(means.values()):
                raise NonFiniteError(f"{self.folder / GRID}: the loss of every run was not finite.")
            chosen = sweep_runs.best(means)
            combinations = (sweep_runs.without_seed(run.values) for run in self.grid.values())
            values = next(each for each in combinations if sweep_runs.run_name(each) == chosen)
        finals = self._run_all(sweep_runs.finals(self.config, values))
        if finals is None:
            return None
        for name, found in finals.items():
            if found is None:
                raise NonFiniteError(
                    f"{self.folder / name}: the loss became NaN or infinite in this final run, "
                    "which has the best hyperparameters of the grid."
                )
        table = sweep_runs.rows(grid, chosen, finals)
        mean_rows = sweep_runs.mean_rows(self.grid, means, chosen, finals)
        summary = {
            "metrics": sweep_runs.combined(list(finals.values())),
            "num_examples": next(iter(finals.values()))["num_examples"],
            "best": values,
            "runs": table,
            **({"dev": sweep_runs.dev_scores(means[chosen])} if self.grid else {}),
            **({"means": mean_rows} if mean_rows else {}),
        }
        if multihost.is_process_0():
            write_atomically(self.folder / TABLE, markdown_table([*table, *mean_rows]) + "\n")
            workdir.write_json(self.folder / workdir.SUMMARY, summary)
        return summary

    def _run_all(self, runs: dict[str, Config]) -> dict | None:
        """Returns the summary of each run, None for one that diverged.

        Returns None if other processes have runs in progress. This process starts with its own
        part of the runs, continues with runs that no process works on, and repeats this as long as
        it finds one.
        """
        order, found, before = list(enumerate(runs)), {}, -1
        if self.shard:
            index, count = self.shard.index, self.shard.count
            order.sort(key=lambda at: (at[0] - index) % count)
        while before < len(found) < len(runs):
            before = len(found)
            for _, name in order:
                if name not in found and not (self.shard and _is_in_use(self.folder / name)):
                    with _skip_in_use(self.shard):
                        found[name] = self._run(name, runs[name])
        return {name: found[name] for name in runs} if len(found) == len(runs) else None

    def _run(self, name: str, config: Config) -> dict | None:
        """Returns the summary of a run; None if its loss became NaN or infinite, now or earlier."""
        path, as_dict = self.folder / name / DIVERGED, config_lib.to_dict({"": config})
        if multihost.broadcast_from_process_0("diverged", lambda: _has_diverged(path, as_dict)):
            return None
        self._prepare(name, config)
        try:
            summary = train.train_stage(self.prepared[name], **self.options)
        except NonFiniteError as error:
            if multihost.is_process_0():
                print_line(f"{name}: {error}")
                workdir.write_json(path, {"error": str(error), "config": as_dict})
            return None
        return summary if sweep_runs.is_finite(summary) else None

    def _prepare(self, name: str, config: Config) -> None:
        label = f"{self.name}/{name}".removeprefix("/").removeprefix(f"{GRID}/")
        self.prepared[name] = stage.prepare_stage(label, config, self.folder / name, self.prepared)


def _has_diverged(path: pathlib.Path, config: dict) -> bool:
    """Returns True if a run with this config has ended with a loss that was not finite."""
    try:
        values = workdir.read_json(path)
    except ConfigError:  # Damaged: the run decides again.
        return False
    # Version 0.1.0 stored no config.
    return values is not None and not workdir.fixed_differences(
        values.get("config", config), config
    )


def _is_in_use(folder: pathlib.Path) -> bool:
    """Returns True if a run is in progress in another process; process 0 decides."""

    def look() -> bool:
        try:
            lock.check_not_in_use(folder)
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
