"""The page that compares several runs."""

import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

from vit_jax import config as config_lib
from vit_jax.atomic_io import ERRORS, to_json
from vit_jax.report import curves as curves_lib
from vit_jax.report import sections as html
from vit_jax.report.page import PLOT_NOTE, config_value, state_badge
from vit_jax.report.run_record import REPORT_FILE, RunRecord

HEADER = ("run", "state", "model", "score", "metric", "step", "images/s", "minutes", "exaFLOPs")


def render_comparison_page(title: str, runs: Sequence[RunRecord], page: pathlib.Path) -> str:
    """Returns the HTML page that compares several runs.

    Args:
      title: title of the page.
      runs: the runs, in the order to show them.
      page: path of the page, which its links to the pages of the runs are relative to.
    """
    runs_by_name = _shortest_names(runs)
    rows = [
        (_link(name, run, page), state_badge(run), *_cells(run))
        for name, run in runs_by_name.items()
    ]
    charts = curves_lib.comparison_charts(runs_by_name)
    return html.document(
        title,
        html.element("h1", title),
        html.element("p", f"{len(runs)} runs", class_="lead"),
        html.section("Runs", html.table(rows, HEADER)),
        html.section("Curves", html.plots(charts, "runs"), note=PLOT_NOTE),
        html.section("Config differences", _differences(runs_by_name)),
    )


def _shortest_names(runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Returns name -> run with the shortest kind of name that is unique."""
    for name_of in (lambda run: run.name, lambda run: run.title, lambda run: str(run.folder)):
        runs_by_name = {name_of(run): run for run in runs}
        if len(runs_by_name) == len(runs) and all(runs_by_name):
            break
    return runs_by_name


def _link(name: str, run: RunRecord, page: pathlib.Path) -> html.Html:
    path = os.path.relpath(run.folder / REPORT_FILE, page.parent)
    path = pathlib.PurePath(path).as_posix()
    return html.element("a", name, href=urllib.parse.quote(path, errors=ERRORS))


def _cells(run: RunRecord) -> tuple:
    """Returns the cells of a run from `model` in HEADER on; unknown values are empty."""
    name, score = run.main_score() or ("", None)
    numbers = (
        run.step,
        run.metrics.get("train/img_per_sec"),
        sum(run.seconds.values()) / 60 or None,
        run.summary and run.summary.get("flops", 0) / 1e18,
    )
    cells = ("" if value is None else value for value in numbers)
    return (run.config.model.name, "" if score is None else score, name, *cells)


def _differences(runs_by_name: Mapping[str, RunRecord]) -> html.Html:
    """Returns a table with a row per config field that differs between runs."""
    configs = [config_lib.to_dict({"": run.config}) for run in runs_by_name.values()]
    first, *others = configs
    fields = {name for other in others for name in config_lib.differing_fields(first, other)}
    if not fields:
        return html.element("p", "All runs have the same config.")
    rows = [
        (name, *(to_json(config_value(config, name)) for config in configs))
        for name in sorted(fields)
    ]
    return html.table(rows, ("field", *runs_by_name))
