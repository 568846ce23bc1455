"""Jobs: names, time limits, and meshes and batches that fit the devices."""

import pytest

from vit_jax import config as config_lib
from vit_jax.checkpoints.signals import SignalRecorder
from vit_jax.distributed.job import AGAIN, PREEMPTED, Job, check_devices, name_of, seconds_of
from vit_jax.errors import ConfigError, HostError, StalledError, VitJaxError


def stages(**fields):
    config = config_lib.base_config()
    config.update(steps=4, batch_size=96)
    for name, value in fields.items():
        config_lib.override(config, name.replace("__", "."), value)
    return config_lib.check(config)


@pytest.mark.parametrize(
    ("workdir", "name"),
    [
        ("runs/l16", "l16"),
        ("/shared/My_Run.2/", "my-run-2"),
        ("gs://bucket/runs/b32", "b32"),
        ("runs/16", "vit-16"),
        (".", "vit"),
        ("runs/" + "a" * 38 + "-bcd", "a" * 38 + "-b"),
    ],
)
def test_name_of_a_job_is_a_valid_label(workdir, name):
    assert name_of(workdir) == name


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("24:00:00", 86_400),
        ("2-12", 216_000),
        ("1-0:30", 88_200),
        ("1-0:0:5", 86_405),
        ("", None),
        ("1h", None),
        ("1:2:3:4", None),
        ("-5", None),
        ("x-5", None),
    ],
)
def test_seconds_of_a_time_limit_of_slurm(text, seconds):
    assert seconds_of(text) == seconds


def test_exit_codes_after_which_a_run_continues_are_those_of_saved_signals_and_lost_processes():
    codes = {cls.exit_code for cls in (HostError, StalledError)}
    assert codes <= set(AGAIN)
    assert not {0, 1, 2, 3, 4, 5, 130} & set(AGAIN)
    assert all(code - 128 in [*SignalRecorder.SIGNALS] for code in PREEMPTED)
    others = {cls.exit_code for cls in VitJaxError.__subclasses__()} - codes
    assert not others & set(AGAIN)


def test_command_of_a_job_has_the_arguments_of_train():
    job = Job("n", "runs/n", 2, config="c.py:smoke", overrides={"optimizer.lr": "0.1"})
    assert job.command[2:] == [
        *("train", "--config=c.py:smoke", "--config.optimizer.lr=0.1", "--workdir=runs/n")
    ]
    assert Job("n", "runs/n", 2).command[2:] == ["train", "--workdir=runs/n"]


@pytest.mark.parametrize(
    ("workdir", "folder"),
    [
        ("runs/l16", "runs/.programs"),
        ("l16/", "./.programs"),
        ("gs://bucket/l16", "gs://bucket/.programs"),
    ],
)
def test_environment_of_a_job_stores_compiled_programs_beside_the_workdir(workdir, folder):
    assert Job("n", workdir, 1).environment["JAX_COMPILATION_CACHE_DIR"] == folder


@pytest.mark.parametrize(
    ("fields", "nodes", "gpus"),
    [
        ({}, 4, 8),
        ({"mesh__fsdp": 8}, 4, 8),
        ({"mesh__data": 4, "mesh__fsdp": 8}, 4, 8),
        ({"mesh__data": 4, "mesh__fsdp": 8}, 4, 0),
        ({}, 96, 0),
        ({"mesh__tensor": 2}, 64, 0),  # Two nodes may share a part of the batch.
        ({"accumulate": 3}, 4, 8),
    ],
)
def test_check_devices_accepts_a_mesh_and_a_batch_that_fit(fields, nodes, gpus):
    check_devices(stages(**fields), nodes, gpus)


@pytest.mark.parametrize(
    ("fields", "nodes", "gpus", "message"),
    [
        ({"mesh__fsdp": 5}, 4, 8, "mesh data:-1,fsdp:5,tensor:1 does not fit 32 devices"),
        ({"mesh__data": 3}, 2, 0, "has 3 devices, which 2 nodes cannot share evenly"),
        ({"batch_size": 100}, 4, 8, "batch_size 100 is not divisible by 32 devices; nearest: 96"),
        ({"batch_size": 100}, 8, 0, "batch_size 100 is not divisible by 8 devices"),
        ({"accumulate": 2}, 4, 16, "is not divisible by 64 devices times accumulate=2"),
    ],
)
def test_check_devices_rejects_what_does_not_fit(fields, nodes, gpus, message):
    with pytest.raises(ConfigError, match=message):
        check_devices(stages(**fields), nodes, gpus)


def test_check_devices_names_the_stage():
    config = config_lib.base_config("first", "second")
    for stage in config.stages.values():
        stage.update(steps=4, batch_size=96)
    config.stages.second.batch_size = 90
    with pytest.raises(ConfigError, match="stage second: batch_size 90 is not divisible"):
        check_devices(config_lib.check(config), 4, 8)
