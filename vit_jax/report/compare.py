"""The page that compares several runs."""

import collections
import dataclasses
import os
import pathlib
import statistics
import urllib.parse
from collections.abc import Mapping, Sequence

from vit_jax import config as config_lib
from vit_jax.atomic_io import ERRORS, to_json
from vit_jax.distributed.progress import format_duration
from vit_jax.report import curves as curves_lib
from vit_jax.report import sections as html
from vit_jax.report.page import PLOT_NOTE, config_value, flops_and_unit, state_badge
from vit_jax.report.run_record import REPORT_FILE, RunRecord, is_accuracy

HEADER = ("run", "state", "model", "score", "metric", "step", "images/s", "time", "compute")
SCORED_DATA = ("source", "dataset", "dir", "mix", "val_split", "val_fraction", "dev")
MAX_COLUMNS = 12  # Differing fields as columns of the table of runs.
RUNS_NOTE = (
    "Click a heading to sort, and a coloured square to hide a run in all plots. The run "
    "marked best has the best score by the same metric on the same data; runs that differ only in "
    "their seed are compared by their mean, in the second table."
)
SEEDS_NOTE = (
    "Runs that differ only in their seed: mean and sample standard deviation of their scores."
)


@dataclasses.dataclass(frozen=True)
class Seeds:
    """Runs that differ only in their seed.

    Attributes:
      title: the fields in which these runs differ from those of other groups.
      metric: name of the score of these runs.
      scores: name of a run -> score.
    """

    title: str
    metric: str
    scores: dict[str, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores.values())


def render_comparison_page(
    title: str, runs: Sequence[RunRecord], page: pathlib.Path, refresh: int | None = None
) -> str:
    """Returns the HTML page that compares several runs.

    Args:
      title: title of the page.
      runs: the runs, in the order to show them.
      page: path of the page, which its links to the pages of the runs are relative to.
      refresh: seconds after which the page loads itself again while a run is running.
    """
    runs_by_name = _shortest_names(runs)
    configs = {name: config_lib.to_dict({"": run.config}) for name, run in runs_by_name.items()}
    fields = _differing_fields(list(configs.values()))
    groups = group_by_seed(runs_by_name, configs, fields)
    best = best_runs(runs_by_name, groups)
    seeds_of = {name: group.title for group in groups for name in group.scores}
    axes = [
        {"label": name, **curves_lib.run_axes(run, seeds_of.get(name))}
        for name, run in runs_by_name.items()
    ]
    charts = curves_lib.comparison_charts(runs_by_name)
    is_running = any(run.state == "running" for run in runs)
    parts = [
        html.element("h1", title),
        html.element("p", f"{len(runs)} runs", class_="lead"),
        html.section(
            "Runs", _runs_table(runs_by_name, configs, fields, page, best), note=RUNS_NOTE
        ),
    ]
    if groups:
        parts.append(html.section("Seeds", _seeds_table(groups, best), note=SEEDS_NOTE))
    return html.document(
        title,
        *parts,
        html.section("Curves", html.plots(charts, "runs", axes), note=PLOT_NOTE),
        html.section("Config differences", _differences(configs, fields)),
        refresh=refresh if is_running else None,
    )


