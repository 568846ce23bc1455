"""User-defined objects: training imports them, and a check of a config does not."""

import re
import sys

import pytest

from vit_jax import config as config_lib
from vit_jax.config import base_config, check, registry
from vit_jax.config.schema import Config, Model
from vit_jax.config.validate import import_user_code
from vit_jax.errors import ConfigError


def config_with(**sections) -> Config:
    return check(config_lib.to_config_dict({"": Config(steps=10, **sections)}))[""]


def optimizer_config(name: str, **kwargs) -> Config:
    config = base_config()
    config.steps = 10
    config.optimizer.update(name=name, kwargs=kwargs)
    return check(config)[""]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Returns a function that writes the module `own` with a text."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    return (tmp_path / "own.py").write_text


@pytest.mark.parametrize(
    ("field", "others"),
    [
        ("model.mlp", {}),
        ("task.name", {}),
        ("task.loss", {}),
        ("task.distill", {}),
        ("data.source", {}),
        ("data.source", {"data.mix": (("a", 1),)}),
        ("optimizer.schedule", {}),
        ("optimizer.name", {}),
        ("fewshot.source", {"fewshot.every": 1}),
    ],
)
def test_check_imports_nothing_and_training_does(field, others, own_module):
    own_module("raise NotImplementedError('one\\ntwo')")
    config = config_lib.replaced(Config(steps=10), {field: "own:part"} | others, "config")
    assert config_lib.from_dict(config_lib.to_dict({"": config})) == {"": config}
    message = f"config.{field} is 'own:part'; 'own:part' cannot be imported: "
    with pytest.raises(ConfigError) as caught:
        import_user_code(config)
    assert str(caught.value) == message + "NotImplementedError: one two."


def test_check_calls_nothing(tmp_path):
    values = config_lib.to_dict({"": Config(steps=1)})
    values["optimizer"] |= {"name": "os:mkdir", "kwargs": {"path": str(tmp_path / "made")}}
    config = config_lib.from_dict(values)[""]
    assert config.optimizer.kwargs == {"path": str(tmp_path / "made")}
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("part = undefined", "NameError: name 'undefined' is not defined"),
        ("def", "SyntaxError: invalid syntax (own.py, line 1)"),
        ("", "AttributeError: module 'own' has no attribute 'part'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(text, reason, own_module):
    own_module(text)
    with pytest.raises(ConfigError) as caught:
        import_user_code(config_with(model=Model(mlp="own:part")))
    assert str(caught.value) == (
        "config.model.mlp is 'own:part'; 'own:part' cannot be imported: " + reason + "."
    )


@pytest.mark.parametrize("name", ["a.b:", ":c", "a b:c", "a:b.c", "a:b:c", "a-b:c"])
def test_check_refuses_a_wrong_form_of_name(name):
    with pytest.raises(ConfigError, match=r"model\.mlp is .*; expected package\.module:name\.$"):
        config_with(model=Model(mlp=name))


def test_options_of_the_user_are_checked_by_their_defaults():
    import_user_code(optimizer_config("optax:scale_by_yogi", b1=1))
    with pytest.raises(ConfigError, match=r"kwargs\.b1 is 'fast'; it must be a number\.$"):
        import_user_code(optimizer_config("optax:scale_by_yogi", b1="fast"))
    with pytest.raises(ConfigError, match=r"kwargs has no option 'beta'; optax:scale_by_yogi has"):
        import_user_code(optimizer_config("optax:scale_by_yogi", beta=1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math:pi", "config.optimizer.kwargs: math:pi takes no options: 3.14"),
        ("math:sqrt", "config.optimizer.kwargs is {}: math.sqrt() takes exactly one argument"),
    ],
)
def test_what_is_no_optimizer_is_refused_before_training(name, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        import_user_code(optimizer_config(name))


def test_only_packages_that_are_listed_are_trusted(monkeypatch):
    monkeypatch.setattr(registry, "_imported", {"used:before"})
    monkeypatch.setenv("VIT_JAX_TRUSTED", "first, second")
    registry.require_trusted("softmax", "loss")
    registry.require_trusted("used:before", "loss")
    registry.require_trusted("first:loss", "loss")
    registry.require_trusted("second.losses:loss", "loss")
    for name in ("used:other", "third:loss", "second_other:loss"):
        with pytest.raises(ConfigError, match=f"^loss is '{name}', .*VIT_JAX_TRUSTED="):
            registry.require_trusted(name, "loss")
