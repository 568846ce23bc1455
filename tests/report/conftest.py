"""Runs whose pages the tests of this folder read."""

import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

from tests.support.written_pages import train_quickstart
from vit_jax import main


def made_once(factory, name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Returns a folder that the first of the test processes makes."""
    top = factory.getbasetemp()
    top = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top
    with open(top / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (top / f"{name}.done").exists():
            make(top / name)
            (top / f"{name}.done").touch()
    return top / name


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory) -> pathlib.Path:
    """A finished workdir of stages with the pages that training writes."""
    return made_once(tmp_path_factory, "quickstart", train_quickstart)


@pytest.fixture(scope="session")
def reported(quickstart, tmp_path_factory) -> pathlib.Path:
    """A copy of `quickstart` with the pages that the verb `report` writes."""

    def make(folder: pathlib.Path) -> None:
        shutil.copytree(quickstart, folder)
        assert main.run(["report", str(folder)]) == 0

    return made_once(tmp_path_factory, "reported", make)
