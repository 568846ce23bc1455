"""Eight CPU devices, no silent broadcasting of ranks, and a way to run the command line."""

import os

import jaxlib.version

os.environ["VIT_JAX_TRUSTED"] = "tests"  # User-defined objects of tests.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # Tests compile what they test.
# Their programs run for milliseconds: optimising them would take longer than it saves.
# Emitters of fusions take half of what is left of compilation; jaxlib 0.11 has no others.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * (jaxlib.version.__version_info__ < (0, 11))
)

import gc
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

jax.config.update("jax_numpy_rank_promotion", "raise")
SLOW_FILES = ("test_multihost_elastic.py", "test_train_resume.py", "test_train.py")
gc.set_threshold(100_000, 20, 20)  # JAX makes many objects; collecting them took 15 % of the time.


def pytest_collection_modifyitems(items):
    """The slow files first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in SLOW_FILES)


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Two real photos, 427x640x3 uint8."""
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory, photos) -> pathlib.Path:
    """JPEG crops of two real photos as `train/` and `val/` class folders."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for title, photo in zip(("flower", "temple"), reversed(photos), strict=True):
        for split, count in (("train", 24), ("val", 7)):
            folder = root / split / title
            folder.mkdir(parents=True)
            for i in range(count):
                top, left = random.integers(0, 300), random.integers(0, 500)
                crop = photo[top : top + 100, left : left + 120]
                Image.fromarray(crop).save(folder / f"{i:02}.jpg", quality=90)
    return root
