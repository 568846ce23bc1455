"""Curves of logged metrics over steps, as data of the plots in a page."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from vit_jax.report.run_record import RunRecord

MAX_POINTS = 1500  # Per chart; longer curves are reduced to the extremes of intervals.
MAX_TIMES = 300  # Per run; seconds between them are interpolated.
SIGNIFICANT_DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Chart:
    """A plot of some metrics.

    Attributes:
      title: title of the plot.
      metrics: regular expression that the names of the metrics match.
      unit: format of the values: 'number', 'share' (1 is shown as 100 %) or 'rate'.
      smooths: False for values that are not noisy.
    """

    title: str
    metrics: str
    unit: str = "number"
    smooths: bool = True


CHARTS = (
    Chart("Loss", r"(train|val|dev)/loss"),
    Chart("Accuracy", r"(train|val|dev)/top1|fewshot/.*shot", "share"),
    Chart("Learning rate", r"train/lr", smooths=False),
    Chart("Gradient norm", r"train/grad_norm"),
    Chart("Images per second", r"train/img_per_sec", "rate"),
    Chart("Fraction of step time", r"train/(data_wait|device|host)", "share"),
)
FEATURE_CHARTS = (
    Chart("Accuracy of frozen features", r"probe/(knn|linear)", "share", smooths=False),
    Chart("Rank of the features", r"probe/rankme", smooths=False),
    Chart("Deviation of the features", r"(probe|val|dev)/feature_std", smooths=False),
    Chart("Entropy of the targets", r"(train|val|dev)/(teacher|mean)_entropy"),
    Chart("Divergence of the student", r"train/kl"),
    Chart("Terms of the loss", r"train/(class_loss|patch_loss|koleo)"),
    Chart("Norm of the centre", r"train/center_norm"),
    Chart("Prototypes in use", r"(train|val|dev)/prototypes_used"),
)


def run_charts(run: RunRecord, charts: Sequence[Chart] = CHARTS) -> list[dict]:
    """Returns the charts of one run, with a curve per metric; charts without data are left out."""
    plots = (
        _chart_data(chart, {name: (run, name) for name in _metric_names(run, chart)})
        for chart in charts
    )
    return list(filter(None, plots))


def run_axes(run: RunRecord, seeds: str | None = None) -> dict:
    """Returns what page.js needs to draw the curves of a run over epochs and over time.

    Seconds are those of training, without start, evaluation and saving, from the logged speed.

    Args:
      seeds: title of the runs that differ from this one only in their seeds; None if there is none.
    """
    steps, seconds = [0], [0.0]
    for line in run.history:
        if speed := line.get("train/img_per_sec"):
            passed = (line["step"] - steps[-1]) * run.config.batch_size / speed
            steps.append(line["step"])
            seconds.append(round(seconds[-1] + passed, 3))
    every = -(-len(steps) // MAX_TIMES)
    kept = [*range(0, len(steps) - 1, every), len(steps) - 1]
    return {
        "epochs": run.config.batch_size / run.num_examples if run.num_examples else None,
        "steps": [steps[i] for i in kept],
        "seconds": [seconds[i] for i in kept],
        "seeds": seeds,
    }


def comparison_charts(runs: Mapping[str, RunRecord]) -> list[dict]:
    """Returns a chart per metric, with a curve per run.

    The series of a run have its place in `runs`, which determines their colour.

    Args:
      runs: label of a curve -> run.
    """
    charts = []
    for chart in (*CHARTS, *FEATURE_CHARTS):
        names = dict.fromkeys(name for run in runs.values() for name in _metric_names(run, chart))
        for name in names:
            single = dataclasses.replace(chart, title=f"{chart.title}: {name}")
            charts.append(_chart_data(single, {label: (run, name) for label, run in runs.items()}))
    places = {label: place for place, label in enumerate(runs)}
    for chart in filter(None, charts):
        for series in chart["series"]:
            series["run"] = places[series["label"]]
    return list(filter(None, charts))


def _metric_names(run: RunRecord, chart: Chart) -> list[str]:
    names = {name for record in run.history for name in record}
    return sorted(name for name in names if re.fullmatch(chart.metrics, name))


def _chart_data(chart: Chart, curves: Mapping[str, tuple[RunRecord, str]]) -> dict | None:
    """Returns the data of a chart as page.js reads it, or None if no value was logged.

    Args:
      curves: label -> run and name of the metric.
    """
    lines = {label: _values_by_step(run.history, name) for label, (run, name) in curves.items()}
    lines = {label: line for label, line in lines.items() if line}
    if not lines:
        return None
    steps = sorted({step for line in lines.values() for step in line})
    if len(steps) > MAX_POINTS:
        size = -(-2 * len(steps) // MAX_POINTS)
        intervals = [steps[first : first + size] for first in range(0, len(steps), size)]
        lines = {label: _extremes(line, intervals) for label, line in lines.items()}
        steps = sorted({step for interval in intervals for step in (interval[0], interval[-1])})
    series = [
        {"label": label, "values": [line.get(step) for step in steps]}
        for label, line in lines.items()
    ]
    fields = {"title": chart.title, "unit": chart.unit, "smooths": chart.smooths}
    return {**fields, "steps": steps, "series": series}


def _values_by_step(history: list[dict], name: str) -> dict[int, float]:
    values = {line["step"]: line[name] for line in history if line.get(name) is not None}
    return {step: float(f"{value:.{SIGNIFICANT_DIGITS}g}") for step, value in values.items()}


def _extremes(line: dict[int, float], intervals: list[list[int]]) -> dict[int, float]:
    """Returns the minimum and maximum of each interval, at its first and last step.

    They are in the order in which they occur. Spikes remain visible, all curves of a chart have
    the same steps, and the last value of a curve is kept.
    """
    extremes, last = {}, max(line)
    for interval in intervals:
        logged = [step for step in interval if step in line]
        if logged:
            first, second = sorted([min(logged, key=line.get), max(logged, key=line.get)])
            extremes |= {interval[0]: line[first], interval[-1]: line[second]}
            if last in logged:
                extremes[interval[-1]] = line[last]
    return extremes
