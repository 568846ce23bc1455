"""The runs that a `config.sweep` stands for (section 4.1, Tables 2 and 4).

Every combination of the grid trains on a part of the training examples and is scored on the
rest of them, `dev`; the best then trains on all of them, once for each seed, and is scored on
`val_split`. All are plain configs of single runs.
"""

import itertools
import math
import statistics
from typing import NamedTuple

from vit_jax import config as config_lib
from vit_jax.checkpoints.checkpoint import selection_score
from vit_jax.config.schema import Config, Sweep
from vit_jax.config.validate import DURATIONS
from vit_jax.errors import ConfigError

# Sections and fields that no grid may change: its runs are compared on the same examples.
SAME = ("sweep", "mesh", "seed", "task.name", "init.stage")
SAME_DATA = tuple(
    f"data.{name}"
    for name in (
        *("source", "dir", "dataset", "mix", "split", "val_split", "val_fraction", "dev"),
        *("per_class", "fraction", "count", "subset_seed", "num_classes", "num_examples"),
    )
)
LONGEST = 150  # Characters of the name of a run's folder.


class Trial(NamedTuple):
    """One combination of a grid."""

    values: dict[str, object]
    config: Config


def is_sweep(config: Config) -> bool:
    """Whether a config stands for several runs."""
    return bool(config.sweep.grid) or config.sweep.seeds > 1


def check(stages: dict[str, Config]) -> None:
    """Raises ConfigError for a sweep that cannot be, before anything runs."""
    for name, config in stages.items():
        where = f"config.stages.{name}" if name else "config"
        grid(config, where)
        for field, before in (
            ("init.stage", config.init.stage),
            ("task.teacher", config.task.teacher),
        ):
            if before and before in stages and is_sweep(stages[before]):
                raise ConfigError(
                    f"{where}.{field} is {before!r}, a sweep, which gives several weights; take "
                    "a run of its own."
                )
        if is_sweep(config) and config.init.stage and not name:
            raise ConfigError(
                f"{where}.init.stage is {config.init.stage!r}; a sweep that is no stage starts "
                "from init.path."
            )


def grid(config: Config, where: str = "config") -> dict[str, Trial]:
    """Folder name -> trial, each of which holds out `sweep.dev` of the training examples.

    Raises ConfigError, in one line, for fields or values that cannot be.
    """
    place, trials = f"{where}.sweep.grid", {}
    if not config.sweep.grid:
        return trials
    keys = [key for key, _ in config.sweep.grid]
    for key, values in config.sweep.grid:
        if keys.count(key) > 1 or not values or any(isinstance(value, dict) for value in values):
            raise ConfigError(
                f"{place} has {key!r} with the values {values}; each field stands there once, with "
                "a value or more, and no section does."
            )
        if key in SAME or key.partition(".")[0] in SAME or key in SAME_DATA:
            raise ConfigError(f"{place} has {key!r}; it must be the same in all runs of a grid.")
    if sum(key in DURATIONS for key in keys) > 1:
        raise ConfigError(f"{place} has several of {', '.join(DURATIONS)}; a run has one length.")
    for combination in itertools.product(*(values for _, values in config.sweep.grid)):
        values = dict(zip(keys, combination, strict=True))
        if words(values) in trials or len(words(values)) > LONGEST:
            what = "twice" if words(values) in trials else "whose name is too long for a folder"
            raise ConfigError(f"{place} has {words(values)[:LONGEST]} {what}.")
        held_out = _single(config, values | {"data.dev": config.sweep.dev}, place)
        trials[words(values)] = Trial(values, held_out)
    return trials


def finals(config: Config, values: dict[str, object]) -> dict[str, Config]:
    """Folder name -> a run with these values on all training examples, for each seed."""
    seeds = range(config.seed, config.seed + config.sweep.seeds)
    return {f"seed_{seed}": _single(config, values | {"seed": seed}, "config") for seed in seeds}


def _single(config: Config, values: dict[str, object], where: str) -> Config:
    """One run of a sweep."""
    alone = {f"sweep.{name}": value for name, value in vars(Sweep()).items()}
    return config_lib.replaced(config, alone | values, where)


def count(config: Config) -> int:
    """How many runs a config stands for."""
    combinations = math.prod(len(values) for _, values in config.sweep.grid)
    return config.sweep.seeds + (combinations if config.sweep.grid else 0)


def words(values: dict[str, object]) -> str:
    """'lr=0.003,steps=500', which is a folder's name, too."""
    texts = (f"{key.rpartition('.')[2]}={value}" for key, value in values.items())
    return ",".join(texts).replace(" ", "").replace("/", "_")


def is_finite(summary: dict) -> bool:
    """Whether all that a run scored on `val` are numbers; a workdir has null for others."""
    return all(value is not None and math.isfinite(value) for value in _val(summary).values())


def best(summaries: dict[str, dict | None]) -> str:
    """The name of the trial with the best score, the first of equals; None is one that diverged."""
    scores = {name: selection_score(_val(found)) for name, found in summaries.items() if found}
    return max(scores, key=scores.get)


def _val(summary: dict) -> dict:
    """What a run scored on `val`."""
    found = summary["metrics"]
    return {name[4:]: value for name, value in found.items() if name.startswith("val/")}


def combined(summaries: list[dict]) -> dict:
    """Of runs that differ in their seeds: the mean of each score, and its deviation `_std`.

    That is the deviation of a sample, n - 1 in its denominator.
    """
    scored, found = [_val(summary) for summary in summaries], {}
    for name, value in scored[0].items():
        values = [each[name] for each in scored]
        found[f"val/{name}"] = value if name == "n" else statistics.fmean(values)
        if name != "n" and len(values) > 1:
            found[f"val/{name}_std"] = statistics.stdev(values)
    return found


def rows(grid: dict[str, dict | None], chosen: str, finals: dict[str, dict]) -> list[dict]:
    """What every run was scored on, and how: the table of a sweep."""
    table = [
        {"run": name, "scored on": "dev", **_scores(summary), "": "best" if name == chosen else ""}
        for name, summary in grid.items()
    ]
    table += [
        {"run": name, "scored on": "val", **_scores(summary), "": ""}
        for name, summary in finals.items()
    ]
    return table


def _scores(summary: dict | None) -> dict:
    found = _val(summary) if summary else {}
    return {
        "n": found.get("n", ""),
        "top1": f"{found['top1']:.4f}" if "top1" in found else "",
        "loss": f"{found['loss']:.4f}" if found else "not finite",
    }
