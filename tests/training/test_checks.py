"""Checks of a stage before it runs."""

import pytest

from tests.support.tiny import tiny
from vit_jax.config.schema import Config, Data, Optimizer
from vit_jax.data.image_folder import folder_source
from vit_jax.data.subsets import Subset
from vit_jax.errors import ConfigError
from vit_jax.training.checks import check_outside_data, check_stage, unusual_sizes
from vit_jax.weights.metadata import UNKNOWN, WeightsMetadata


def test_check_outside_data_refuses_a_workdir_among_the_classes(tmp_path):
    root = tmp_path / "data" / "train"
    root.mkdir(parents=True)
    (tmp_path / "link").symlink_to(root)
    source = Subset(folder_source(str(root), {"cat": ["cat/1.png"], "dog": ["dog/1.png"]}), [0])
    config = Config(data=Data(source="folder"))
    for folder in (root, root / "cat", root / "runs" / "1", tmp_path / "link" / "run"):
        with pytest.raises(ConfigError, match=r"is inside .*train, whose folders are classes"):
            check_outside_data(folder, config, source)
        check_outside_data(folder, Config(data=Data(source="csv")), source)
    for folder in (tmp_path / "data" / "run", tmp_path / "data" / "train2"):
        check_outside_data(folder, config, source)


def test_unusual_sizes_name_a_smaller_batch_and_image():
    config = Config(batch_size=512, data=Data(image_size=384))
    small = WeightsMetadata(image_size=(32, 32))
    batch, image = unusual_sizes(config, 48, small)
    assert batch.startswith("batch_size=512 is larger than the training set, 48 images: ")
    assert "--config.batch_size=32 is faster" in batch
    assert image.startswith("images of 384x384 are more than 4 times those of the starting")
    assert "weights, 32x32: size=32 as an argument" in image
    assert unusual_sizes(config, 512, WeightsMetadata(image_size=(96, 64))) == []
    [batch] = unusual_sizes(config, 511, UNKNOWN)
    assert "--config.batch_size=256 is" in batch


def test_check_stage_refuses_parameters_that_are_frozen_for_more_steps_than_the_run_has():
    check_stage(Config(optimizer=Optimizer(freeze_steps=(("^head/", 10),))), tiny(), 10)
    with pytest.raises(ConfigError, match=r"freeze_steps has 11 steps for '\^head/'; it must be"):
        check_stage(Config(optimizer=Optimizer(freeze_steps=(("^head/", 11),))), tiny(), 10)
