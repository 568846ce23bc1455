"""Tests of `ray_train` that need no cluster."""

import sys

import pytest

from vit_jax import errors
from vit_jax.training import ray_train


def test_fit_without_ray_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(errors.ConfigError, match=r"pip install 'vit-jax\[ray\]'"):
        ray_train.fit("configs/quickstart.py:smoke", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "is_user_error"),
    [
        (errors.ConfigError("a"), True),
        (errors.DataError("a"), True),
        (errors.CheckpointError("a"), True),
        (errors.NonFiniteError("a"), True),
        (OSError(28, "No space left on device"), True),
        (OSError(5, "Input/output error"), False),
        (errors.InUseError("the worker of the attempt before"), False),
        (errors.HostError("a"), False),
        (errors.StalledError("a"), False),
        (errors.Interrupted("a", 15), False),
        (RuntimeError("connection closed by peer"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_user_errors_are_those_that_a_restart_repeats(error, is_user_error):
    assert ray_train.is_user_error(error) == is_user_error


class Failed(Exception):
    """An error with the attributes of ray.train.ControllerError or WorkerGroupError."""

    def __init__(self, message, **attributes):
        super().__init__(message)
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    "failed",
    [
        Failed("controller", controller_failure=errors.DataError("a folder")),
        Failed("workers", worker_failures={0: RuntimeError("x"), 1: errors.DataError("a folder")}),
    ],
    ids=str,
)
def test_error_of_a_worker_is_raised_as_it_is(failed, tmp_path):
    error = ray_train.cause_of(failed, tmp_path)
    assert type(error) is errors.DataError
    assert str(error) == "a folder"


def test_lost_workers_are_a_host_error_that_names_the_workdir(tmp_path):
    failed = Failed("workers", worker_failures={1: RuntimeError("the actor\n  died")})
    error = ray_train.cause_of(failed, tmp_path)
    assert type(error) is errors.HostError
    assert str(tmp_path) in str(error)
    assert "the actor died" in str(error)
