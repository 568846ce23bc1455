"""Accuracy with few labels after pre-training without labels, over several seeds, as Markdown.

  python benchmarks/few_labels.py --folder=runs/few_labels
  python benchmarks/few_labels.py --folder=runs/few_labels --fashion=DIR
  python benchmarks/few_labels.py --folder=runs/few_labels --dev

Runs `configs/few_labels.py` for each method and seed, each in its own process: the same 10 labelled
images of each class, the same model and the same fine-tuning with and without pre-training. `kNN`
and `10-shot` are those of the frozen features after pre-training (weighted kNN with all training
labels; a linear classifier on 10 images of each class, mean of draws), beside those of the raw
pixels. Finished runs in `--folder` are not repeated. Seconds are the time of the complete process.

With `--fashion`, the images are those of Fashion-MNIST, from the files in `DIR`, which is
/usr/share/datasets/fashion-mnist after `apt install dataset-fashion-mnist`: the first `--count`
training images, and 5,000 test images. With `--dev`, they are the 4,000 training images of
MNIST-5k, of which a quarter is scored: options are chosen with these, and not with the 1,000 images
of the results. Both are written to class folders first.
"""

import argparse
import gzip
import json
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data import decode
from vit_jax.data.sources import ArraySource, Source, open_both, open_split
from vit_jax.evaluation import fewshot, probes

ROOT = pathlib.Path(__file__).resolve().parent.parent
METHODS = {
    "none": "from scratch",
    "masked_patches": "after masked patches",
    "mae": "after MAE",
    "dino": "after DINO",
}
SECONDS = "process_seconds.txt"  # In the folder of a run: the time of its last process.
NUM_TEST = 5000
TITLES = (
    *("T-shirt", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def command(*arguments: str) -> None:
    """Runs a command of vit_jax in a new process."""
    parts = [sys.executable, "-m", "vit_jax.main", *arguments]
    subprocess.run(parts, cwd=ROOT, check=True, stdout=sys.stderr)


def fashion(files: pathlib.Path, count: int) -> dict[str, Source]:
    """Returns the first `count` training images of Fashion-MNIST and NUM_TEST test images."""
    splits = {}
    for split, prefix, number in (("train", "train", count), ("val", "t10k", NUM_TEST)):
        with gzip.open(files / f"{prefix}-images-idx3-ubyte.gz") as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        with gzip.open(files / f"{prefix}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)
        pixels = np.repeat(images[:number, :, :, None], 3, axis=-1)
        splits[split] = ArraySource(pixels, labels[:number].astype(np.int64), TITLES)
    return splits


def held_out() -> dict[str, Source]:
    """Returns three quarters of the training images of MNIST-5k, and the others as `val`."""
    section = Data(source="mnist5k", dev=0.25)
    return dict(zip(("train", "val"), open_both(section), strict=True))


def write_folders(splits: dict[str, Source], folder: pathlib.Path) -> pathlib.Path:
    """Writes images as PNG files `folder/<split>/<class>/<number>.png`; returns the folder."""
    for split, source in splits.items():
        for i, label in enumerate(source.labels):
            path = folder / split / source.classes[label] / f"{i:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source[i]["image"]).save(path)
    return folder


def run(method: str, seed: int, data: str, folder: pathlib.Path) -> dict:
    """Returns top-1 after fine-tuning and the scores of frozen features, of one run."""
    workdir = folder / f"{method}-{seed}"
    if not (workdir / "summary.json").exists():
        start = time.perf_counter()
        config = f"configs/few_labels.py:method={method},seed={seed},data={data}"
        command(f"--config={config}", f"--workdir={workdir}")
        (workdir / SECONDS).write_text(f"{time.perf_counter() - start:.0f}")
    summary = json.loads((workdir / "summary.json").read_text())
    stage = summary.get("stages", {"finetune": summary})["finetune"]
    scores = {"top1": stage["metrics"]["val/top1"]}
    scores["seconds"] = float((workdir / SECONDS).read_text())
    if method != "none":
        for protocol, name in (("knn", "20nn"), ("fewshot", "10shot")):
            out = workdir / "pretrain" / f"{protocol}-val.json"
            if not out.exists():
                command("evaluate", f"--workdir={out.parent}", f"--protocol={protocol}")
            found = json.loads(out.read_text())[name]
            scores[name] = found["mean"] if isinstance(found, dict) else found
    return scores


def raw_pixels(data: str) -> dict:
    """Returns the scores of the pixels themselves as features."""
    section = Data(source="mnist5k") if data == "mnist5k" else Data(source="folder", dir=data)
    sides = []
    for split in ("train", "val"):
        source = open_split(section, split)
        images = [decode.decode(source[i]["image"]) for i in range(len(source))]
        sides += [np.stack(images)[..., 0].reshape(len(images), -1) / np.float32(255)]
        sides += [source.labels]
    knn = probes.knn(*sides, 10)
    shots = fewshot.fewshot(*sides, 10, shots=(10,), seeds=fewshot.SEEDS)
    return {"20nn": knn.correct[20] / knn.n, "10shot": shots[10].mean}


def markdown(scores: dict[str, list[dict]], pixels: dict) -> str:
    """Returns a table of means in percent, and the gains over scratch paired by seed."""
    lines = [
        "| Run | Fine-tuned (%) | Gain over scratch | Each seed | kNN | 10-shot | Seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    scratch = [100 * each["top1"] for each in scores["none"]]
    for method, runs in scores.items():
        top1 = [100 * each["top1"] for each in runs]
        gains = [a - b for a, b in zip(top1, scratch, strict=True)]
        gain = "" if method == "none" else _with_error(gains)
        frozen = [
            f"{100 * statistics.mean(each[name] for each in runs):.1f}" if name in runs[0] else ""
            for name in ("20nn", "10shot")
        ]
        seconds = [each["seconds"] for each in runs]
        lines.append(
            f"| 10 labels per class, {METHODS[method]} | {_with_error(top1)} | {gain} | "
            f"{', '.join(f'{each:.1f}' for each in top1)} | {' | '.join(frozen)} | "
            f"{min(seconds):.0f}-{max(seconds):.0f} |"
        )
    knn, shots = (100 * pixels[name] for name in ("20nn", "10shot"))
    return "\n".join([*lines, f"| raw pixels | | | | {knn:.1f} | {shots:.1f} | |"])


def _with_error(values: list[float]) -> str:
    """Returns mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="folder of the runs")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--fashion", type=pathlib.Path, help="folder of the files of Fashion-MNIST")
    images.add_argument("--dev", action="store_true", help="score held-out training images")
    parser.add_argument("--count", type=int, default=4_000, help="training images of --fashion")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, with commas")
    args = parser.parse_args()
    methods = args.methods.split(",")
    if "none" not in methods or not METHODS.keys() >= set(methods):
        names = ", ".join(METHODS)
        parser.error(f"--methods={args.methods}: give none, which gains refer to, and of {names}")
    folder, data = args.folder.resolve(), "mnist5k"
    if args.fashion or args.dev:
        folder /= "fashion" if args.fashion else "dev"
        data = str(folder / "images")
        if not pathlib.Path(data).exists():
            splits = fashion(args.fashion, args.count) if args.fashion else held_out()
            write_folders(splits, folder / "partial").rename(data)
    scores: dict[str, list[dict]] = {name: [] for name in methods}
    for seed in range(args.seeds):
        for method, runs in scores.items():
            runs.append(run(method, seed, data, folder))
    print(markdown(scores, raw_pixels(data)))


if __name__ == "__main__":
    main()
