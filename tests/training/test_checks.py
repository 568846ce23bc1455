"""Checks of a stage before it runs."""

import pytest

from vit_jax.config.schema import Config, Data
from vit_jax.data.image_folder import folder_source
from vit_jax.data.subsets import Subset
from vit_jax.errors import ConfigError
from vit_jax.training.checks import check_outside_data


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
