"""A folder in which what the pages say can be done: with small things in place of large ones.

All that differs from a user's machine stands here.
"""

import functools
import pathlib
import shutil
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
from vit_jax.models.sizes import SIZES, Size
from vit_jax.training import build
from vit_jax.weights import published

# Every size is this one: published weights have their names, their form and their classes.
SMALL = Size(num_layers=2, hidden_size=32, mlp_size=64, num_heads=4)
READY = {  # Runs that pages take for done, where they do not do them.
    "runs/photos": "configs/finetune.py:data=photos,init=imagenet21k/ViT-B_16",
    "runs/quickstart": "configs/quickstart.py",
}
FEW = {"NUM_IMAGES": 8, "NUM_SELECTED": 3, "NUM_ROWS": 2, "NUM_PATCHES": 2}  # In figures.
TRIAL = ("steps=2", "model.num_layers=1")  # Most of the time is compiling.


@pytest.fixture
def desk(tmp_path, monkeypatch, photos, photo_folder):
    """The working folder of a page, with all that its commands read."""
    monkeypatch.chdir(tmp_path)
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
    monkeypatch.setattr(published, "fetch_published", small_weights)
    monkeypatch.setattr(published, "class_names", lambda entry: None)
    monkeypatch.setattr(style, "DPI", 30)
    for name, number in FEW.items():
        monkeypatch.setattr(draw, name, number)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def small(monkeypatch):
    """Small models under the names of large ones."""
    for size in SIZES:
        monkeypatch.setitem(SIZES, size, SMALL)


def write_tars(classes: pathlib.Path) -> None:
    """ImageNet's form, a tar of one tar for each class, and ImageNet-21k's, a folder of them."""
    folder = pathlib.Path("winter21_whole")
    folder.mkdir()
    for place in sorted(classes.iterdir()):
        with tarfile.open(folder / f"{place.name}.tar", "w") as tar:
            for file in sorted(place.iterdir())[:4]:
                tar.add(file, file.name)
    with tarfile.open("ILSVRC2012_img_train.tar", "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)


@functools.cache
def small_weights(entry: published.Published) -> pathlib.Path:
    """An official `.npz` of random numbers for a published name."""
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


def set_ready(text: str, made: set[str]) -> None:
    """Puts the finished runs that a page speaks of into the desk, but for those it trains."""
    for folder, config in READY.items():
        if folder in text and folder not in made:
            train([f"--config={config}"], folder)


def train(arguments: list[str], workdir: str) -> None:
    """Trains by a page's command, as a trial of two steps; what was trained before is copied."""
    shutil.copytree(trained(tuple(arguments)), workdir)


@functools.cache
def trained(arguments: tuple[str, ...]) -> pathlib.Path:
    """The workdir of a training command without --workdir, made into a trial."""
    file = next(text for text in arguments if text.startswith("--config=")).partition("=")[2]
    if not file.endswith("smoke"):
        file += ",smoke" if ":" in file else ":smoke"
    rest = [text for text in arguments if not text.startswith("--config=")]
    stages = [f"stages.{stage}." for stage in config_lib.load(file).stages] or [""]
    trial = [f"--config.{stage}{field}" for stage in stages for field in TRIAL]
    workdir = pathlib.Path(tempfile.mkdtemp()) / "run"
    with pytest.MonkeyPatch.context() as patch:
        if not any("mesh" in text for text in rest):
            one = mesh.make_mesh(devices=jax.devices()[:1])
            patch.setattr(build, "build_mesh", lambda config: one)
        assert main.run([f"--config={file}", f"--workdir={workdir}", *trial, *rest]) == 0
    return workdir
