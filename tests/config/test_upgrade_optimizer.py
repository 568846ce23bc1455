"""Options of optimizers in the configs of earlier versions."""

import re

import pytest

from vit_jax import config as config_lib
from vit_jax.config import base_config, check, load, override
from vit_jax.errors import ConfigError

OLD = {"beta1": 0.8, "beta2": 0.98, "momentum": 0.7, "moment_dtype": "bfloat16"}


def old_values(**optimizer) -> dict:
    """The `config.json` of an earlier version."""
    config = base_config()
    config.steps = 10
    values = config_lib.to_dict(check(config))
    del values["optimizer"]["kwargs"]
    values["optimizer"].update(optimizer)
    return values


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("adamw", {"b1": 0.8, "b2": 0.98, "mu_dtype": "bfloat16"}),
        ("lamb", {"b1": 0.8, "b2": 0.98, "mu_dtype": "bfloat16"}),
        ("sgd", {"momentum": 0.7, "accumulator_dtype": "bfloat16"}),
        ("adafactor", {"momentum": 0.8, "beta2_cap": 0.98, "dtype_momentum": "bfloat16"}),
    ],
)
def test_upgrade_moves_options_of_the_optimizer_to_kwargs(name, kwargs):
    values = old_values(name=name, **OLD)
    assert config_lib.from_dict(values)[""].optimizer.kwargs == kwargs
    stages = {"stages": {"pretrain": values}}
    assert config_lib.from_dict(stages)["pretrain"].optimizer.kwargs == kwargs


def test_upgrade_of_old_defaults_gives_the_default_config():
    old = {"beta1": 0.9, "beta2": 0.999, "momentum": 0.9, "moment_dtype": "float32"}
    for name in ("adamw", "lamb", "sgd", "adafactor"):
        assert config_lib.from_dict(old_values(name=name, **old))[""].optimizer.kwargs == {}


@pytest.mark.parametrize(
    ("field", "new"),
    [
        ("beta1", "optimizer.kwargs.b1 (adafactor: optimizer.kwargs.momentum)"),
        ("beta2", "optimizer.kwargs.b2 (adafactor: optimizer.kwargs.beta2_cap)"),
        ("momentum", "optimizer.kwargs.momentum"),
        ("moment_dtype", "optimizer.kwargs.mu_dtype (sgd: optimizer.kwargs.accumulator_dtype"),
    ],
)
def test_old_fields_are_refused_with_the_new_spelling(field, new, tmp_path):
    message = re.escape(f"no field {field!r}. Use {new}")
    with pytest.raises(ConfigError, match=message):
        override(base_config(), f"optimizer.{field}", "0.9")
    with pytest.raises(ConfigError, match=message):
        override(base_config("a"), f"stages.a.optimizer.{field}", "0.9")
    path = tmp_path / "old.py"
    path.write_text(
        "from vit_jax.config import base_config\n\n\n"
        f"def get_config(arg=None):\n    config = base_config()\n    config.optimizer.{field} = 0\n"
    )
    with pytest.raises(ConfigError, match=message):
        load(str(path))
