"""Time of a sweep, of the same sweep with two kills, and of its runs in separate processes.

  python benchmarks/sweep.py --folder=runs/sweep

`configs/mnist5k.py` for a few epochs: four learning rates, scored on a held-out tenth of the
training images, then three seeds on all training images. The sweep runs without interruption, then
with two kills (SIGKILL) and restarts, then as separate processes, one for each run. Seconds are
the time of complete processes. Each of the three has its own empty JAX_COMPILATION_CACHE_DIR.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RATES, SEEDS, DEV = (3e-4, 1e-3, 3e-3, 1e-2), 3, 0.1
KILLED_AT = (0.35, 0.4)  # Time from start to kill, as a fraction of the full time.


def command(epochs: int, workdir: pathlib.Path, **fields) -> list[str]:
    """Returns the command line of a run; `__` in a field name stands for a dot."""
    overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    file = f"configs/mnist5k.py:epochs={epochs}"
    start = [sys.executable, "-m", "vit_jax.main", f"--config={file}", f"--workdir={workdir}"]
    return [*start, *overrides]


def run(line: list[str], cache: pathlib.Path, kill_after: float | None = None) -> float:
    """Returns the seconds of a process, which is killed after `kill_after` or must exit with 0."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    begin = time.perf_counter()
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=sys.stderr)
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    else:
        assert process.returncode == 0, f"{line} ended with {process.returncode}"
    return time.perf_counter() - begin


def score(workdir: pathlib.Path) -> tuple:
    """Returns the final accuracy and loss of a run."""
    metrics = json.loads((workdir / "summary.json").read_text())["metrics"]
    return metrics["val/top1"], metrics["val/loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)

    swept = {
        "sweep__grid": f"(('optimizer.lr',{RATES}),)",
        "sweep__seeds": SEEDS,
        "sweep__dev": DEV,
    }
    full = run(command(args.epochs, folder / "full", **swept), folder / "cache-full")
    killed = command(args.epochs, folder / "killed", **swept)
    for fraction in KILLED_AT:
        run(killed, folder / "cache-killed", kill_after=fraction * full)
    run(killed, folder / "cache-killed")
    tables = [(folder / name / "sweep.md").read_text() for name in ("full", "killed")]
    assert tables[0] == tables[1], "the table of the killed sweep differs"

    best = json.loads((folder / "full/summary.json").read_text())["best"]["optimizer.lr"]
    singles = {f"grid/lr={rate}": {"optimizer__lr": rate, "data__dev": DEV} for rate in RATES} | {
        f"seed_{seed}": {"optimizer__lr": best, "seed": seed} for seed in range(SEEDS)
    }
    separate = 0.0
    for name, fields in singles.items():
        workdir = folder / "single" / name
        separate += run(command(args.epochs, workdir, **fields), folder / "cache-single")
        assert score(workdir) == score(folder / "full" / name), (
            f"{name}: the score of the separate run differs"
        )

    print(tables[0])
    print(f"killed twice: same table\n{len(singles)} runs as one sweep: {full:.0f} s")
    print(f"{len(singles)} separate processes: {separate:.0f} s, {separate / full:.2f} times")


if __name__ == "__main__":
    main()
