"""The page of one run."""

import datetime
import functools
import itertools
import math
import os
import pathlib
import re
import shlex

from vit_jax import config as config_lib
from vit_jax.atomic_io import to_json
from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.local_copy import find
from vit_jax.distributed.progress import format_duration
from vit_jax.models import titles
from vit_jax.report import curves, features
from vit_jax.report import sections as html
from vit_jax.report.inputs import first_training_inputs
from vit_jax.report.run_record import RunRecord, is_accuracy
from vit_jax.tables import results
from vit_jax.training import attempts
from vit_jax.weights import load

TIME_TITLES = {  # Part of the time -> title, colour of page.js.
    "train": ("training", "#0072B2"),
    "start": ("start", "#999999"),
    "compile": ("compilation", "#56B4E9"),
    "data": ("waiting for data", "#D55E00"),
    "save": ("saving", "#E69F00"),
    "eval": ("evaluation", "#009E73"),
    "lost": ("lost training", "#CC79A7"),
    "down": ("down", "#8C564B"),
}
GOODPUT_NOTE = (
    "Goodput is the time of the training steps that count, divided by the time since the start of "
    "the first process. Lost training was repeated after a restart. A run is down from the last "
    "activity of a process to the start of the next one."
)
PLOT_NOTE = (
    "Drag over a plot to zoom in, double-click to reset the zoom; click a name to hide its curve. "
    "Time is that of training, without start, evaluation and saving."
)


def render_run_page(run: RunRecord, with_model: bool = True, refresh: int | None = None) -> str:
    """Returns the HTML page of one run.

    Args:
      with_model: include predictions, attention and position embeddings, for which the model is
        applied to examples.
      refresh: seconds after which the page of a running run loads itself again.
    """
    parts = [_header(run), _command(run), _curves(run)]
    parts += filter(None, [features.features_section(run)])
    parts.append(_inputs(run))
    if with_model:
        from vit_jax.report import model_sections  # Imports matplotlib, which takes half a second.

        parts += model_sections.model_sections(run)
    else:
        parts.append(_command_for_model_sections(run))
    parts += [_goodput(run), _parameters(run), _config(run), _environment(run)]
    refresh = refresh if run.state == "running" else None
    return html.document(run.title, *parts, refresh=refresh)


def state_badge(run: RunRecord) -> html.Html:
    """Returns 'finished', 'running' or 'stopped' as a badge."""
    return html.element("span", run.state, class_=f"state {run.state}")


def config_value(config: dict, name: str) -> object:
    """Returns the value of a dotted field name of a config dictionary, None for an unset option."""
    return functools.reduce(lambda section, part: section.get(part), name.split("."), config)


def _header(run: RunRecord) -> html.Html:
    data = run.config.data
    model = titles.described(run.config.model, data.size)
    source = " ".join(filter(None, (data.source, data.dataset, data.dir)))
    cards = (
        html.element("div", html.element("b", value), html.element("span", name), class_="card")
        for value, name in _cards(run)
    )
    return html.element(
        "header",
        html.element("h1", run.title, state_badge(run)),
        html.element("p", f"{model} on {source}, {data.split}", class_="lead"),
        html.element("div", *cards, class_="cards"),
    )


def _cards(run: RunRecord) -> list[tuple[str, str]]:
    """Returns the most important numbers of a run, each with its name."""
    cards, metrics = [], run.metrics
    scores = dict(filter(None, [run.main_score()]))
    scores |= {name: metrics[name] for name in ("probe/knn",) if metrics.get(name) is not None}
    for name, value in scores.items():
        text = f"{100 * value:.2f} %" if is_accuracy(name) else f"{value:.4f}"
        n = metrics.get(f"{name.partition('/')[0]}/n")
        cards.append((text, f"{name}, n={n:,}" if n else name))
    total = f"of {run.total_steps:,} steps" if run.total_steps else "steps"
    cards.append((f"{run.step:,}", total))
    cards.append((f"{run.config.batch_size:,}", "batch size"))
    if metrics.get("train/img_per_sec"):
        cards.append((f"{metrics['train/img_per_sec']:,.0f}", "images/s"))
    if run.seconds:
        cards.append((format_duration(sum(run.seconds.values())), "total time"))
    if run.summary:
        parameters = run.summary.get("parameters", 0)
        text = f"{parameters:,}" if parameters < 1e6 else f"{parameters / 1e6:,.2f} M"
        cards.append((text, "parameters"))
        cards.append(flops_and_unit(run.summary.get("flops", 0)))
    return cards


