"""Goodput of a run on this machine that is killed every two minutes.

  python benchmarks/goodput.py --steps=450 --kill_every=120

A process trains S/16 on images of noise, is killed with SIGKILL (or `--signal=TERM`), and the same
command starts again at once, until all steps are done. Before that, a run without kills measures
the time of a step and of a checkpoint, from which the interval between checkpoints follows
(Daly 2006), and fills the cache of compiled programs.

The first table is the time by part as in `summary.json`, and the time that this program measures
from outside. `undisturbed` is the goodput if every step took as long as without checkpoints: the
writer of a checkpoint uses the processors, too, and makes the steps longer that it runs beside.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vit_jax.planning.goodput import daly_interval, expected_goodput  # noqa: E402
from vit_jax.training import attempts, metrics  # noqa: E402

CONFIG = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.name = "{model}"
    config.data.update(source="fake", num_classes=1000, num_examples=4096, image_size=224)
    config.data.val_split = ""
    config.optimizer.warmup_steps = 0
    config.update(batch_size={batch}, log_every=1)
    return config
"""
MEASURED_STEPS, MEASURED_EVERY = 24, 4  # Of the run without kills.


def start(config: pathlib.Path, folder: pathlib.Path, *flags: str) -> subprocess.Popen:
    """Starts or resumes a run in a new process."""
    command = [sys.executable, "-m", "vit_jax.main", f"--config={config}", f"--workdir={folder}"]
    return subprocess.Popen(
        [*command, *(f"--config.{flag}" for flag in flags)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )


def measure_costs(config: pathlib.Path, folder: pathlib.Path, is_async: bool) -> tuple:
    """Returns seconds of a step, those that training waits for a checkpoint, and of a start."""
    flags = (f"steps={MEASURED_STEPS}", f"checkpoint_async={is_async}")
    for name, every in (("cold", MEASURED_STEPS), ("warm", MEASURED_EVERY)):
        process = start(config, folder / name, *flags, f"checkpoint_every={every}")
        if process.wait():
            sys.exit(process.returncode)
    speeds = [r["train/img_per_sec"] for r in metrics.read(folder / "cold") if r["step"] > 1]
    batch = json.loads((folder / "cold" / "config.json").read_text(encoding="utf-8"))["batch_size"]
    step_seconds = batch / sorted(speeds)[len(speeds) // 2]
    cold, warm = (attempts.parts_of(attempts.read(folder / name))[0] for name in ("cold", "warm"))
    # Both runs wait for the checkpoint of the last step; the second one has more before it.
    num_more = MEASURED_STEPS // MEASURED_EVERY - 1
    checkpoint = max(0.01, (warm["save"] - cold["save"]) / num_more)
    return step_seconds, checkpoint, warm["start"] + warm["compile"]


def run_killed(args, config: pathlib.Path, folder: pathlib.Path, flags: tuple) -> tuple[float, int]:
    """Runs to the end with kills; returns the seconds and the number of kills."""
    begin, num_kills = time.monotonic(), 0
    while True:
        process = start(config, folder, *flags)
        try:
            code = process.wait(args.kill_every)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.Signals[f"SIG{args.signal}"])
            process.wait()
            num_kills += 1
            print(f"kill {num_kills}: step {attempts.read(folder)[-1].step}", file=sys.stderr)
            continue
        if code:
            sys.exit(code)
        return time.monotonic() - begin, num_kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_s16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--kill_every", type=float, default=120, metavar="SECONDS")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--checkpoint_every", type=int, help="default: by Daly's formula")
    parser.add_argument("--sync", action="store_true", help="with checkpoint_async=False")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        config, is_async = root / "config.py", not args.sync
        config.write_text(CONFIG.format(model=args.model, batch=args.batch), encoding="utf-8")
        step, checkpoint, restart = measure_costs(config, root, is_async)
        interval = daly_interval(checkpoint, args.kill_every)
        every = args.checkpoint_every or max(1, round(interval / step))
        flags = (f"steps={args.steps}", f"checkpoint_every={every}", f"checkpoint_async={is_async}")
        wall, num_kills = run_killed(args, config, root / "run", flags)
        text = (root / "run" / "summary.json").read_text(encoding="utf-8")
        found = json.loads(text)["goodput"]
    expected = expected_goodput(every * step, checkpoint, restart, args.kill_every)
    print("| Part | Seconds | Share |\n|---|---|---|")
    for part, seconds in found["seconds"].items():
        print(f"| {part} | {seconds:.1f} | {seconds / wall:.1%} |")
    total = sum(found["seconds"].values())
    print(f"| sum | {total:.1f} | {total / wall:.1%} |\n| measured from outside | {wall:.1f} | |\n")
    print("| Quantity | Value |\n|---|---|")
    print(f"| goodput | {found['fraction']:.1%} |")
    print(f"| undisturbed | {args.steps * step / wall:.1%} |")
    print(f"| expected, failures at random | {expected:.1%} |")
    print(f"| kills, processes | {num_kills}, {found['attempts']} |")
    costs = f"{step:.2f}, {checkpoint:.2f}, {restart:.2f}"
    print(f"| seconds of a step, a checkpoint, a start | {costs} |")
    print(f"| checkpoint_every | {every} |")


if __name__ == "__main__":
    main()
