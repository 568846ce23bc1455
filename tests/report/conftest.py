"""Runs whose pages the tests of this folder read."""

import pathlib
import shutil

import pytest

from tests.support.written_pages import train_quickstart
from vit_jax import main


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory) -> pathlib.Path:
    """A finished workdir of stages with the pages that training writes."""
    return train_quickstart(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="session")
def reported(quickstart, tmp_path_factory) -> pathlib.Path:
    """A copy of `quickstart` with the pages that the verb `report` writes."""
    folder = tmp_path_factory.mktemp("reported") / "quickstart"
    shutil.copytree(quickstart, folder)
    assert main.run(["report", str(folder)]) == 0
    return folder
