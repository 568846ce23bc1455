"""Tests of `stage`: comparison of the data of a resumed run with that of its checkpoint."""

import types

import numpy as np
import pytest

from vit_jax.config.schema import Config, Data, Model, Task
from vit_jax.data.image_folder import FolderSource
from vit_jax.distributed import device_memory
from vit_jax.errors import ConfigError, DataError
from vit_jax.training.stage import Stage, prepare_stage

FILES = tuple(f"{'ab'[k % 2]}/{k}.jpg" for k in range(40))


def stage(files=FILES, val=FILES[:2], root="here", **data):
    """A stage of some files, with the attributes that the comparison uses."""
    sources = [
        FolderSource(
            root, tuple(names), np.array([int(name[0] == "b") for name in names]), ("a", "b")
        )
        for names in (files, val)
    ]
    values = dict(zip(("train_source", "val_source"), sources))
    values |= {"config": Config(data=Data(**data)), "classes": ("a", "b")}
    found = types.SimpleNamespace(**values)
    for name in ("fingerprints", "sketch"):
        setattr(found, name, getattr(Stage, name).func(found))
    return found


def compare(new, old=None) -> str:
    old = old or stage()
    data = {"num_examples": len(old.train_source), "fingerprints": old.fingerprints}
    return Stage.check_same_data(new, {"classes": ["a", "b"]}, data | {"sketch": old.sketch})


def test_check_same_data_accepts_a_moved_folder():
    assert compare(stage(root="elsewhere")) == ""


def test_check_same_data_accepts_and_reports_a_removed_image():
    note = compare(stage(FILES[:7] + FILES[8:]))
    assert note.startswith("1 of 40 training images have been removed; the run continues")
    assert compare(stage(FILES[3:], max_bad=0.1)).startswith("3 of 40 ")


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (stage(FILES[3:]), r"3 of 40 .* more than config\.data\.max_bad=0\.001 allows"),
        (stage(FILES[1:], val=FILES[:1]), "have changed .*: 39 training examples instead of 40"),
        (stage(("a/new.jpg", *FILES[1:])), "have changed since this run started. Restore"),
        (stage((*FILES, "a/new.jpg")), "41 training examples instead of 40"),
    ],
)
def test_check_same_data_refuses_other_data(new, message):
    with pytest.raises(DataError, match=message):
        compare(new)


def test_prepare_stage_refuses_cudnn_without_a_gpu(tmp_path):
    config = Config(steps=1, batch_size=8, model=Model(kernels="cudnn"))
    with pytest.raises(ConfigError, match="'cudnn', which needs a GPU; the devices are cpu"):
        prepare_stage("", config, tmp_path, {})


def test_a_loss_of_the_user_that_fails_in_the_estimate_of_memory_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(device_memory, "memory_limit", lambda: 2**24)
    config = Config(
        steps=1,
        batch_size=8,
        model=Model(name="vit_ti16", num_layers=1),
        task=Task(loss="math:sqrt"),
        data=Data(image_size=32),
    )
    with pytest.raises(ConfigError, match=r"task\.loss='math:sqrt' cannot be used for training: T"):
        prepare_stage("", config, tmp_path, {})
