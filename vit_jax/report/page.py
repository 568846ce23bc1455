"""The page of one run, from its headline to its environment."""

import functools
import json
import math
import os
import pathlib
import re
import shlex

from vit_jax import config as config_lib
from vit_jax.checkpoints import workdir
from vit_jax.distributed.progress import format_duration
from vit_jax.report import curves
from vit_jax.report import sections as h
from vit_jax.report.inputs import first_inputs
from vit_jax.report.run_record import Record
from vit_jax.tables import results
from vit_jax.weights import load

TIMES = {  # What the seconds of each book were spent with, and a colour of page.js.
    "start": ("start and compilation", "#999999"),
    "data": ("waiting for data", "#D55E00"),
    "train": ("training", "#0072B2"),
    "eval": ("evaluation", "#009E73"),
    "save": ("saving", "#E69F00"),
}


def of_run(run: Record, with_model: bool = True) -> str:
    """The page of one run.

    Args:
      with_model: show what the model makes of some examples, too, for which it is run.
    """
    parts = [_head(run), _command(run), _curves(run), _inputs(run)]
    if with_model:
        from vit_jax.report import model_sections  # With matplotlib: half a second.

        parts += model_sections.sections(run)
    else:
        parts.append(_left_out(run))
    return h.page(run.title, *parts, _parameters(run), _config(run), _environment(run))


HOW_TO_ZOOM = "Drag over a plot to zoom, double-click to go back; click a name to hide its curve."


def state(run: Record) -> h.Raw:
    """'finished', 'running' or 'stopped', as a badge."""
    return h.element("span", run.state, class_=f"state {run.state}")


def field(config: dict, name: str) -> object:
    """The value of a dotted field of a config's dictionary."""
    return functools.reduce(lambda section, part: section[part], name.split("."), config)


def _head(run: Record) -> h.Raw:
    data = run.config.data
    words = " ".join(filter(None, (data.source, data.dataset, data.dir)))
    cards = (
        h.element("div", h.element("b", value), h.element("span", name), class_="card")
        for value, name in _cards(run)
    )
    return h.element(
        "header",
        h.element("h1", run.title, state(run)),
        h.element("p", f"{run.config.model.name} on {words}, {data.split}", class_="lead"),
        h.element("div", *cards, class_="cards"),
    )


def _cards(run: Record) -> list[tuple[str, str]]:
    """The key figures and what they are."""
    cards, scores = [], run.scores
    if (headline := run.headline()) is not None:
        name, value = headline
        shown = f"{100 * value:.2f} %" if name.endswith("top1") else f"{value:.4f}"
        n = scores.get(f"{name.partition('/')[0]}/n")
        cards.append((shown, f"{name}, n={n:,}" if n else name))
    of = f"of {run.total_steps:,} steps" if run.total_steps else "steps"
    cards.append((f"{run.step:,}", of))
    cards.append((f"{run.config.batch_size:,}", "images a step"))
    if scores.get("train/img_per_sec"):
        cards.append((f"{scores['train/img_per_sec']:,.0f}", "images a second"))
    if run.seconds:
        cards.append((format_duration(sum(run.seconds.values())), "in all"))
    if run.summary:
        cards.append((f"{run.summary.get('parameters', 0) / 1e6:,.2f} M", "parameters"))
        cards.append(_flops(run.summary.get("flops", 0)))
    return cards


def _flops(flops: float) -> tuple[str, str]:
    """A number of them, and its unit."""
    units = {"exaFLOPs": 1e18, "petaFLOPs": 1e15, "teraFLOPs": 1e12, "gigaFLOPs": 1e9}
    unit = next((unit for unit, size in units.items() if flops >= size), "gigaFLOPs")
    return f"{flops / units[unit]:,.4g}", unit


def _command(run: Record) -> h.Raw:
    """What to type to have another run like it."""
    folder, init = run.folder, run.config.init
    again = [f"--config={folder}/{workdir.CONFIG}", f"--workdir={_beside(folder)}"]
    if before := init.stage and results.stage_beside(folder, init.stage):
        again += ["--config.init.stage=", f"--config.init.path={_as_given(before, folder)}"]
    teacher = run.config.task.teacher
    if before := teacher and results.stage_beside(folder, teacher):
        again += [f"--config.task.teacher={_as_given(before, folder)}"]
    line = " \\\n  ".join(["python -m vit_jax.main", *map(shlex.quote, again)])
    note = f"{workdir.CONFIG} holds every field of this run, those of the command line included."
    if revision := (run.summary or {}).get("git_revision"):
        note += f" The code was that of commit {revision}."
    return h.section("Repeat it", h.element("pre", line), note=note)


