"""Accuracy of the two MNIST-5k recipes over several seeds, as Markdown.

  python benchmarks/mnist5k.py --folder=runs/mnist5k

Runs `configs/mnist5k.py` for seeds 0 to 2 and `configs/mnist5k_masked.py` for seeds 0 to 4, one
after the other, each in its own process. Finished runs in `--folder` are not repeated. Seconds are
the time of the complete process, with imports, compilation and evaluation.
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
SECONDS = "process_seconds.txt"  # In the folder of a run: the time of its last process.


def run(config: str, seed: int, folder: pathlib.Path) -> dict:
    """Returns the `summary.json` of a run, with the seconds of its process."""
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
    """Returns rows (title, top-1 of each seed, seconds of each seed)."""
    runs = [run("mnist5k", seed, folder) for seed in SUPERVISED_SEEDS]
    top1 = [summary["metrics"]["val/top1"] for summary in runs]
    return [("4,000 labels, from scratch", top1, [summary["process_seconds"] for summary in runs])]


def masked(folder: pathlib.Path) -> list[tuple]:
    """Returns rows as `supervised` does; the last row is the difference paired by seed."""
    runs = [run("mnist5k_masked", seed, folder) for seed in MASKED_SEEDS]
    rows = []
    for name, title in (
        ("finetune", "10 labels per class, after masked patches"),
        ("scratch", "10 labels per class, from scratch"),
    ):
        stages = [summary["stages"][name] for summary in runs]
        top1 = [stage["metrics"]["val/top1"] for stage in stages]
        rows.append((title, top1, [stage["seconds"]["wall"] for stage in stages]))
    gains = [tuned - scratch for tuned, scratch in zip(rows[0][1], rows[1][1], strict=True)]
    return [
        *rows,
        ("gain, paired by seed", gains, [summary["process_seconds"] for summary in runs]),
    ]


def markdown(rows: list[tuple]) -> str:
    """Returns a table of means in percent, standard deviations and standard errors over seeds."""
    lines = [
        "| Run | Seeds | Mean val/top1 (%) | Deviation | Standard error | Each seed | Seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, scores, seconds in rows:
        percent = [100 * score for score in scores]
        deviation = statistics.stdev(percent)
        scores_of_seeds = ", ".join(f"{score:.1f}" for score in percent)
        lines.append(
            f"| {title} | {len(percent)} | {statistics.mean(percent):.2f} | {deviation:.2f} | "
            f"{deviation / len(percent) ** 0.5:.2f} | {scores_of_seeds} | "
            f"{min(seconds):.0f}-{max(seconds):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--only",
        choices=("supervised", "masked"),
        help="run one of the two recipes (default: both)",
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
