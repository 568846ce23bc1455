"""Time from the start of a training process to the end of its first step, by phase.

  python benchmarks/startup.py --model=vit_s16 --batch=16 --rounds=3

Each round trains two steps on images of noise in two new processes: with an empty cache of
compiled programs (cold), then with the cache of the first (warm). Medians of all rounds are
printed. Phases of the compiler run in a thread while the state is initialised, so they overlap
with each other. The second table is the time of `COMMAND --help`: Python, and the modules that the
command line imports. `benchmark --peer=timm` measures the first step of timm.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.name = "{model}"
    config.data.update(source="fake", num_classes=1000, num_examples=64, image_size=224)
    config.optimizer.warmup_steps = 0
    config.update(batch_size={batch}, steps=2, log_every=1)
    return config
"""
COMPILER = {  # Event of JAX -> phase.
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "XLA, or reading its cache",
}


class Watch:
    """Standard output that notes the time of the first line with each of some texts."""

    def __init__(self, stream, texts: dict[str, str]):
        self._stream, self._texts, self.times = stream, texts, {}

    def write(self, line: str) -> int:
        for text, name in self._texts.items():
            if text in line:
                self.times.setdefault(name, time.time())
        return self._stream.write(line)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def child(started: float, config: str, workdir: str, out: str) -> None:
    """Trains as `python -m vit_jax.main` does, and writes the seconds of each phase to `out`."""
    seconds = {"Python": time.time() - started}
    import jax

    from vit_jax import main

    seconds["import of jax and the command line"] = time.time() - started - seconds["Python"]

    def listen(event: str, duration: float, **_) -> None:
        if event in COMPILER and "first" not in watch.times:
            phase = COMPILER[event]
            seconds[phase] = seconds.get(phase, 0) + duration

    jax.monitoring.register_event_duration_secs_listener(listen)
    texts = {"data: ": "data", "parameters are": "state", "step 1/": "first"}
    sys.stdout = watch = Watch(sys.stdout, texts)
    imported = time.time()
    assert main.run([f"--config={config}", f"--workdir={workdir}"]) == 0
    times = watch.times
    seconds["config, checks, data"] = times["data"] - imported
    seconds["initial state"] = times["state"] - times["data"]
    seconds["train step: rest of its compilation, and one step"] = times["first"] - times["state"]
    seconds["process start to the end of step 1"] = times["first"] - started
    pathlib.Path(out).write_text(json.dumps(seconds), encoding="utf-8")


def measure(config: pathlib.Path, folder: pathlib.Path, cache: pathlib.Path) -> dict[str, float]:
    """Returns the seconds of each phase of one new process."""
    out = folder / "seconds.json"
    subprocess.run(
        [sys.executable, __file__, "--child", str(time.time()), str(config), str(folder), str(out)],
        env=os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=sys.stderr,
    )
    return json.loads(out.read_text(encoding="utf-8"))


def print_medians(columns: dict[str, list[dict[str, float]]]) -> None:
    """Prints a Markdown table of the median of each phase."""
    print(f"| Seconds | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for phase in next(iter(columns.values()))[0]:
        cells = (
            f"{statistics.median(each.get(phase, 0.0) for each in rounds):.2f}"
            for rounds in columns.values()
        )
        print(f"| {phase} | {' | '.join(cells)} |")


def time_help(command: str) -> float:
    """Returns the seconds of `COMMAND --help`."""
    begin = time.perf_counter()
    line = [sys.executable, "-m", "vit_jax.main", command, "--help"]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_s16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    columns = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        config = root / "config.py"
        config.write_text(CONFIG.format(model=args.model, batch=args.batch), encoding="utf-8")
        for i in range(args.rounds):
            for column, rounds in columns.items():
                rounds.append(measure(config, root / f"{column}_{i}", root / f"cache_{i}"))
    print_medians(columns)
    from vit_jax.main import VERBS

    print()
    print_medians(
        {"--help": [{name: time_help(name) for name in VERBS} for _ in range(args.rounds)]}
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(float(sys.argv[2]), *sys.argv[3:])
    else:
        main()
