"""Checks of correctness, speed and memory on one GPU, in two parts of at most ten minutes each.

  python benchmarks/gpu.py --part=1 --out=gpu.jsonl
  python benchmarks/gpu.py --part=2 --out=gpu.jsonl

Part 1: logits and gradients of every choice of `model.kernels` against float32; a run that is
killed and resumed against one that is not; training from JPEG files. Part 2: speed of S, B and
L/16 in bfloat16 by the worker of `benchmark`, as MFU, and their memory against that of `plan`.

Each check runs in processes of its own. Its result is appended to the file at once, as a line of
JSON with `ok`, `skipped` (the reason) or `error`; after an error the next check runs. No check
starts in the last minutes of a part (`--minutes`, `--reserve`). `--smoke` runs tiny models, also on
a CPU. The exit code is 1 if a check fails, has an error, or is below the least MFU. vit_jax
must be installed, or PYTHONPATH be the folder of the repository.
"""

import argparse
import datetime
import functools
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from pipeline import make_photos

import vit_jax
from vit_jax.atomic_io import to_json
from vit_jax.benchmark.benchmark import make_cases
from vit_jax.benchmark.runners import Case, Runner, last_line, vit_jax_runners
from vit_jax.checkpoints import layout
from vit_jax.config import base_config
from vit_jax.models.registry import make_init
from vit_jax.planning import accelerators
from vit_jax.planning.plan import plan_run
from vit_jax.training import metrics

# Kernels and dtype -> largest relative errors of the logits and of the gradients. float32 products
# are in TF32 on a GPU, which has 11 bits of precision; bfloat16 has 8.
KERNELS = {
    ("plain", "float32"): (0.01, 0.02),
    ("plain", "bfloat16"): (0.05, 0.1),
    ("cudnn", "bfloat16"): (0.05, 0.1),
}
POOLS = ("token", "gap")  # 197 and 196 tokens.
RESUMED_STEPS, SAVED_EVERY = 200, 20
MAX_DATA_WAIT = 0.03  # Fraction of the time in which training waits for data.
BATCHES = {"vit_b16": 256, "vit_l16": 128, "vit_s16": 512}  # In the order of the measurements.
VARIANTS = (
    {},
    {"model.kernels": "cudnn"},
    {"model.scan": "True"},
    {"model.remat": "dots"},
    {"model.scan": "True", "model.remat": "full"},
    {"model.kernels": "cudnn", "model.remat": "dots"},
)
MFU_TARGETS = {"vit_b16": (0.40, 0.50), "vit_l16": (0.45, 0.55)}  # Model -> least, target.
MAX_MEMORY_ERROR = 0.15  # Difference of measured and planned memory, relative to the plan.
IMAGENET = {"num_classes": 1000, "num_examples": 1_281_167}
SMOKE_MODEL = {"num_layers": 2, "hidden_size": 32, "mlp_size": 64, "num_heads": 2}


