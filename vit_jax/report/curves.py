"""The courses of a run's metrics, as the page's plots take them."""

import dataclasses
import re
from collections.abc import Mapping

from vit_jax.report.run_record import Record

MOST_POINTS = 1500  # Of one chart; of longer ones the extremes of half as many stretches.
DIGITS = 6  # Significant ones of a number in the page.


@dataclasses.dataclass(frozen=True)
class Chart:
    """A plot: its title, which metrics it shows, and how its numbers are written."""

    title: str
    metrics: str  # A regular expression of their names.
    unit: str = "number"  # 'number', 'share' (1 is 100 %) or 'rate'.


CHARTS = (
    Chart("Loss", r"(train|val|dev)/loss"),
    Chart("Accuracy", r"(train|val|dev)/top1|fewshot/.*shot", "share"),
    Chart("Learning rate", r"train/lr"),
    Chart("Gradient norm", r"train/grad_norm"),
    Chart("Images a second", r"train/img_per_sec", "rate"),
    Chart("Where the time goes", r"train/(data_wait|device|host)", "share"),
)


def of_run(run: Record) -> list[dict]:
    """Each chart with a curve for every metric of the run; those without one are left out."""
    found = (_chart(chart, {name: (run, name) for name in _names(run, chart)}) for chart in CHARTS)
    return list(filter(None, found))


def of_runs(runs: Mapping[str, Record]) -> list[dict]:
    """A chart for each metric that there is, with a curve for every run."""
    found = []
    for chart in CHARTS:
        names = dict.fromkeys(name for run in runs.values() for name in _names(run, chart))
        for name in names:
            single = dataclasses.replace(chart, title=f"{chart.title}: {name}")
            found.append(_chart(single, {title: (run, name) for title, run in runs.items()}))
    return list(filter(None, found))


def _names(run: Record, chart: Chart) -> list[str]:
    """The run's metrics that a chart shows."""
    names = {name for record in run.history for name in record}
    return sorted(name for name in names if re.fullmatch(chart.metrics, name))


def _chart(chart: Chart, curves: Mapping[str, tuple[Record, str]]) -> dict | None:
    """A chart's numbers, of label -> run and metric; None where nothing is known."""
    lines = {label: _points(run.history, name) for label, (run, name) in curves.items()}
    lines = {label: line for label, line in lines.items() if line}
    if not lines:
        return None
    steps = sorted({step for line in lines.values() for step in line})
    if len(steps) > MOST_POINTS:
        size = -(-2 * len(steps) // MOST_POINTS)
        stretches = [steps[first : first + size] for first in range(0, len(steps), size)]
        lines = {label: _extremes(line, stretches) for label, line in lines.items()}
        steps = sorted({step for part in stretches for step in (part[0], part[-1])})
    series = [
        {"label": label, "values": [line.get(step) for step in steps]}
        for label, line in lines.items()
    ]
    return {"title": chart.title, "unit": chart.unit, "steps": steps, "series": series}


def _points(history: list[dict], name: str) -> dict[int, float]:
    """Step -> value of a metric."""
    known = {each["step"]: each[name] for each in history if each.get(name) is not None}
    return {step: float(f"{value:.{DIGITS}g}") for step, value in known.items()}


def _extremes(line: dict[int, float], stretches: list[list[int]]) -> dict[int, float]:
    """The lowest and highest value of each stretch, in their order, at its first and last step.

    Spikes are seen, and all curves of a chart have the same steps. A curve's last value is kept.
    """
    found, last = {}, max(line)
    for stretch in stretches:
        known = [step for step in stretch if step in line]
        if known:
            first, second = sorted([min(known, key=line.get), max(known, key=line.get)])
            found |= {stretch[0]: line[first], stretch[-1]: line[second]}
            if last in known:
                found[stretch[-1]] = line[last]
    return found