def _shortest_names(runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Returns name -> run with the shortest kind of name that is unique."""
    for name_of in (lambda run: run.name, lambda run: run.title, lambda run: str(run.folder)):
        runs_by_name = {name_of(run): run for run in runs}
        if len(runs_by_name) == len(runs) and all(runs_by_name):
            break
    return runs_by_name


def _runs_table(
    runs: Mapping[str, RunRecord],
    configs: Mapping[str, dict],
    fields: Sequence[str],
    page: pathlib.Path,
    best: set[str],
) -> html.Html:
    columns, rows = fields[:MAX_COLUMNS], []
    for place, (name, run) in enumerate(runs.items()):
        swatch = html.element("button", class_="swatch", data_run=str(place), title="hide this run")
        badge = _best_badge(name, best)
        link = html.element("span", swatch, _link(name, run, page), *badge, class_="run")
        values = (_field_cell(config_value(configs[name], field)) for field in columns)
        rows.append((link, *values, state_badge(run), *_cells(run)))
    titles = (html.element("span", _short(f, fields), title=f) for f in columns)
    header = (HEADER[0], *titles, *HEADER[1:])
    return html.table(rows, header, class_="sortable")


def _best_badge(name: str, best: set[str]) -> list[html.Html]:
    return [html.element("span", "best", class_="state finished")] if name in best else []


def _link(name: str, run: RunRecord, page: pathlib.Path) -> html.Html:
    path = os.path.relpath(run.folder / REPORT_FILE, page.parent)
    path = pathlib.PurePath(path).as_posix()
    return html.element("a", name, href=urllib.parse.quote(path, errors=ERRORS))


def _cells(run: RunRecord) -> tuple:
    """Returns the cells of a run from `model` in HEADER on; unknown values are empty."""
    name, score = run.main_score() or ("", None)
    seconds = sum(run.seconds.values()) or None
    flops = (run.summary and run.summary.get("flops")) or None
    speed = run.metrics.get("train/img_per_sec")
    return (
        run.config.model.name,
        html.Cell("" if score is None else format_score(name, score), score),
        name,
        run.step,
        html.Cell("" if speed is None else f"{speed:,.0f}", speed),
        html.Cell("" if seconds is None else format_duration(seconds), seconds),
        html.Cell("" if flops is None else " ".join(flops_and_unit(flops)), flops),
    )


def format_score(metric: str, value: float) -> str:
    """Returns an accuracy as a percentage with two decimals, a loss with four decimals."""
    return f"{100 * value:.2f} %" if is_accuracy(metric) else f"{value:.4f}"


def best_runs(runs: Mapping[str, RunRecord], groups: Sequence[Seeds] = ()) -> set[str]:
    """Returns the names with the best score of several by one metric on the same data.

    A name is that of a run, or for runs that differ only in their seed, which are compared by their
    mean, the names of all of them joined (see `_group_name`).
    """
    compared: dict[tuple, dict[str, float]] = collections.defaultdict(dict)
    group_of = {name: group for group in groups for name in group.scores}
    for name, run in runs.items():
        if found := run.main_score():
            metric, score = found
            if group := group_of.get(name):
                name, score = _group_name(group), group.mean
            data = tuple(repr(getattr(run.config.data, field)) for field in SCORED_DATA)
            probe = repr(run.config.probe) if metric.startswith("probe/") else ""
            compared[(metric, *data, probe)][name] = score if is_accuracy(metric) else -score
    return {max(scores, key=scores.get) for scores in compared.values() if len(scores) > 1}


def _group_name(group: Seeds) -> str:
    return "\n".join(group.scores)


def group_by_seed(
    runs: Mapping[str, RunRecord], configs: Mapping[str, dict], fields: Sequence[str]
) -> list[Seeds]:
    """Returns the groups of at least two runs that differ only in their seed."""
    names: dict[tuple, list[str]] = collections.defaultdict(list)
    others = [field for field in fields if field != "seed"]
    for name, run in runs.items():
        metric, _ = run.main_score() or ("", None)
        values = (_text(config_value(configs[name], field)) for field in others)
        names[(metric, *values)].append(name)
    groups = {key: members for key, members in names.items() if key[0] and len(members) > 1}
    differ = [i for i in range(len(others)) if len({key[i + 1] for key in groups}) > 1]
    return [
        Seeds(
            ", ".join(f"{_short(others[i], others)}={key[i + 1]}" for i in differ) or "all runs",
            key[0],
            {name: runs[name].main_score()[1] for name in members},
        )
        for key, members in groups.items()
    ]


def _seeds_table(groups: Sequence[Seeds], best: set[str]) -> html.Html:
    rows = []
    for group in groups:
        scores = list(group.scores.values())
        figures = (group.mean, statistics.stdev(scores), min(scores), max(scores))
        cells = (html.Cell(format_score(group.metric, value), value) for value in figures)
        title = html.element(
            "span", group.title, *_best_badge(_group_name(group), best), class_="run"
        )
        rows.append((title, len(scores), group.metric, *cells))
    header = ("runs", "seeds", "metric", "mean", "deviation", "lowest", "highest")
    return html.table(rows, header, class_="sortable")


def _differing_fields(configs: Sequence[dict]) -> list[str]:
    """Returns the config fields that differ between runs, sorted."""
    first, *others = configs
    return sorted({name for other in others for name in config_lib.differing_fields(first, other)})


def _short(field: str, fields: Sequence[str]) -> str:
    """Returns the last part of a field's name, or the whole name if it is not unique."""
    last = field.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in fields) == 1 else field


def _field_cell(value: object) -> object:
    if value is None:
        return ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return html.Cell(to_json(value), value) if is_number else _text(value)


def _text(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) and value else to_json(value)


def _differences(configs: Mapping[str, dict], fields: Sequence[str]) -> html.Html:
    """Returns a table with a row per config field that differs between runs."""
    if not fields:
        return html.element("p", "All runs have the same config.")
    rows = [
        (name, *(to_json(config_value(config, name)) for config in configs.values()))
        for name in fields
    ]
    return html.table(rows, ("field", *configs))