class Part:
    """One part: its machine, its sizes, and the file of its results."""

    def __init__(self, args: argparse.Namespace, folder: pathlib.Path):
        self.args, self.folder, self.is_smoke = args, folder, args.smoke
        self.last_start = time.monotonic() + 60 * (args.minutes - args.reserve)
        self.run = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.has_failed = False
        self.machine = {"platform": "", "kind": "", "peak_flops": None}
        self.machine |= self.check("machine", lambda: self.job("machine"), {})

    def check(self, name: str, function: Callable[[], dict], case: dict) -> dict:
        """Runs a check, unless it is skipped, and returns its record."""
        begin = time.monotonic()
        if case.get("model.kernels") == "cudnn" and self.machine["platform"] != "gpu":
            return self.add(name, {"skipped": "cudnn needs a GPU"}, case)
        if begin > self.last_start:
            reason = f"too late to end within {self.args.minutes:g} minutes"
            return self.add(name, {"skipped": reason}, case)
        try:
            result = function()
        except Exception as error:  # The next check must run.
            result = {"error": last_line(str(error)) or type(error).__name__}
        return self.add(name, result | {"seconds": round(time.monotonic() - begin, 1)}, case)

    def add(self, name: str, result: dict, case: dict) -> dict:
        """Appends the record of a check to the file, prints it, and returns it."""
        record = {"run": self.run, "part": self.args.part, "check": name, **case, **result}
        self.has_failed |= "error" in record or record.get("ok") is False
        with open(self.args.out, "a", encoding="utf-8") as file:
            file.write(to_json(record) + "\n")
        print(to_json(record), flush=True)
        return record

    def job(self, name: str, **arguments) -> dict:
        """Returns the result of a function of JOBS in a new process, which has the device."""
        caches = str(self.folder / "caches")
        return Runner(name, job_command(name), arguments, {}).measure(caches)

    def case(self, model: str, batch: int, fields: dict[str, str]) -> Case:
        """Returns a training step in bfloat16 as a case of `benchmark`; with --smoke a tiny one."""
        if self.is_smoke:
            tiny = {f"model.{name}": str(size) for name, size in SMOKE_MODEL.items()}
            model, batch, fields = "vit_ti16", 2, fields | tiny | {"data.image_size": "32"}
        warmup, steps = (1, 2) if self.is_smoke else (5, 20)
        (case,) = make_cases(
            suite=None,
            model=model,
            batch=batch,
            dtype="bfloat16",
            mode="training",
            warmup=warmup,
            steps=steps,
            fields=fields,
        )
        return case


def job_command(name: str) -> tuple[str, ...]:
    return (sys.executable, __file__, f"--job={name}")


# Part 1: correctness, resuming, and training from files.


def compare_kernels(
    *, kernels: str, dtype: str, model: str, options: dict, batch: int, **_
) -> dict:
    """Returns relative errors of logits and gradients, from those of plain float32."""
    errors = {}
    for pool in POOLS:
        build = functools.partial(vit_jax.create_model, model, pool=pool, **options)
        with jax.default_matmul_precision("highest"):
            expected = logits_and_gradients(build(kernels="plain", dtype="float32"), batch)
        found = logits_and_gradients(build(kernels=kernels, dtype=dtype), batch)
        errors[pool] = [
            float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, expected)
        ]
    limits = KERNELS[kernels, dtype]
    is_close = (error <= limit for pair in errors.values() for error, limit in zip(pair, limits))
    return {"errors of logits and gradients": errors, "limits": limits, "ok": all(is_close)}


