"""A sweep on packaged images: its table, killed twice, and against its runs started one by one.

  python benchmarks/sweep.py --folder=runs/sweep

`configs/mnist5k.py` for a few epochs, four learning rates on a held-out tenth of the training
images, then three seeds on all of them. The same sweep is killed twice (SIGKILL) and started
again; then each of its runs is started in a process of its own. Seconds are of whole processes.
JAX_COMPILATION_CACHE_DIR is a new folder for each of the three, so that all begin alike.
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
KILLED_AT = (0.35, 0.4)  # Of the whole sweep's seconds, each start anew.


def command(epochs: int, workdir: pathlib.Path, **fields) -> list[str]:
    overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    file = f"configs/mnist5k.py:epochs={epochs}"
    start = [sys.executable, "-m", "vit_jax.main", f"--config={file}", f"--workdir={workdir}"]
    return [*start, *overrides]


def run(line: list[str], cache: pathlib.Path, kill_after: float | None = None) -> float:
    """Seconds that a process took; it is killed after some, or must end well."""
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
    found = json.loads((workdir / "summary.json").read_text())["metrics"]
    return found["val/top1"], found["val/loss"]


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
    whole = run(command(args.epochs, folder / "whole", **swept), folder / "cache-whole")
    killed = command(args.epochs, folder / "killed", **swept)
    for share in KILLED_AT:
        run(killed, folder / "cache-killed", kill_after=share * whole)
    run(killed, folder / "cache-killed")
    tables = [(folder / name / "sweep.md").read_text() for name in ("whole", "killed")]
    assert tables[0] == tables[1], "a killed sweep has another table"

    best = json.loads((folder / "whole/summary.json").read_text())["best"]["optimizer.lr"]
    singles = {f"grid/lr={rate}": {"optimizer__lr": rate, "data__dev": DEV} for rate in RATES} | {
        f"seed_{seed}": {"optimizer__lr": best, "seed": seed} for seed in range(SEEDS)
    }
    apart = 0.0
    for name, fields in singles.items():
        workdir = folder / "single" / name
        apart += run(command(args.epochs, workdir, **fields), folder / "cache-single")
        assert score(workdir) == score(folder / "whole" / name), f"{name} scores otherwise alone"

    print(tables[0])
    print(f"killed twice: the same table\n{len(singles)} runs as one sweep: {whole:.0f} s")
    print(f"{len(singles)} runs, each started alone: {apart:.0f} s, {apart / whole:.2f} times")


if __name__ == "__main__":
    main()
