"""The runs of a `config.sweep` (section 4.1, Tables 2 and 4).

Every combination of the grid is trained on a part of the training examples and scored on the
rest, `dev`; with `seed` in the grid, once for each of these seeds, and the mean counts. The best
combination is then trained on all examples, once for each of `sweep.seeds`, and scored on
`val_split`. Each run has the config of a single run.
"""

import itertools
import math
import statistics
from typing import NamedTuple

from vit_jax import config as config_lib
from vit_jax.checkpoints.best_weights import selection_score
from vit_jax.config.schema import Config, Sweep
from vit_jax.config.validate import DURATIONS
from vit_jax.errors import ConfigError

# Sections and fields that a grid must not change: its runs are compared on the same examples.
SAME = ("sweep", "mesh", "task.name", "init.stage")
SAME_DATA = tuple(
    f"data.{name}"
    for name in (
        *("source", "dir", "dataset", "mix", "split", "val_split", "val_fraction", "dev"),
        *("per_class", "fraction", "count", "subset_seed", "num_classes", "num_examples"),
    )
)
MAX_RUNS = 20_000
LONGEST = 150  # Characters of the name of a run's folder.


class GridRun(NamedTuple):
    """One combination of values of a grid."""

    values: dict[str, object]
    config: Config


def check(stages: dict[str, Config]) -> None:
    """Raises ConfigError for an invalid sweep."""
    for name, config in stages.items():
        where = f"config.stages.{name}" if name else "config"
        grid(config, where)
        for field, before in (
            ("init.stage", config.init.stage),
            ("task.teacher", config.task.teacher),
        ):
            if before and before in stages and stages[before].sweep.has_several_runs:
                raise ConfigError(
                    f"{where}.{field} is {before!r}, which is a sweep with several runs; use "
                    "a stage with a single run."
                )
        if config.sweep.has_several_runs and config.init.stage and not name:
            raise ConfigError(
                f"{where}.init.stage is {config.init.stage!r}; in a config without stages, a "
                "sweep must start from init.path."
            )


def grid(config: Config, where: str = "config") -> dict[str, GridRun]:
    """Returns the runs of the grid by folder name; each holds out `sweep.dev` of the examples.

    Raises ConfigError, in one line, for unknown fields and invalid values.
    """
    place, runs = f"{where}.sweep.grid", {}
    if not config.sweep.grid:
        return runs
    keys = [key for key, _ in config.sweep.grid]
    for key, values in config.sweep.grid:
        if keys.count(key) > 1:
            raise ConfigError(f"{place} has {key!r} more than once.")
        if not values:
            raise ConfigError(f"{place} has no values for {key!r}.")
        if any(isinstance(value, dict) for value in values):
            raise ConfigError(f"{place} has {key!r}, which is a section; name a field of it.")
        if key in SAME or key.partition(".")[0] in SAME or key in SAME_DATA:
            raise ConfigError(f"{place} has {key!r}; set it in the config, for all runs.")
    if sum(key in DURATIONS for key in keys) > 1:
        raise ConfigError(f"{place} has several of {', '.join(DURATIONS)}; expected one.")
    if count(config) > MAX_RUNS:
        raise ConfigError(f"{place} has {count(config):,} runs; expected at most {MAX_RUNS:,}.")
    for combination in itertools.product(*(values for _, values in config.sweep.grid)):
        values = dict(zip(keys, combination, strict=True))
        if run_name(values) in runs or len(run_name(values)) > LONGEST:
            problem = "twice" if run_name(values) in runs else "whose name is too long for a folder"
            raise ConfigError(f"{place} has {run_name(values)[:LONGEST]} {problem}.")
        held_out = _single(config, values | {"data.dev": config.sweep.dev}, place)
        runs[run_name(values)] = GridRun(values, held_out)
    return runs


def finals(config: Config, values: dict[str, object]) -> dict[str, Config]:
    """Returns the final runs by folder name: these values on all training examples, per seed."""
    seeds = range(config.seed, config.seed + config.sweep.seeds)
    return {f"seed_{seed}": _single(config, values | {"seed": seed}, "config") for seed in seeds}


