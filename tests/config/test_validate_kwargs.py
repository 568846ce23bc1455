"""Keyword arguments of an optimizer: where they can be set, and which ones are refused."""

import json
import re

import pytest

from vit_jax import config as config_lib
from vit_jax.config import base_config, check, override
from vit_jax.config.fields import Kwargs
from vit_jax.config.schema import Optimizer
from vit_jax.errors import ConfigError


def config_of_steps(*stages: str):
    config = base_config(*stages)
    for run in config.stages.values() if stages else (config,):
        run.steps = 10
    return config


def checked(config) -> Optimizer:
    return check(config)[""].optimizer


def test_kwargs_can_be_set_as_attributes_as_a_dictionary_and_by_update():
    config = config_of_steps()
    config.optimizer.kwargs.b1 = 0.8
    assert checked(config).kwargs == {"b1": 0.8}
    config.optimizer.kwargs = {"b2": 0.98}
    assert checked(config).kwargs == {"b2": 0.98}
    config.optimizer.update(lr=0.1, kwargs={"b1": 0.7})
    assert checked(config).kwargs == {"b1": 0.7, "b2": 0.98}


@pytest.mark.parametrize("is_locked", [False, True])
def test_kwargs_can_be_set_on_the_command_line(is_locked):
    config = config_of_steps("a", "b")
    config.stages.a.optimizer.kwargs.b1 = 0
    if is_locked:
        config.lock()
    override(config, "stages.a.optimizer.kwargs.b1", "0.8")
    override(config, "stages.a.optimizer.kwargs.mu_dtype", "bfloat16")
    override(config, "stages.b.optimizer.kwargs", "{'b2': 0.5}")
    a, b = (stage.optimizer.kwargs for stage in check(config).values())
    assert (a, b) == ({"b1": 0.8, "mu_dtype": "bfloat16"}, {"b2": 0.5})
    override(config, "stages.a.optimizer.kwargs", "{}")
    assert check(config)["a"].optimizer.kwargs == {}


def test_kwargs_equal_to_the_defaults_give_an_equal_config():
    config = config_of_steps()
    default = checked(config)
    config.optimizer.kwargs = {"b2": 0.999, "mu_dtype": "float32"}
    assert checked(config) == default
    assert hash(checked(config)) == hash(default)
    config.optimizer.kwargs.b1 = 0
    assert checked(config).kwargs == {"b1": 0.0}
    assert type(checked(config).kwargs["b1"]) is float
    assert checked(config) != default


def test_hash_of_kwargs_does_not_depend_on_their_order():
    assert hash(Kwargs(b1=0.5, b2=0.6)) == hash(Kwargs(b2=0.6, b1=0.5))


def test_kwargs_are_an_object_in_config_json():
    config = config_of_steps()
    config.optimizer.update(name="sgd", kwargs={"nesterov": True})
    stages = check(config)
    values = json.loads(json.dumps(config_lib.to_dict(stages)))
    assert values["optimizer"]["kwargs"] == {"nesterov": True}
    assert config_lib.from_dict(values) == stages
    assert check(config_lib.to_config_dict(stages)) == stages


def test_kwargs_can_be_replaced_one_by_one():
    config = config_of_steps()
    config.optimizer.kwargs.b1 = 0.8
    run = config_lib.replaced(check(config)[""], {"optimizer.kwargs.b2": 0.5}, "sweep.grid")
    assert run.optimizer.kwargs == {"b1": 0.8, "b2": 0.5}


ADAMW = "b1, b2, eps, mu_dtype"


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("adamw", {"beta1": 0.9}, f"kwargs has no option 'beta1'; adamw has {ADAMW}. Did you mean"),
        ("sgd", {"b1": 0.9}, "kwargs has no option 'b1'; sgd has momentum, nesterov, accumulator_"),
        ("adamw", {"b1": "fast"}, "config.optimizer.kwargs.b1 is 'fast'; it must be a number."),
        ("adamw", {"b1": 1}, "config.optimizer.kwargs.b1 is 1.0; it must be at most 0.99999."),
        ("adamw", {"b1": float("nan")}, "config.optimizer.kwargs.b1 is nan; it must be finite."),
        ("adamw", {"b1": {"x": 1}}, "config.optimizer.kwargs.b1 is x: 1\n; it must be a number."),
        ("sgd", {"nesterov": 1}, "config.optimizer.kwargs.nesterov is 1; it must be True or Fal"),
        ("adamw", {"mu_dtype": "int8"}, "kwargs.mu_dtype is 'int8'; choose from ['float32', 'bf"),
    ],
)
def test_wrong_kwargs_are_refused_in_one_line(name, kwargs, message):
    config = config_of_steps()
    config.optimizer.update(name=name, kwargs=kwargs)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(config)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optimizer.kwargs", "3", "--config.optimizer.kwargs is a section"),
        ("optimizer.kwargs.b1.x", "3", "config.optimizer.kwargs has no field 'b1'"),
        ("optimizer.options.b1", "3", "config.optimizer has no field 'options'"),
    ],
)
def test_wrong_paths_are_refused_on_the_command_line(key, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        override(config_of_steps(), key, text)
