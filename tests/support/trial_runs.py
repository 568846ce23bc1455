"""A working folder in which the commands of the documents run, with small models and short runs."""

import functools
import pathlib
import re
import shutil
import sys
import tarfile
import tempfile

import jax
import numpy as np
import pytest
from PIL import Image

from tests.support.runs import ROOT
from vit_jax import config as config_lib
from vit_jax import main
from vit_jax.distributed import mesh
from vit_jax.figures import draw, style
from vit_jax.models import registry as model_registry
from vit_jax.models.size_table import SIZES, Size
from vit_jax.training import build
from vit_jax.weights import published

# Replaces every size. Published weights of this size keep their names, format and classes.
SMALL = Size(num_layers=2, hidden_size=32, mlp_size=64, num_heads=4)
FINISHED_RUNS = {  # Workdirs that documents use without training them, and their configs.
    "runs/photos": "configs/finetune.py:data=photos,init=imagenet21k/ViT-B_16",
    "runs/quickstart": "configs/quickstart.py",
}
# Fewer images in figures.
FIGURE_COUNTS = {"NUM_IMAGES": 8, "NUM_SELECTED": 3, "NUM_ROWS": 2, "NUM_PATCHES": 2}
TRIAL = ("steps=2", "model.num_layers=1")  # Compiling takes most of the time.


@pytest.fixture
def working_folder(tmp_path, monkeypatch, photos, photo_folder):
    """Makes a folder with all files that the commands of documents read the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # As for `python -m vit_jax.main`.
    for folder in ("configs", "benchmarks"):
        pathlib.Path(folder).symlink_to(ROOT / folder)
    for folder in ("photos", "more_photos", "data/flowers"):
        pathlib.Path(folder).mkdir(parents=True)
    for split in ("train", "val"):
        pathlib.Path("photos", split).symlink_to(photo_folder / split)
    for folder in ("more_photos", "data/flowers"):
        Image.fromarray(photos[1]).save(pathlib.Path(folder) / "flower.jpg")
    Image.fromarray(photos[0]).save("new.jpg")
    write_tars(photo_folder / "train")
    monkeypatch.setattr(published, "fetch_published", write_small_weights)
    monkeypatch.setattr(published, "class_names", lambda entry: None)
    monkeypatch.setattr(style, "DPI", 30)
    for name, number in FIGURE_COUNTS.items():
        monkeypatch.setattr(draw, name, number)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    for name, module in list(sys.modules.items()):  # Pages write packages of the same name.
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def small_models(monkeypatch):
    """Gives every model the size SMALL."""
    for size in SIZES:
        monkeypatch.setitem(SIZES, size, SMALL)
    model_registry.make_init.cache_clear()  # A model is cached by name, not by size.
    yield
    model_registry.make_init.cache_clear()


def write_tars(classes: pathlib.Path) -> None:
    """Writes a tar file of tar files, as of ImageNet, and a folder of them, as of ImageNet-21k."""
    folder = pathlib.Path("winter21_whole")
    folder.mkdir()
    for class_folder in sorted(classes.iterdir()):
        with tarfile.open(folder / f"{class_folder.name}.tar", "w") as tar:
            for file in sorted(class_folder.iterdir())[:4]:
                tar.add(file, file.name)
    with tarfile.open("ILSVRC2012_img_train.tar", "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)


@functools.cache
def write_small_weights(entry: published.PublishedWeights) -> pathlib.Path:
    """Returns the path of an official `.npz` file of random numbers for a published name."""
    model = model_registry.create_model(
        entry.model,
        num_classes=entry.num_classes,
        image_size=entry.image_size,
        pool=entry.pool,
        pre_logits=entry.pre_logits,
    )
    random = np.random.default_rng(0)
    shapes = model_registry.param_shapes(model)
    arrays = {name: 0.02 * random.standard_normal(shape) for name, shape in shapes.items()}
    path = pathlib.Path(tempfile.mkdtemp()) / "weights.npz"
    np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()})
    return path


def add_finished_runs(text: str, trained: set[str]) -> None:
    """Trains the workdirs of FINISHED_RUNS that a text uses and its commands do not train."""
    for folder, config in FINISHED_RUNS.items():
        if folder in text and folder not in trained:
            train([f"--config={config}"], folder)


def train(arguments: list[str], workdir: str) -> None:
    """Runs a training command as a trial of two steps, or copies the workdir of an equal one."""
    shutil.copytree(trial_workdir(tuple(arguments)), workdir)


@functools.cache
def trial_workdir(arguments: tuple[str, ...]) -> pathlib.Path:
    """Returns the workdir of a trial of a training command without --workdir."""
    file = next(text for text in arguments if text.startswith("--config=")).partition("=")[2]
    name, _, config_arguments = file.partition(":")
    # A trial has its own.
    kept = re.sub(r"\b(init|pixel_stats|steps|size|dir)=[^,]*", "", config_arguments)
    kept = [text for text in kept.split(",") if text not in ("", "smoke")]
    file = f"{name}:{','.join([*kept, 'smoke'])}"
    rest = [text for text in arguments if not text.startswith("--config=")]
    stages = [f"stages.{stage}." for stage in config_lib.load(file).stages] or [""]
    trial = [f"--config.{stage}{field}" for stage in stages for field in TRIAL]
    workdir = pathlib.Path(tempfile.mkdtemp()) / "run"
    with pytest.MonkeyPatch.context() as patch:
        if not any("mesh" in text for text in rest):
            one_device = mesh.make_mesh(devices=jax.devices()[:1])
            patch.setattr(build, "build_mesh", lambda config: one_device)
        assert main.run([f"--config={file}", f"--workdir={workdir}", *trial, *rest]) == 0
    return workdir
