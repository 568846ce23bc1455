"""Few-shot accuracy on scanned digits: features of a ViT trained on MNIST-5k and raw pixels.

  python benchmarks/digits.py --folder=runs/digits

Trains `configs/mnist5k.py` first (five minutes on two CPU cores) if the folder has no finished run.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data.sources import open_split
from vit_jax.evaluation import fewshot

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_command(*arguments: str) -> None:
    """Runs a command of vit_jax in a new process."""
    command = [sys.executable, "-m", "vit_jax.main", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)


def pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 64 grey values of each digit, and the labels."""
    source = open_split(Data(source="digits"), split)
    images = [source[i]["image"][..., 0].ravel() for i in range(len(source))]
    return np.array(images, np.float32) / 255, source.labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    folder = parser.parse_args().folder.resolve()
    if not (folder / "summary.json").exists():
        run_command("--config=configs/mnist5k.py", f"--workdir={folder}")
    data = ("--config.data.source=digits", f"--out={folder / 'digits'}")
    run_command("evaluate", "--protocol=fewshot", f"--workdir={folder}", *data)
    report = json.loads((folder / "digits" / "fewshot-val.json").read_text())
    raw = fewshot.fewshot(*pixels("train"), *pixels("val"), num_classes=10)
    print("| features | " + " | ".join(f"{k} shots" for k in raw) + " |")
    print("|---" * (len(raw) + 1) + "|")
    rows = {
        "raw pixels": {k: (scores.mean, scores.std) for k, scores in raw.items()},
        "ViT trained on MNIST-5k": {
            k: (report[f"{k}shot"]["mean"], report[f"{k}shot"]["std"]) for k in raw
        },
    }
    for name, values in rows.items():
        cells = (f"{100 * mean:.1f} +- {100 * std:.1f}" for mean, std in values.values())
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"n={report['n']}/{report['size']}")


if __name__ == "__main__":
    main()
