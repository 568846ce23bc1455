"""Images per second from JPEG files to float32 batches, compared with tf.data and torch.

  python benchmarks/pipeline.py --python tensorflow:/envs/tf/bin/python torch:/envs/torch/bin/python

All pipelines read the same files: random resized crop of 5 % to 100 % of the area to 224x224, flip,
[-1, 1], batches of 64. Each pass of a pipeline is a new process, and the passes of all pipelines
alternate, so that other load on the machine affects all of them. Peers need tensorflow, or torch
and timm, in the environment that `--python` names; peers without an environment are skipped.
`--memory 20000` measures the memory over that many images instead.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
BATCH_SIZE, SIZE, AREA = 64, 224, (0.05, 1.0)
NUM_FILES = 512
ENVIRONMENTS = ("ours", "tensorflow", "torch")

# Name of a pipeline -> its environment, and the arguments of the function of the environment.
FAST = {"decoder": "simplejpeg", "resample": "tf_bilinear"}
PIPELINES = {
    "tf.data, official style, bilinear": ("tensorflow", {"is_fused": False}),
    "tf.data, fused decode and crop, bilinear": ("tensorflow", {}),
    "tf.data, fused, antialiased": ("tensorflow", {"antialias": True}),
    "torch + timm, antialiased, 1 worker": ("torch", {"workers": 1}),
    "torch + timm, antialiased, 2 workers": ("torch", {"workers": 2}),
    "ours, Pillow, antialiased, threads": ("ours", {"workers": 0}),
    "ours, Pillow, antialiased, 1 worker": ("ours", {"workers": 1}),
    "ours, Pillow, antialiased, 2 workers": ("ours", {"workers": 2}),
    "ours, simplejpeg, antialiased, threads": ("ours", {"decoder": "simplejpeg", "workers": 0}),
    "ours, simplejpeg, antialiased, 2 workers": ("ours", {"decoder": "simplejpeg", "workers": 2}),
    "ours, simplejpeg, bilinear, threads": ("ours", {**FAST, "workers": 0}),
    "ours, simplejpeg, bilinear, 1 worker": ("ours", {**FAST, "workers": 1}),
    "ours, simplejpeg, bilinear, 2 workers": ("ours", {**FAST, "workers": 2}),
    "ours, simplejpeg, bilinear, fast crop, threads": (
        "ours",
        {**FAST, "workers": 0, "fast_crop": True},
    ),
    "ours, simplejpeg, bilinear, fast crop, 2 workers": (
        "ours",
        {**FAST, "workers": 2, "fast_crop": True},
    ),
}
GOALS = [  # Pipeline, peer, minimum ratio of their speeds.
    ("ours, simplejpeg, bilinear", "tf.data, fused decode and crop, bilinear", 1.1),
    ("ours, Pillow, antialiased", "tf.data, fused, antialiased", 1.0),
]
SCALINGS = ("torch + timm, antialiased", "ours, Pillow, antialiased", "ours, simplejpeg, bilinear")


def make_photos(folder: pathlib.Path) -> None:
    """Writes 512 crops of two photos, 500x375, JPEG quality 90, about 50 KB each."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos, random = load_sample_images().images, np.random.default_rng(0)
    for i in range(NUM_FILES):
        photo = photos[i % 2]
        top, left = (random.integers(old - new) for old, new in zip(photo.shape, (375, 500)))
        path = folder / "ab"[i % 2] / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[top : top + 375, left : left + 500]).save(path, quality=90)


def ours(folder: str, workers: int, **options):
    """Returns batches of this package."""
    sys.path.insert(0, str(ROOT))
    from vit_jax.config.schema import Data
    from vit_jax.data import loader
    from vit_jax.data.preprocess import TrainRecipe
    from vit_jax.data.sources import open_split

    source = open_split(Data(source="folder", dir=folder, val_fraction=0.0), "train")
    augment = f"inception_crop{AREA}|flip"
    recipe = TrainRecipe(Data(augment=augment, **options), (SIZE, SIZE))
    shard, sampler = loader.HostShard.from_hosts(BATCH_SIZE), loader.make_sampler(source, seed=0)
    rows = loader.TrainRows(source, recipe, sampler, shard, 0, 0, 10**6)
    return loader.host_batches(rows, shard, workers)


