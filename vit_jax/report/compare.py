"""The page that compares several runs."""

import json
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

from vit_jax import config as config_lib
from vit_jax.atomic_io import ERRORS
from vit_jax.report import curves as curves_lib
from vit_jax.report import sections as h
from vit_jax.report.page import HOW_TO_ZOOM, field, state
from vit_jax.report.run_record import PAGE, Record

HEADER = ("run", "", "model", "score", "", "step", "images/s", "minutes", "exaFLOPs")


def of_runs(title: str, runs: Sequence[Record], page: pathlib.Path) -> str:
    """The page that compares several runs; it lies at `page`, and links to theirs."""
    named = _named(runs)
    rows = [(_link(name, run, page), state(run), *_cells(run)) for name, run in named.items()]
    curves = curves_lib.of_runs(named)
    return h.page(
        title,
        h.element("h1", title),
        h.element("p", f"{len(runs)} runs", class_="lead"),
        h.section("Runs", h.table(rows, HEADER)),
        h.section("Curves", h.plots(curves, "runs"), note=HOW_TO_ZOOM),
        h.section("What differs", _differences(named)),
    )


def _named(runs: Sequence[Record]) -> dict[str, Record]:
    """Runs by the shortest of their names that tells them apart."""
    for kind in (lambda run: run.name, lambda run: run.title, lambda run: str(run.folder)):
        named = {kind(run): run for run in runs}
        if len(named) == len(runs) and all(named):
            break
    return named


def _link(name: str, run: Record, page: pathlib.Path) -> h.Raw:
    place = os.path.relpath(run.folder / PAGE, page.parent)
    place = pathlib.PurePath(place).as_posix()
    return h.element("a", name, href=urllib.parse.quote(place, errors=ERRORS))


def _cells(run: Record) -> tuple:
    """Of a row: model, score and its name, step, speed, minutes, exaFLOPs."""
    name, score = run.headline() or ("", None)
    numbers = (
        run.step,
        run.scores.get("train/img_per_sec"),
        sum(run.seconds.values()) / 60 or None,
        run.summary and run.summary.get("flops", 0) / 1e18,
    )
    told = ("" if value is None else value for value in numbers)
    return (run.config.model.name, "" if score is None else score, name, *told)


def _differences(named: Mapping[str, Record]) -> h.Raw:
    """A row for every field of the configs that is not the same in all runs."""
    first, *others = configs = [config_lib.to_dict({"": run.config}) for run in named.values()]
    fields = {name for other in others for name in config_lib.differing_fields(first, other)}
    if not fields:
        return h.element("p", "Nothing: all runs have the same config.")
    rows = [(name, *(json.dumps(field(each, name)) for each in configs)) for name in sorted(fields)]
    return h.table(rows, ("field", *named))