def _single(config: Config, values: dict[str, object], where: str) -> Config:
    """Returns the config of one run of a sweep."""
    alone = {f"sweep.{name}": value for name, value in vars(Sweep()).items()}
    return config_lib.replaced(config, alone | values, where)


def count(config: Config) -> int:
    """Returns the number of runs of a config."""
    combinations = math.prod(len(values) for _, values in config.sweep.grid)
    return config.sweep.seeds + (combinations if config.sweep.grid else 0)


def run_name(values: dict[str, object]) -> str:
    """Returns the name of a run and its folder, such as 'lr=0.003,steps=500'."""
    texts = (f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
    return ",".join(texts).replace(" ", "").replace("/", "_")


def without_seed(values: dict[str, object]) -> dict[str, object]:
    """Returns the values of a combination, which all its seeds share."""
    return {key: value for key, value in values.items() if key != "seed"}


def mean_over_seeds(
    grid: dict[str, GridRun], summaries: dict[str, dict | None]
) -> dict[str, dict | None]:
    """Returns the mean scores of each combination by name; None if one of its runs diverged."""
    groups: dict[str, list[dict | None]] = {}
    for name, run in grid.items():
        groups.setdefault(run_name(without_seed(run.values)), []).append(summaries[name])
    return {
        name: {"metrics": combined(group)} if all(group) else None for name, group in groups.items()
    }


def is_finite(summary: dict) -> bool:
    """Returns True if all scores of a run on `val` are finite; others are null in a workdir."""
    return all(value is not None and math.isfinite(value) for value in _val(summary).values())


def best(summaries: dict[str, dict | None]) -> str:
    """Returns the name with the best score; of equals, the lowest loss, then the first.

    A summary that is None has diverged.
    """
    found = {name: _val(summary) for name, summary in summaries.items() if summary}
    return max(found, key=lambda name: (selection_score(found[name]), -found[name].get("loss", 0)))


def _val(summary: dict) -> dict:
    """Returns the metrics of a run on `val`."""
    found = summary["metrics"]
    return {name[4:]: value for name, value in found.items() if name.startswith("val/")}


def dev_scores(summary: dict) -> dict:
    """Returns the scores of a combination on `dev`: `top1`, `loss`, `n`, and `_std` over seeds."""
    return _val(summary)


def combined(summaries: list[dict]) -> dict:
    """Returns mean and standard deviation (`_std`) of each score over seeds.

    This is the sample standard deviation, with n - 1 in the denominator.
    """
    scored, found = [_val(summary) for summary in summaries], {}
    for name, value in scored[0].items():
        values = [each[name] for each in scored]
        found[f"val/{name}"] = value if name == "n" else statistics.fmean(values)
        if name != "n" and len(values) > 1:
            found[f"val/{name}_std"] = statistics.stdev(values)
    return found


def rows(grid: dict[str, dict | None], chosen: str, finals: dict[str, dict]) -> list[dict]:
    """Returns the rows of the table of a sweep: every run, its split and its scores."""
    return [*_rows(grid, "dev", chosen), *_rows(finals, "val", "")]


def mean_rows(
    grid: dict[str, GridRun], means: dict[str, dict | None], chosen: str, finals: dict[str, dict]
) -> list[dict]:
    """Returns the rows of means over several seeds: combinations of the grid, and final runs."""
    has_seeds = any("seed" in run.values for run in grid.values())
    rows = _rows(means, "dev, mean", chosen) if has_seeds else []
    if len(finals) > 1:
        first, *_, last = finals
        mean = {"metrics": combined(list(finals.values()))}
        rows += _rows({f"{first} to {last}": mean}, "val, mean", "")
    return rows


def _rows(summaries: dict[str, dict | None], split: str, chosen: str) -> list[dict]:
    return [
        {"run": name, "scored on": split, **_scores(summary), "": "best" if name == chosen else ""}
        for name, summary in summaries.items()
    ]


def _scores(summary: dict | None) -> dict:
    found = _val(summary) if summary else {}
    deviation = f" +- {found['top1_std']:.4f}" if "top1_std" in found else ""
    return {
        "n": found.get("n", ""),
        "top1": f"{found['top1']:.4f}{deviation}" if "top1" in found else "",
        "loss": f"{found['loss']:.4f}" if found else "not finite",
    }
