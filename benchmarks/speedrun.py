"""Repeats a record of docs/speedrun.md: five seeds of `configs/speedrun.py`, whole processes timed.

  python benchmarks/speedrun.py --data=mnist5k

Each seed runs in its own process with an empty cache of compiled programs. Seconds are the time of
the complete process, with imports, compilation and evaluation. Appends one JSON line per seed to
`--out`, and prints a row of the table. `--warm` repeats each seed with the programs in the cache.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGETS = {"mnist5k": 0.97, "digits": 0.98}  # Mean top-1 of the seeds.
SEEDS = range(5)


def run(config: str, folder: pathlib.Path, name: str) -> dict:
    """Returns top-1, seconds, CPU seconds and the curve [seconds, top-1] of a process.

    Args:
      folder: has the cache of compiled programs, and the workdir `name`.
    """
    command = [sys.executable, "-m", "vit_jax.main"]
    command += [f"--config={config}", f"--workdir={folder / name}"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    environment["PYTHONUNBUFFERED"] = "1"
    cpu, start, curve = _cpu_of_children(), time.perf_counter(), []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            sys.stderr.write(line)
            if top1 := re.search(r"^step .* val/top1 ([\d.]+)", line):
                curve.append([round(time.perf_counter() - start, 1), float(top1[1])])
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    summary = json.loads((folder / name / "summary.json").read_text())
    return {
        "top1": summary["metrics"]["val/top1"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(_cpu_of_children() - cpu, 1),
        "curve": curve,
    }


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def row(config: str, records: list[dict], target: float) -> str:
    """Returns the row of docs/speedrun.md for the records of several seeds."""
    top1 = [100 * record["top1"] for record in records]
    mean = statistics.mean(top1)
    cells = [
        records[0]["date"],
        f"`{config}`",
        ", ".join(f"{score:.1f}" for score in top1),
        f"{mean:.2f} ({'reached' if mean >= 100 * target else 'missed'} {100 * target:.1f})",
        *(_mean_seconds(records, key) for key in ("seconds", "warm_seconds", "cpu_seconds")),
        records[0]["machine"],
        records[0]["commit"],
        "; ".join(f"{second:.0f} s {score:.1f}" for second, score in mean_curve(records)),
    ]
    return f"| {' | '.join(cells)} |"


def _mean_seconds(records: list[dict], key: str) -> str:
    return f"{statistics.mean(r[key] for r in records):.1f}" if key in records[0] else "-"


def mean_curve(records: list[dict]) -> list[tuple[float, float]]:
    """Returns the means over seeds of seconds and top-1 in percent at each evaluation."""
    points = zip(*(record["curve"] for record in records), strict=True)
    return [
        (statistics.mean(s for s, _ in point), statistics.mean(100 * t for _, t in point))
        for point in points
    ]


def machine() -> str:
    """Returns the number of cores that this process may use, and the processor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = pathlib.Path("/proc/cpuinfo")
    found = info.exists() and re.search(r"model name\s*: (.*)", info.read_text())
    return f"{cores} cores, {found[1] if found else platform.machine()}"


def commit() -> str:
    """Returns the short hash of the checkout, with '+' if files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no", "configs", "vit_jax")
    return git("rev-parse", "--short", "HEAD") + ("+" if changes else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(TARGETS), default="mnist5k")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks/speedrun.jsonl")
    parser.add_argument("--warm", action="store_true", help="also time a full cache of programs")
    args = parser.parse_args()
    name, records = f"configs/speedrun.py:data={args.data}", []
    common = {"date": datetime.date.today().isoformat(), "machine": machine(), "commit": commit()}
    for seed in SEEDS:
        config = f"{name},seed={seed}"
        with tempfile.TemporaryDirectory() as folder:
            record = {"config": config} | common | run(config, pathlib.Path(folder), "cold")
            if args.warm:
                warm = run(config, pathlib.Path(folder), "warm")
                record["warm_seconds"] = warm["seconds"]
        records.append(record)
        with args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
    print(row(name, records, TARGETS[args.data]))


if __name__ == "__main__":
    main()
