"""Tables of measurements by the command `benchmark`: this package beside a peer such as timm."""

import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from vit_jax.atomic_io import to_json
from vit_jax.errors import ConfigError, DataError
from vit_jax.text import markdown_table

# Measurements are compared when these fields of their records are equal.
CELL_FIELDS = ("run", "model", "batch", "dtype", "mode", "image_size", "mesh", "options")
ALWAYS_COLUMNS = CELL_FIELDS[1:5]  # The other fields are columns only if their values differ.
OURS = "vit_jax"  # Prefix of the names of this package's runners.


def read_records(file: str) -> list[dict]:
    """Reads the records of a file that `benchmark --out` wrote.

    Raises:
      ConfigError: the file cannot be read.
      DataError: the file is empty or a line of it is not a benchmark record.
    """
    try:
        lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["run"], record["contestant"]
            if "error" not in record:
                record["step_seconds"][0], [record[name] for name in CELL_FIELDS]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DataError(f"{file}, line {number}: not a record of `benchmark`.") from error
        records.append(record)
    if all("error" in record for record in records):
        raise DataError(
            f"{file} contains no measurements; run `benchmark --out={file}` to add some."
        )
    return records


def format_files(files: Sequence[str], as_json: bool = False) -> str:
    """Returns the tables of all records in the files, as Markdown or JSON."""
    return format_records([record for file in files for record in read_records(file)], as_json)


def format_records(records: Sequence[dict], as_json: bool = False) -> str:
    """Returns the comparison with peers, if there are any, and all measurements and failures."""
    measured = summarize_records(records)
    compared = compare_with_peers(measured)
    if as_json:
        failed = [record for record in records if "error" in record]
        tables = {"comparison": compared, "measured": measured, "failed": failed}
        return to_json(tables, indent=2)
    parts = [_caption(records)]
    if compared:
        parts.append(_format_rows(compared, _cell_columns(compared)))
    parts.append(_format_rows(_merge_cold_and_warm(measured), _cell_columns(measured)))
    return "\n\n".join(parts)


def summarize_records(records: Iterable[dict]) -> list[dict]:
    """Returns a row per cell and runner over all rounds; the first columns are CELL_FIELDS.

    "img/s" is the speed of the median step and "best" that of the fastest. "MFU %" is relative to
    the highest peak FLOP/s measured in the run, so that all runners share one peak. Failures have
    no row.
    """
    groups: dict[tuple, list[dict]] = {}
    peaks: dict[tuple, float] = {}
    for record in records:
        if "error" in record:
            continue
        groups.setdefault((*_cell(record), record["contestant"]), []).append(record)
        key = record["run"], record["dtype"]
        peaks[key] = max(peaks.get(key, 0), record.get("peak_flops") or 0)
    rows = []
    for (*cell, runner), group in groups.items():
        row = dict(zip(CELL_FIELDS, cell)) | {"contestant": runner}
        rows.append(row | _measurements(group, peaks[row["run"], row["dtype"]]))
    return rows


def _cell(record: dict) -> tuple:
    values = (record[name] for name in CELL_FIELDS)
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _measurements(group: list[dict], peak_flops: float) -> dict:
    """Returns speed, memory and compile time of one runner in one cell."""
    seconds = [step for record in group for step in record["step_seconds"]]
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
        "env": _environment(group[0]),
    }


def _median(records: list[dict], name: str) -> float | None:
    values = [record[name] for record in records if record[name] is not None]
    return statistics.median(values) if values else None


def _environment(record: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in record["env"].items())


def compare_with_peers(measured: Sequence[dict]) -> list[dict]:
    """Returns a row per cell in which a peer was measured.

    The columns are images/s of each runner, and the ratio of ours to the fastest peer.
    """
    names = list(dict.fromkeys(row["contestant"] for row in measured))
    ours = [name for name in names if name.startswith(OURS)]
    cells: dict[tuple, dict[str, float]] = {}
    for row in measured:
        cells.setdefault(_cell(row), {})[row["contestant"]] = row["img/s"]
    rows = []
    for cell, speeds in cells.items():
        peers = [speed for name, speed in speeds.items() if name not in ours]
        if not peers:
            continue
        row = dict(zip(CELL_FIELDS, cell)) | {name: speeds.get(name) for name in names}
        for name in ours:
            ratio = speeds[name] / max(peers) if name in speeds else None
            row[f"ratio{name.removeprefix(OURS)}"] = ratio
        rows.append(row)
    return rows


def _cell_columns(rows: Sequence[dict]) -> list[str]:
    """Returns the CELL_FIELDS that are columns of the Markdown table."""
    return [
        name
        for name in CELL_FIELDS
        if name in ALWAYS_COLUMNS or len({str(row[name]) for row in rows}) > 1
    ]


def _merge_cold_and_warm(measured: Sequence[dict]) -> list[dict]:
    """Returns rows for Markdown: "cold / warm" seconds in one column, no environment."""
    rows = []
    for row in measured:
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


def _format_rows(rows: Sequence[dict], columns: Sequence[str]) -> str:
    hidden = set(CELL_FIELDS) - set(columns)
    shown = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
    return markdown_table([{name: row[name] for name in columns} | row for row in shown])


def _caption(records: Sequence[dict]) -> str:
    """Returns a Markdown list of devices, versions, settings, sizes of peers, and failures."""
    failures = dict.fromkeys(_failure(record) for record in records if "error" in record)
    records = [record for record in records if "error" not in record]

    def distinct(name: str) -> str:
        values = dict.fromkeys(str(record.get(name) or "") for record in records)
        return ", ".join(filter(None, values))

    ours = [record for record in records if record["contestant"].startswith(OURS)]
    peers = [record for record in records if record not in ours]
    packages = dict.fromkeys(["python", "jax", *(n for r in peers for n in r["versions"])])
    versions = {
        f"{package} {record['versions'][package]}": None
        for package in packages
        for record in records
        if package in record["versions"]
    }
    steps = dict.fromkeys(f"{len(r['step_seconds'])} after {r['warmup']} warm-up" for r in records)
    entries = {
        "run": distinct("run"),
        "device": ", ".join(dict.fromkeys(record["device"] for record in ours or records)),
        "versions": ", ".join(versions),
        "image size": distinct("image_size"),
        "mesh": distinct("mesh"),
        "options": distinct("options"),
        "steps": ", ".join(steps),
        "peak for MFU": distinct("peak_flops_of"),
        "memory": f"peak of the {distinct('peak_of')}",
        "compile, first step": "seconds with an empty cache / with the persistent cache",
        **_other_sizes(ours, peers),
    }
    for record in records:
        entries.setdefault(record["contestant"], _environment(record))
    lines = [f"- {name}: {text}" for name, text in entries.items() if text]
    return "\n".join([*lines, *failures])


def _other_sizes(ours: Sequence[dict], peers: Sequence[dict]) -> dict[str, str]:
    """Returns model -> parameters of the peers whose number of parameters differs from ours."""
    expected = {record["model"]: record.get("parameters") for record in ours}
    sizes: dict[str, dict[str, None]] = {}
    for record in peers:
        name, count = record["model"], record.get("parameters")
        if expected.get(name) and count != expected[name]:
            sizes.setdefault(name, {f"{OURS} {expected[name]:,}": None})
            sizes[name][f"{record['contestant']} {count:,}"] = None
    return {f"parameters of {name}": ", ".join(counts) for name, counts in sizes.items()}


def _failure(record: dict) -> str:
    case = " ".join(str(record[name]) for name in ("model", "dtype", "mode") if name in record)
    return f"- {record['contestant']}{case and f', {case}'}: not measured: {record['error']}"
