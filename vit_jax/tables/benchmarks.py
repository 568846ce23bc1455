"""What the verb `benchmark` measured, as tables: ours beside the peer's."""

import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from vit_jax.errors import ConfigError, DataError
from vit_jax.markdown import markdown

# Fields of a record whose equality makes two measurements comparable.
CELL = ("run", "model", "batch", "dtype", "mode", "image_size", "mesh", "options")
TITLE = CELL[1:5]  # Always columns; the others where they differ, else they stand above the table.
OURS = "vit_jax"


def read(file: str) -> list[dict]:
    """The records of a file that `benchmark` wrote; DataError names a line that is none."""
    try:
        lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["contestant"], record["step_seconds"][0], [record[name] for name in CELL]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DataError(f"{file}, line {number}: no record of the verb benchmark.") from error
        records.append(record)
    if not records:
        raise DataError(f"{file} holds no records; `benchmark --out={file}` adds some.")
    return records


def of_files(files: Sequence[str], as_json: bool = False) -> str:
    """The tables of everything that stands in the files."""
    return render([record for file in files for record in read(file)], as_json)


def render(records: Sequence[dict], as_json: bool = False) -> str:
    """The comparison, where there is a peer, and everything measured; Markdown or JSON."""
    found = summaries(records)
    compared = comparison(found)
    if as_json:
        return json.dumps({"comparison": compared, "measured": found}, indent=2)
    parts = [_caption(records)]
    if compared:
        parts.append(_markdown(compared, _changing(compared)))
    parts.append(_markdown(_told(found), _changing(found)))
    return "\n\n".join(parts)


def summaries(records: Iterable[dict]) -> list[dict]:
    """A row for each cell and contestant, over all its rounds, with the cell's own fields first.

    Speeds are those of the median and of the fastest step. "MFU %" is of the best peak that was
    measured in the run, so that one peak serves all contestants.
    """
    groups: dict[tuple, list[dict]] = {}
    peaks: dict[tuple, float] = {}
    for record in records:
        groups.setdefault((*_cell(record), record["contestant"]), []).append(record)
        kind = record["run"], record["dtype"]
        peaks[kind] = max(peaks.get(kind, 0), record.get("peak_flops") or 0)
    rows = []
    for (*cell, contestant), group in groups.items():
        row = dict(zip(CELL, cell)) | {"contestant": contestant}
        rows.append(row | _figures(group, peaks[row["run"], row["dtype"]]))
    return rows


def _cell(record: dict) -> tuple:
    values = (record[name] for name in CELL)
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _figures(group: list[dict], peak_flops: float) -> dict:
    """Of the measurements of one contestant in one cell."""
    seconds = [each for record in group for each in record["step_seconds"]]
    batch, median = group[0]["batch"], statistics.median(seconds)
    flops = group[0]["step_flops"] / median
    cold = [record for record in group if record["cache"] != "warm"]
    warm = [record for record in group if record["cache"] == "warm"]
    return {
        "img/s": batch / median,
        "best": batch / min(seconds),
        "ms/step": 1000 * median,
        "TFLOP/s": flops / 1e12,
        "MFU %": 100 * flops / peak_flops if peak_flops else None,
        "peak GB": max(record["peak_bytes"] for record in group) / 1e9,
        "compile s": _median(cold, "compile_seconds"),
        "compile s, warm": _median(warm, "compile_seconds"),
        "first step s": _median(cold, "start_seconds"),
        "first step s, warm": _median(warm, "start_seconds"),
        "env": " ".join(f"{name}={value}" for name, value in group[0]["env"].items()),
    }


def _median(records: list[dict], name: str) -> float | None:
    values = [record[name] for record in records if record[name] is not None]
    return statistics.median(values) if values else None


def comparison(found: Sequence[dict]) -> list[dict]:
    """A row for each cell that a peer was timed in: img/s, and ours over the peer's fastest."""
    names = list(dict.fromkeys(row["contestant"] for row in found))
    ours = [name for name in names if name.startswith(OURS)]
    cells: dict[tuple, dict[str, float]] = {}
    for row in found:
        cells.setdefault(_cell(row), {})[row["contestant"]] = row["img/s"]
    rows = []
    for cell, speeds in cells.items():
        peers = [speed for name, speed in speeds.items() if name not in ours]
        if not peers:
            continue
        row = dict(zip(CELL, cell)) | {name: speeds.get(name) for name in names}
        for name in ours:
            ratio = speeds[name] / max(peers) if name in speeds else None
            row[f"ratio{name.removeprefix(OURS)}"] = ratio
        rows.append(row)
    return rows


def _changing(rows: Sequence[dict]) -> list[str]:
    """The fields of CELL that are columns."""
    return [name for name in CELL if name in TITLE or len({str(row[name]) for row in rows}) > 1]


def _told(found: Sequence[dict]) -> list[dict]:
    """The rows for Markdown: cold and warm in one column, and no environment."""
    rows = []
    for row in found:
        row = dict(row)
        for name in ("compile s", "first step s"):
            cold, warm = (_seconds(row[key]) for key in (name, f"{name}, warm"))
            row[name] = cold if row.pop(f"{name}, warm") is None else f"{cold} / {warm}"
        row["TFLOP/s"] = f"{row['TFLOP/s']:.4g}"
        del row["env"]
        rows.append(row)
    return rows


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _markdown(rows: Sequence[dict], columns: Sequence[str]) -> str:
    hidden = set(CELL) - set(columns)
    shown = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
    ordered = [{name: row[name] for name in columns} | row for row in shown]
    return markdown([{k: "-" if v is None else v for k, v in row.items()} for row in ordered])


def _caption(records: Sequence[dict]) -> str:
    """What the tables were measured on and how, a line each."""

    def all_of(name: str) -> str:
        values = dict.fromkeys(str(record.get(name) or "") for record in records)
        return ", ".join(filter(None, values))

    versions = {
        f"{package} {record['versions'][package]}": None
        for package in ("python", "jax", "torch", "timm")
        for record in records
        if package in record["versions"]
    }
    ours = [record for record in records if record["contestant"].startswith(OURS)]
    steps = dict.fromkeys(f"{len(r['step_seconds'])} after {r['warmup']}" for r in records)
    told = {
        "run": all_of("run"),
        "device": ", ".join(dict.fromkeys(record["device"] for record in ours or records)),
        "versions": ", ".join(versions),
        "image size": all_of("image_size"),
        "mesh": all_of("mesh"),
        "options": all_of("options"),
        "steps": ", ".join(steps),
        "peak of MFU": all_of("peak_flops_of"),
        "memory": f"of the {all_of('peak_of')}",
        "compile, first step": "with an empty cache / from the persistent cache",
    }
    for record in records:
        env = " ".join(f"{name}={value}" for name, value in record["env"].items())
        told.setdefault(record["contestant"], env)
    return "\n".join(f"- {name}: {text}" for name, text in told.items() if text)