def tensorflow(folder: str, is_fused: bool = True, antialias: bool = False):
    """Returns batches of tf.data, which chooses its number of threads."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    def example(path):
        data = tf.io.read_file(path)
        shape = tf.io.extract_jpeg_shape(data)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            shape, tf.zeros([0, 0, 4]), area_range=AREA, use_image_if_no_bounding_boxes=True
        )
        if is_fused:
            box = tf.concat([begin[:2], extent[:2]], 0)
            image = tf.image.decode_and_crop_jpeg(data, box, channels=3)
        else:
            image = tf.slice(tf.io.decode_jpeg(data, channels=3), begin, extent)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=antialias)
        image = tf.image.random_flip_left_right(image)
        return image / 127.5 - 1, tf.strings.length(path)

    files = [str(path) for path in sorted(pathlib.Path(folder).rglob("*.jpg"))]
    data = tf.data.Dataset.from_tensor_slices(files).repeat().shuffle(NUM_FILES)
    data = data.map(example, tf.data.AUTOTUNE).batch(BATCH_SIZE, drop_remainder=True)
    return data.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def torch(folder: str, workers: int):
    """Returns batches of torch's DataLoader with timm's transform."""
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    for operator in ("nms", "qnms"):  # Missing in torchvision with a CPU build of torch.
        torch.library.define(
            f"torchvision::{operator}",
            "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        )
    from timm.data import create_transform

    transform = create_transform(
        SIZE,
        is_training=True,
        scale=AREA,
        interpolation="bilinear",
        color_jitter=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    files = sorted(pathlib.Path(folder).rglob("*.jpg")) * 64

    class Photos(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            return transform(Image.open(files[index]).convert("RGB")), index

    return iter(
        torch.utils.data.DataLoader(
            Photos(), BATCH_SIZE, shuffle=True, num_workers=workers, drop_last=True
        )
    )


def measure(batches, num_batches: int, num_rounds: int) -> list[tuple[float, float]]:
    """Returns images per second and per CPU second of each round, after a warm-up round."""
    speeds = []
    for _ in range(num_rounds + 1):
        start, start_cpu = time.perf_counter(), cpu_seconds()
        for _ in itertools.islice(batches, num_batches):
            pass
        elapsed = time.perf_counter() - start, cpu_seconds() - start_cpu
        speeds.append(tuple(num_batches * BATCH_SIZE / seconds for seconds in elapsed))
    return speeds[1:]


def processes() -> list[pathlib.Path]:
    """Returns the /proc folders of this process and its workers."""
    import multiprocessing

    workers = (child.pid for child in multiprocessing.active_children())
    return [pathlib.Path("/proc", str(pid)) for pid in (os.getpid(), *workers)]


def cpu_seconds() -> float:
    """Returns the CPU seconds of this process and its workers."""
    fields = [path.joinpath("stat").read_text().rpartition(")")[2].split() for path in processes()]
    ticks = sum(int(values[11]) + int(values[12]) for values in fields)  # User and system.
    return ticks / os.sysconf("SC_CLK_TCK")


def megabytes() -> float:
    """Returns the memory of this process and its workers, without libraries.

    Pages that they share are counted once.
    """
    texts = [path.joinpath("smaps_rollup").read_text() for path in processes()]
    lines = itertools.chain.from_iterable(text.splitlines() for text in texts)
    kinds = ("Pss_Anon:", "Pss_Shmem:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) / 1000


def watch_memory(batches, num_images: int) -> dict[str, float]:
    """Returns the peak, and the slope over the last three quarters in MB per 1,000 images."""
    points = []
    for number in range(num_images // BATCH_SIZE):
        next(batches)
        if number % 8 == 0:
            points.append((number * BATCH_SIZE / 1000, megabytes()))
    late = points[len(points) // 4 :]
    slope = np.polyfit(*zip(*late), 1)[0]
    return {"first": late[0][1], "peak": max(mb for _, mb in points), "slope": float(slope)}


def run(arguments, name: str) -> list | dict | None:
    """Returns the measurements of one pipeline in a new process; None if it cannot run."""
    environment, options = PIPELINES[name]
    python = arguments.pythons.get(environment)
    if python is None:
        return None
    job = {"name": environment, "folder": arguments.folder, "options": options}
    job |= {"batches": arguments.batches, "rounds": arguments.rounds, "memory": arguments.memory}
    process = subprocess.run(
        [python, __file__, "--job", json.dumps(job)], capture_output=True, text=True
    )
    if process.returncode:
        print(f"{name}: {process.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(process.stdout.splitlines()[-1])


def run_job(job: dict) -> None:
    """Measures the pipeline of a job and prints the result as JSON, in the process of `run`."""
    batches = globals()[job["name"]](job["folder"], **job["options"])
    if job["memory"]:
        result = watch_memory(batches, job["memory"])
    else:
        result = measure(batches, job["batches"], job["rounds"])
    print(json.dumps(result))


def print_speeds(speeds: dict[str, list[tuple[float, float]]]) -> None:
    """Prints a Markdown table of medians, the goals, and the scaling from one worker to two."""
    medians = {
        name: tuple(map(statistics.median, zip(*values)))
        for name, values in speeds.items()
        if values
    }
    print("| Pipeline | img/s, median | lowest to highest | img per CPU second |")
    print("|---|---|---|---|")
    for name, (speed, per_cpu) in medians.items():
        low, *_, high = sorted(speed for speed, _ in speeds[name])
        print(f"| {name} | {speed:,.0f} | {low:,.0f} to {high:,.0f} | {per_cpu:,.0f} |")
    print("\n| Goal | Minimum ratio | Measured ratio | Ratio by CPU seconds |\n|---|---|---|---|")
    for ours, peer, minimum in GOALS:
        variants = [speed for name, speed in medians.items() if name.startswith(ours)]
        if variants and peer in medians:
            ratios = [max(best) / theirs for best, theirs in zip(zip(*variants), medians[peer])]
            print(f"| {ours} / {peer} | {minimum} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    for name in SCALINGS:
        one, two = (medians.get(f"{name}, {n}") for n in ("1 worker", "2 workers"))
        if one and two:
            ratios = two[0] / one[0], 2 * two[1] / one[1]
            print(f"| {name}: 2 workers / 1 worker | 1.8 | {ratios[0]:.2f} | {ratios[1]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--folder", help="class folders of .jpg files (default: crops of two photos)"
    )
    parser.add_argument("--python", nargs="*", default=[], metavar="NAME:PATH")
    parser.add_argument(
        "--only", default="", help="run only the pipelines whose name contains this text"
    )
    parser.add_argument(
        "--passes", type=int, default=3, help="processes of each pipeline (default 3)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="timed rounds of each process (default 3)"
    )
    parser.add_argument(
        "--batches", type=int, default=16, help="batches of 64 images in each round (default 16)"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=0,
        metavar="N",
        help="measure memory over N images instead of speed",
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        return run_job(json.loads(arguments.job))
    pythons = dict(entry.split(":", 1) for entry in arguments.python)
    if set(pythons) - set(ENVIRONMENTS):
        parser.error(f"--python expects {', '.join(f'{name}:PATH' for name in ENVIRONMENTS)}")
    arguments.pythons = {"ours": sys.executable} | pythons
    names = [name for name in PIPELINES if arguments.only in name]
    with tempfile.TemporaryDirectory() as temporary:
        if not arguments.folder:
            make_photos(pathlib.Path(temporary))
            arguments.folder = temporary
        if arguments.memory:
            print(
                "| Pipeline | MB after a quarter | peak | MB per 1,000 images |\n|---|---|---|---|"
            )
            for name in names:
                if memory := run(arguments, name):
                    print(f"| {name} | {memory['first']:,.0f} | {memory['peak']:,.0f} | ", end="")
                    print(f"{memory['slope']:+.2f} |", flush=True)
            return None
        speeds: dict[str, list] = {name: [] for name in names}
        for _, name in itertools.product(range(arguments.passes), names):
            speeds[name] += run(arguments, name) or []
    return print_speeds(speeds)


if __name__ == "__main__":
    main()