def flops_and_unit(flops: float) -> tuple[str, str]:
    """Returns a number of FLOPs in a unit in which it is at least 1, and the unit."""
    units = {
        f"{prefix}FLOPs": 10**power
        for prefix, power in (("exa", 18), ("peta", 15), ("tera", 12), ("giga", 9), ("mega", 6))
    }
    unit = next((unit for unit, size in units.items() if flops >= size), "megaFLOPs")
    return f"{flops / units[unit]:,.4g}", unit


def _command(run: RunRecord) -> html.Html:
    """Returns the command that repeats the run in a new workdir."""
    folder, init = run.folder, run.config.init
    flags = [f"--config={folder}/{workdir.CONFIG}", f"--workdir={_new_workdir(folder)}"]
    if stage := init.stage and results.find_stage_folder(folder, init.stage):
        flags += ["--config.init.stage=", f"--config.init.path={_relative_like(stage, folder)}"]
    teacher = run.config.task.teacher
    if stage := teacher and results.find_stage_folder(folder, teacher):
        flags += [f"--config.task.teacher={_relative_like(stage, folder)}"]
    command = " \\\n  ".join(["python -m vit_jax.main", *map(shlex.quote, flags)])
    note = (
        f"This command trains the run again. {workdir.CONFIG} contains all fields of its config, "
        "including those set on the command line."
    )
    if revision := (run.summary or {}).get("git_revision"):
        note += f" The run used the code of commit {revision}."
    return html.section("Reproduce", html.element("pre", command), note=note)


def _new_workdir(folder: pathlib.Path) -> str:
    """Returns a workdir for a repeated run: beside the top workdir, whose runs tables count."""
    path = pathlib.Path(os.path.abspath(folder))
    workdirs = [parent for parent in path.parents[:3] if (parent / workdir.CONFIG).is_file()]
    top = workdirs[-1] if workdirs else path
    name = "_".join([top.name, *path.relative_to(top).parts, "again"])
    if (copy := find(top)) is not None:
        return f"{copy.store.url.rpartition('/')[0]}/{name}"
    return _relative_like(top.parent / name, folder)


def _relative_like(path: pathlib.Path, folder: pathlib.Path) -> str:
    """Returns a path relative to the current folder if the run's folder is relative."""
    return str(path) if folder.is_absolute() else os.path.relpath(path)


def _curves(run: RunRecord) -> html.Html:
    charts = curves.run_charts(run)
    if not charts:
        return html.section("Curves", note="No step has been logged yet.")
    plots = html.plots(charts, "run", [curves.run_axes(run)])
    return html.section("Curves", plots, note=PLOT_NOTE)


def _inputs(run: RunRecord) -> html.Html:
    def content() -> list:
        inputs = first_training_inputs(run.config)
        return [html.grid(html.image_figure(image, label, label) for label, image in inputs)]

    data = run.config.data
    note = "The first training images as augmented in step 1."
    if data.mixup or data.cutmix:
        note += " Mixup and CutMix, which follow, are not shown."
    return html.section_or_error("Inputs", content, note)


def _command_for_model_sections(run: RunRecord) -> html.Html:
    command = shlex.join(["python", "-m", "vit_jax.main", "report", str(run.folder)])
    note = (
        "To add predictions, the confusion matrix, attention and position embeddings, which need "
        "the model, run:"
    )
    return html.section("Model outputs", html.element("pre", command), note=note)


def _parameters(run: RunRecord) -> html.Html:
    def content() -> list:
        shapes = load.load(run.folder).weights.shapes
        arrays = sorted(shapes.items(), key=_natural_order)
        sizes: dict[str, list[int]] = {}
        for name, shape in arrays:
            sizes.setdefault("/".join(name.split("/")[:2]), []).append(math.prod(shape))
        rows = [(module, len(part), sum(part)) for module, part in sizes.items()]
        total = ("total", len(shapes), sum(map(sum, sizes.values())))
        array_rows = [
            (name, " x ".join(map(str, shape)) or "1", math.prod(shape)) for name, shape in arrays
        ]
        all_arrays = html.table(array_rows, ("array", "shape", "parameters"))
        return [
            html.table([*rows, total], ("module", "arrays", "parameters")),
            html.element("details", html.element("summary", "All arrays"), all_arrays),
        ]

    return html.section_or_error("Parameters", content)


