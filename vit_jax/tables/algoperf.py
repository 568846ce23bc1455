"""AlgoPerf's ImageNet-ViT: runs beside the band of five published runs of its JAX baseline."""

import json
import pathlib
from collections.abc import Sequence

from vit_jax.atomic_io import to_json
from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.local_copy import open_folder
from vit_jax.errors import ConfigError
from vit_jax.tables.results import run_folders
from vit_jax.text import markdown_table
from vit_jax.training import metrics

BAND = pathlib.Path(__file__).with_suffix(".json")
ROUNDING = 1e-5  # The band has five decimals.
Curve = dict[int, dict[str, float]]  # Step -> metric -> value.


def read_band() -> dict:
    """Returns the published band.

    `evaluations` and `batches` have the lowest and highest value of each metric at some steps, and
    `targets` the steps at which the runs reached the targets. Batch N is that of update N + 1.
    """
    return json.loads(BAND.read_text(encoding="utf-8"))


def format_band(folders: Sequence[str] = (), as_json: bool = False) -> str:
    """Returns the band, and the runs in some workdirs beside it, as Markdown or JSON.

    Raises:
      ConfigError: a workdir contains no run.
    """
    band, runs = read_band(), read_runs(folders)
    tables = {
        "evaluations": _compare(band["evaluations"], runs),
        "batches": _compare(band["batches"], runs, first=1),
        "targets": _target_rows(band["targets"], runs),
    }
    if as_json:
        return to_json({"source": band["source"], "method": band["method"]} | tables, indent=2)
    texts = [markdown_table([_shown(row) for row in rows]) for rows in tables.values() if rows]
    return "\n\n".join([*texts, f"Band: {band['method']}. Source: {band['source']}."])


def read_runs(folders: Sequence[str]) -> dict[str, Curve]:
    """Returns the metrics of each run in some workdirs, finished or not, by folder and step.

    Scores in files `eval-SPLIT.json` of a run have the name SPLIT/METRIC.
    """
    runs = {}
    for folder in (open_folder(folder, ConfigError) for folder in folders):
        found = {
            str(path): _read_curve(path)
            for path in run_folders(folder)
            if (path / metrics.FILE).is_file()
        }
        if not found:
            raise ConfigError(f"{folder}: no run with {metrics.FILE} in this folder.")
        runs |= found
    return runs


def _read_curve(folder: pathlib.Path) -> Curve:
    curve = {record["step"]: record for record in metrics.read(folder)}
    for path in sorted(folder.rglob("eval-*.json")):
        report = workdir.read_json(path) or {}
        step = pathlib.Path(report.get("checkpoint", "")).name
        if step.isdecimal():
            split = report.get("split")
            scores = {f"{split}/{name}": report.get(name) for name in ("top1", "loss")}
            curve[int(step)] = curve.get(int(step), {}) | scores
    return curve


def _compare(published: Sequence[dict], runs: dict[str, Curve], first: int = 0) -> list[dict]:
    """Returns a row per step with the band, and one per run that has a metric of that step.

    If there are runs, a step that none of them has is left out.

    Args:
      first: step of a run that is compared with step 0 of the band.
    """
    rows = []
    for row in published:
        step = row["step"]
        bounds = {name: pair for name, pair in row.items() if name != "step"}
        ours = {}
        for run, curve in runs.items():
            values = curve.get(step or first, {})
            if any(values.get(name) is not None for name in bounds):
                ours[run] = {name: _judge(values.get(name), bounds[name]) for name in bounds}
        if ours or not runs:
            rows.append({"step": step, "run": "published"} | bounds)
            rows += [{"step": step, "run": run} | judged for run, judged in ours.items()]
    return rows


def _judge(value: float | None, bounds: Sequence[float]) -> dict | None:
    if value is None:
        return None
    is_inside = bounds[0] - ROUNDING <= value <= bounds[1] + ROUNDING
    return {"value": value, "position": "inside" if is_inside else "outside"}


def _target_rows(targets: Sequence[dict], runs: dict[str, Curve]) -> list[dict]:
    """Returns a row per target: the steps of the published runs, and the first step of each run."""
    rows = []
    for target in targets:
        row = {"target": f"{target['metric']} of {100 * target['target']:.2f} %"}
        row["published"] = target["steps"]
        for run, curve in runs.items():
            reached = (
                step
                for step in sorted(curve)
                if (curve[step].get(target["metric"]) or 0) >= target["target"]
            )
            row[run] = next(reached, None)
        rows.append(row)
    return rows


def _shown(row: dict) -> dict:
    """Returns a row with texts: accuracies in percent, losses with four decimals."""

    def shown(name: str, value) -> str | None:
        if isinstance(value, dict):
            return f"{shown(name, value['value'])} {value['position']}"
        if isinstance(value, Sequence) and not isinstance(value, str):
            return " to ".join(shown(name, each) for each in value)
        if isinstance(value, float):
            return f"{100 * value:.2f}" if name.endswith("/top1") else f"{value:.4f}"
        return f"{value:,}" if isinstance(value, int) else value

    titles = {name: f"{name} %" if name.endswith("/top1") else name for name in row}
    return {titles[name]: shown(name, value) for name, value in row.items()}
