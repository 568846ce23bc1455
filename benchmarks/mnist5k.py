"""Accuracy of the two MNIST-5k recipes over several seeds, as Markdown.

  python benchmarks/mnist5k.py --folder=runs/mnist5k

Runs `configs/mnist5k.py` for seeds 0 to 2 and `configs/mnist5k_masked.py` for seeds 0 to 4, one
after the other, each in a process of its own; what `--folder` holds already is not run again.
Seconds are those of whole processes: imports, compilation and evaluation included.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUPERVISED_SEEDS, MASKED_SEEDS = range(3), range(5)
SECONDS = "process_seconds.txt"  # Beside a run's summary, of its last process.


def run(config: str, seed: int, folder: pathlib.Path) -> dict:
    """The `summary.json` of a run, with the seconds of its process."""
    workdir = folder / f"{config}-{seed}"
    if not (workdir / "summary.json").exists():
        start = time.perf_counter()
        file = f"configs/{config}.py:seed={seed}"
        command = [sys.executable, "-m", "vit_jax.main", f"--config={file}", f"--workdir={workdir}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        (workdir / SECONDS).write_text(f"{time.perf_counter() - start:.0f}")
    summary = json.loads((workdir / "summary.json").read_text())
    return summary | {"process_seconds": float((workdir / SECONDS).read_text())}


def supervised(folder: pathlib.Path) -> list[tuple]:
    """Rows of (what, top1 of each seed, seconds of each seed)."""
    runs = [run("mnist5k", seed, folder) for seed in SUPERVISED_SEEDS]
    top1 = [each["metrics"]["val/top1"] for each in runs]
    return [("4,000 labels, from scratch", top1, [each["process_seconds"] for each in runs])]


def masked(folder: pathlib.Path) -> list[tuple]:
    """Rows as of `supervised`; the last is the paired difference."""
    runs = [run("mnist5k_masked", seed, folder) for seed in MASKED_SEEDS]
    rows = []
    for name, what in (
        ("finetune", "10 labels a class, after masked patches"),
        ("scratch", "10 labels a class, from scratch"),
    ):
        stages = [each["stages"][name] for each in runs]
        top1 = [stage["metrics"]["val/top1"] for stage in stages]
        rows.append((what, top1, [stage["seconds"]["wall"] for stage in stages]))
    gains = [tuned - scratch for tuned, scratch in zip(rows[0][1], rows[1][1], strict=True)]
    return [*rows, ("gain, paired by seed", gains, [each["process_seconds"] for each in runs])]


def markdown(rows: list[tuple]) -> str:
    """Percent with their standard deviation and standard error over seeds."""
    lines = [
        "| Run | Seeds | val/top1, mean (%) | Deviation | Standard error | Each seed | Seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, scores, seconds in rows:
        percent = [100 * score for score in scores]
        deviation = statistics.stdev(percent)
        each = ", ".join(f"{score:.1f}" for score in percent)
        lines.append(
            f"| {what} | {len(percent)} | {statistics.mean(percent):.2f} | {deviation:.2f} | "
            f"{deviation / len(percent) ** 0.5:.2f} | {each} | "
            f"{min(seconds):.0f}-{max(seconds):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where runs go")
    parser.add_argument(
        "--only", choices=("supervised", "masked"), help="one of the two; without it, both"
    )
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"supervised": supervised, "masked": masked}
    rows = [
        row for name, part in parts.items() if args.only in (None, name) for row in part(folder)
    ]
    print(markdown(rows))


if __name__ == "__main__":
    main()