def logits_and_gradients(model, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits of random images and the gradients of their loss, each as one vector.

    All parameters are random: a head of zeros would have logits and gradients of zero.
    """
    random, labels = np.random.default_rng(0), jnp.arange(batch)

    def draw(path, leaf) -> np.ndarray:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        std = leaf.size**-0.25  # Keeps the variance in a product with a square matrix.
        return random.normal(mean, std, leaf.shape).astype("float32")

    shapes = jax.eval_shape(make_init(model), jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    images = random.uniform(-1, 1, (batch, *model.image_size, 3)).astype("float32")

    def loss(params):
        logits = model.apply({"params": params}, images).astype("float32")
        return -jax.nn.log_softmax(logits)[labels, labels].mean(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(gradients)]
    return np.ravel(logits), np.concatenate(leaves)


def check_kernels(part: Part) -> None:
    """Compares every choice of kernels with plain float32, for odd and even numbers of tokens."""
    arguments = {"model": "vit_s16", "options": {"image_size": 224}, "batch": 8}
    if part.is_smoke:
        tiny = {"image_size": 32, "num_classes": 8, **SMOKE_MODEL}
        arguments = {"model": "vit_ti16", "options": tiny, "batch": 2}
    for kernels, dtype in KERNELS:
        case = {"model.kernels": kernels, "model.dtype": dtype, "model": arguments["model"]}
        job = arguments | {"kernels": kernels, "dtype": dtype}
        part.check("kernels", functools.partial(part.job, "compare_kernels", **job), case)


def train(*, workdir: str, fields: dict, **_) -> dict:
    """Trains in this process, by the public function."""
    return dict(vit_jax.train(base_config(), workdir, overrides=fields))


def training_fields(part: Part, photos: pathlib.Path, model: str, batch: int, steps: int) -> dict:
    """Returns the fields of a run on a folder of JPEG files."""
    is_fast = all(map(importlib.util.find_spec, ("simplejpeg", "cv2")))
    fields = {
        "model.name": model,
        "model.dtype": "bfloat16",
        "data.source": "folder",
        "data.dir": str(photos),
        "data.augment": "inception_crop|flip",
        "data.decoder": "simplejpeg" if is_fast else "pillow",
        "data.resample": "tf_bilinear",
        "data.workers": max(os.cpu_count() - 2, 1),
        "batch_size": batch,
        "steps": steps,
        "checkpoint_every": steps,
    }
    if part.is_smoke:
        fields |= {f"model.{name}": size for name, size in SMOKE_MODEL.items()}
        fields |= {"model.name": "vit_ti16", "data.image_size": 32, "data.workers": 0}
        fields |= {"batch_size": 2}
    return fields


def check_resume(part: Part, photos: pathlib.Path) -> None:
    """Compares the losses of a run that is killed and resumed with those of another run."""
    fields = training_fields(part, photos, "vit_s16", 64, RESUMED_STEPS)
    fields |= {"model.scan": True, "log_every": 1, "checkpoint_every": SAVED_EVERY}
    fields |= {"data.workers": min(fields["data.workers"], 4)}
    part.check("kill and resume", lambda: kill_and_resume(part, fields), {"model": "vit_s16"})


def kill_and_resume(part: Part, fields: dict) -> dict:
    """Returns the losses of both runs; they share compiled programs, as XLA may tune them anew."""
    folders = [part.folder / name for name in ("whole", "killed")]
    environment = {"XDG_CACHE_HOME": str(part.folder / "caches")}
    if part.machine["platform"] == "gpu":  # Some reductions add in any order otherwise.
        flags = os.environ.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()

    def start(workdir: pathlib.Path) -> subprocess.Popen:
        arguments = to_json({"workdir": str(workdir), "fields": fields})
        command = [*job_command("train"), arguments]
        with open(f"{workdir}.log", "w", encoding="utf-8") as log:
            return subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)

    def train_to_the_end(workdir: pathlib.Path) -> None:
        if start(workdir).wait():
            raise RuntimeError(pathlib.Path(f"{workdir}.log").read_text(encoding="utf-8"))

    train_to_the_end(folders[0])
    process = start(folders[1])
    while process.poll() is None and not layout.list_steps(folders[1] / layout.FOLDER):
        time.sleep(0.01)
    process.kill()
    if process.wait() >= 0:
        raise RuntimeError("the run ended before it was killed")
    saved = max(layout.list_steps(folders[1] / layout.FOLDER))
    train_to_the_end(folders[1])
    losses = [[line.get("train/loss") for line in metrics.read(folder)] for folder in folders]
    return {
        "killed_after_step": saved,
        "final_losses": [series[-1] for series in losses],
        "ok": len(losses[0]) == RESUMED_STEPS and losses[0] == losses[1],
    }


def check_training(part: Part, photos: pathlib.Path) -> None:
    """Measures data wait and MFU of training from JPEG files."""
    for model in ("vit_b16",) if part.is_smoke else ("vit_l16", "vit_b16"):
        function = functools.partial(train_from_files, part, photos, model)
        part.check("training", function, {"model": model})


def train_from_files(part: Part, photos: pathlib.Path, model: str) -> dict:
    every, steps = (2, 6) if part.is_smoke else (20, 120)
    fields = training_fields(part, photos, model, BATCHES[model], steps) | {"log_every": every}
    workdir = part.folder / model
    part.job("train", workdir=str(workdir), fields=fields)
    lines = metrics.read(workdir)
    lines = [line for line in lines if line["step"] > every and "train/img_per_sec" in line]
    wait = statistics.median(line["train/data_wait"] for line in lines)
    speed = statistics.median(line["train/img_per_sec"] for line in lines)
    case = part.case(model, BATCHES[model], {})
    flops = case.record()["step_flops"] / case.config.batch_size
    peak = part.machine["peak_flops"]
    return {
        "data_wait": wait,
        "img_per_sec": speed,
        "mfu": speed * flops / peak if peak else None,
        "decoder": fields["data.decoder"],
        "workers": fields["data.workers"],
        "ok": wait < MAX_DATA_WAIT or part.is_smoke,
    }


# Part 2: speed and memory of the train step.


def measure_step(part: Part, case: Case) -> dict:
    """Returns MFU and memory of a train step, timed by the worker of `benchmark`."""
    (runner,) = vit_jax_runners(case, {}, untuned=False)
    result = runner.measure(str(part.folder / "caches"))
    if "error" in result:
        return result
    seconds, batch = statistics.median(result["step_seconds"]), case.config.batch_size
    flops, peak = case.record()["step_flops"], result["peak_flops"]
    fields = ("device", "versions", "peak_bytes", "peak_of", "compile_seconds", "step_seconds")
    return {
        "batch": batch,
        "img_per_sec": batch / seconds,
        "mfu": flops / seconds / peak if peak else None,
        **{name: result[name] for name in fields},
        **compare_memory(part, case, result),
    }


def compare_memory(part: Part, case: Case, result: dict) -> dict:
    """Returns the memory that `plan` predicts and the error of it, on an accelerator."""
    accelerator = accelerators.find_by_device_kind(part.machine["kind"])
    if accelerator is None or result["peak_of"] != "device":
        return {"memory": "skipped: plan has no memory of this device"}
    names = {each: name for name, each in accelerators.ACCELERATORS.items()}
    plan = plan_run(case.config, num_devices=1, accelerator=names[accelerator], **IMAGENET)
    error = result["peak_bytes"] / plan["memory"]["peak"] - 1
    return {
        "planned_bytes": plan["memory"]["peak"],
        "memory_error": error,
        "ok": abs(error) <= MAX_MEMORY_ERROR,
    }


def check_speed(part: Part) -> None:
    """Measures all models and variants, and compares the best MFU of each model with its target."""
    best: dict[str, float] = {}
    for fields in VARIANTS:
        for model, batch in list(BATCHES.items())[: 1 if part.is_smoke else None]:
            case = part.case(model, batch, fields)
            function = functools.partial(measure_step, part, case)
            record = part.check("step", function, {"model": model} | fields)
            best[model] = max(best.get(model, 0.0), record.get("mfu") or 0.0)
    for model, (least, target) in MFU_TARGETS.items():
        if model not in best:
            continue
        result = {"mfu": best[model], "least": least, "target": target}
        result["ok"] = best[model] >= least
        if part.machine["platform"] != "gpu":
            result = {"skipped": "the targets are those of a GPU"}
        part.add("best mfu", result, {"model": model})


def describe_machine(**_) -> dict:
    device = jax.devices()[0]
    accelerator = accelerators.find_by_device_kind(device.device_kind)
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "num_devices": jax.device_count(),
        "cores": os.cpu_count(),
        "peak_flops": accelerator and accelerator.flops("bfloat16"),
        "jax": jax.__version__,
    }


JOBS = {"machine": describe_machine, "compare_kernels": compare_kernels, "train": train}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", type=int, choices=(1, 2), help="part to run")
    parser.add_argument("--out", default="gpu.jsonl", help="results file (default gpu.jsonl)")
    parser.add_argument("--minutes", type=float, default=9.5, help="limit of time (default 9.5)")
    parser.add_argument(
        "--reserve", type=float, default=1.5, help="minutes for the last check (default 1.5)"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny models, also on a CPU")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="?", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        sys.stdout, output = sys.stderr, sys.stdout  # Training prints its progress.
        print(to_json(JOBS[args.job](**json.loads(args.arguments))), file=output)
        return 0
    if args.part is None:
        parser.error("--part is required")
    jax.config.update("jax_platforms", "cpu")  # The memory of the GPU is for the other processes.
    with tempfile.TemporaryDirectory() as temporary:
        part = Part(args, pathlib.Path(temporary))
        if args.part == 1:
            photos = part.folder / "photos"
            make_photos(photos)
            check_kernels(part)
            check_resume(part, photos)
            check_training(part, photos)
        else:
            check_speed(part)
    return int(part.has_failed)


if __name__ == "__main__":
    sys.exit(main())