def _natural_order(item: tuple[str, object]) -> list:
    """Sort key of (name, value) that puts layer 2 before layer 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", item[0])]


def _config(run: RunRecord) -> html.Html:
    values = config_lib.to_dict({"": run.config})
    default = config_lib.to_dict({"": type(run.config)()})
    rows = [
        (name, to_json(config_value(values, name)), to_json(config_value(default, name)))
        for name in config_lib.differing_fields(default, values)
    ]
    all_fields = html.element("pre", to_json(values, indent=2))
    return html.section(
        "Config",
        html.table(rows, ("field", "value", "default")),
        html.element("details", html.element("summary", "All fields"), all_fields),
        note="Fields that differ from their default.",
    )


def _environment(run: RunRecord) -> html.Html:
    source = run.summary or run.meta
    rows = list(source.get("versions", {}).items())
    if devices := source.get("devices"):
        rows.append(("devices", f"{len(devices)}: {', '.join(devices[:8])}"))
    parts = [html.table(rows)] if rows else [html.element("p", "No checkpoint has been saved yet.")]
    return html.section("Environment", *parts)


def _goodput(run: RunRecord) -> html.Html:
    """Returns the section with the time by part, and the attempts."""
    if not run.attempts:  # Of an older version.
        if not run.seconds:
            return html.section("Goodput", note="No time has been recorded yet.")
        return html.section("Goodput", *_time_bar(run.seconds))
    total = attempts.goodput_of(run.attempts)
    parts = attempts.parts_of(run.attempts)
    up = f", {total['fraction_up']:.1%} without the time down" if total["seconds"]["down"] else ""
    lead = f"Goodput {total['fraction']:.1%} of {format_duration(total['wall'])}{up}."
    rows = [_attempt_row(*each) for each in zip(itertools.count(1), run.attempts, parts)]
    if run.state == "running":
        rows[-1] = (*rows[-1][:-1], "running")
    header = ("attempt", "start (UTC)", "steps", "time", "goodput", "lost", "down after", "end")
    return html.section(
        "Goodput",
        html.element("p", lead),
        *_time_bar(total["seconds"]),
        html.table(rows, header),
        note=GOODPUT_NOTE,
    )


def _attempt_row(number: int, attempt: attempts.Attempt, parts: dict[str, float]) -> tuple:
    """Returns the cells of an attempt."""
    up = sum(attempt.seconds.values())
    start = datetime.datetime.fromtimestamp(attempt.started, datetime.UTC)
    is_any = attempt.step > attempt.resumed_step
    return (
        number,
        f"{start:%Y-%m-%d %H:%M:%S}",
        f"{attempt.resumed_step + 1:,} to {attempt.step:,}" if is_any else "none",
        html.Cell(format_duration(up), up),
        html.Cell(f"{parts['train'] / up:.1%}" if up else "", parts["train"]),
        html.Cell(format_duration(parts["lost"]), parts["lost"]),
        html.Cell(format_duration(parts["down"]), parts["down"]),
        attempt.end or "killed",
    )


def _time_bar(seconds: dict[str, float]) -> list[html.Html]:
    """Returns a bar and a table of the time by part."""
    total = sum(seconds.values())
    shares = [
        (title, colour, seconds[part], seconds[part] / total)
        for part, (title, colour) in TIME_TITLES.items()
        if seconds.get(part)
    ]
    segments = (
        html.element("span", style=f"width: {share:.2%}; background: {colour}", title=title)
        for title, colour, _, share in shares
    )
    rows = (
        (
            html.element("span", "\u25a0", style=f"color: {colour}"),
            title,
            f"{spent:,.1f} s",
            f"{share:.1%}",
        )
        for title, colour, spent, share in shares
    )
    label = ", ".join(f"{title} {share:.1%}" for title, _, _, share in shares)
    bar = html.element("div", *segments, class_="bar", role="img", aria_label=label)
    return [bar, html.table(rows)]