def _beside(folder: pathlib.Path) -> str:
    """A place for another run like one: beside the whole workdir, whose runs are counted."""
    place = pathlib.Path(os.path.abspath(folder))
    tops = [top for top in place.parents[:3] if (top / workdir.CONFIG).is_file()]
    top = tops[-1] if tops else place
    words = "_".join([top.name, *place.relative_to(top).parts, "again"])
    return _as_given(top.parent / words, folder)


def _as_given(place: pathlib.Path, folder: pathlib.Path) -> str:
    """A place as seen from here, if the run's folder is."""
    return str(place) if folder.is_absolute() else os.path.relpath(place)


def _curves(run: Record) -> h.Raw:
    found = curves.of_run(run)
    if not found:
        return h.section("Curves", note="No step has been logged yet.")
    return h.section("Curves", h.plots(found, "run"), note=HOW_TO_ZOOM)


def _inputs(run: Record) -> h.Raw:
    def content() -> list:
        shown = first_inputs(run.config)
        return [h.grid(h.picture(image, label, label) for label, image in shown)]

    data = run.config.data
    note = "The first training images, as the first step has them."
    if data.mixup or data.cutmix:
        note += " Mixup and CutMix come after this."
    return h.attempt("Inputs", content, note)


def _left_out(run: Record) -> h.Raw:
    line = shlex.join(["python", "-m", "vit_jax.main", "report", str(run.folder)])
    note = "Predictions, confusion, attention and position embeddings are added by:"
    return h.section("What the model sees", h.element("pre", line), note=note)


def _parameters(run: Record) -> h.Raw:
    def content() -> list:
        shapes = load.load(run.folder).weights.shapes
        parts: dict[str, list[int]] = {}
        for name, shape in sorted(shapes.items(), key=_by_number):
            parts.setdefault("/".join(name.split("/")[:2]), []).append(math.prod(shape))
        total = sum(map(sum, parts.values()))
        rows = [(part, len(sizes), sum(sizes)) for part, sizes in parts.items()]
        whole = h.table([*rows, ("all", len(shapes), total)], ("part", "arrays", "parameters"))
        each = [
            (name, " x ".join(map(str, shape)) or "1", math.prod(shape))
            for name, shape in sorted(shapes.items(), key=_by_number)
        ]
        listed = h.table(each, ("array", "shape", "parameters"))
        return [whole, h.element("details", h.element("summary", "every array"), listed)]

    return h.attempt("Parameters", content)


def _by_number(item: tuple[str, object]) -> list:
    """What sorts layer 2 before layer 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", item[0])]


def _config(run: Record) -> h.Raw:
    values = config_lib.to_dict({"": run.config})
    default = config_lib.to_dict({"": type(run.config)()})
    changed = config_lib.differing_fields(default, values)
    rows = [
        (name, json.dumps(field(values, name)), json.dumps(field(default, name)))
        for name in changed
    ]
    whole = h.element("pre", json.dumps(values, indent=2))
    return h.section(
        "Config",
        h.table(rows, ("field", "value", "default")),
        h.element("details", h.element("summary", "every field"), whole),
    )


def _environment(run: Record) -> h.Raw:
    source = run.summary or run.meta
    rows = list(source.get("versions", {}).items())
    if devices := source.get("devices"):
        rows.append(("devices", f"{len(devices)}: {', '.join(devices[:8])}"))
    parts = [h.table(rows)] if rows else [h.element("p", "Nothing was saved yet.")]
    return h.section("Environment", *_times(run.seconds), *parts)


def _times(seconds: dict[str, float]) -> list[h.Raw]:
    """A bar of what the time went into, and its numbers."""
    if not seconds:
        return []
    known = [
        (*TIMES[book], spent, spent / sum(seconds.values())) for book, spent in seconds.items()
    ]
    pieces = (
        h.element("span", style=f"width: {share:.2%}; background: {colour}", title=name)
        for name, colour, _, share in known
    )
    rows = (
        (
            h.element("span", "\u25a0", style=f"color: {colour}"),
            name,
            f"{spent:,.1f} s",
            f"{share:.1%}",
        )
        for name, colour, spent, share in known
    )
    return [h.element("div", *pieces, class_="bar"), h.table(rows)]
