"""User-defined objects: training imports them, and a check of a config does not."""

import contextlib
import re
import sys

import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.config import base_config, check, registry
from vit_jax.config.schema import Config, Data, FewShot, Model, Optimizer, Probe, Task
from vit_jax.config.validate import import_user_code
from vit_jax.errors import ConfigError
from vit_jax.models.registry import create_model, param_shapes


def config_with(**sections) -> Config:
    return check(config_lib.to_config_dict({"": Config(steps=10, **sections)}))[""]


def optimizer_config(name: str, **kwargs) -> Config:
    config = base_config()
    config.steps = 10
    config.optimizer.update(name=name, kwargs=kwargs)
    return check(config)[""]


HOSTILE = Config(
    steps=10,
    model=Model(mlp="hostile:f"),
    data=Data(source="hostile:f", augment="resize|hostile:f"),
    task=Task(name="hostile:f", loss="hostile:f", distill="hostile:f"),
    optimizer=Optimizer(name="hostile:f", schedule="hostile:f"),
    fewshot=FewShot(source="hostile:f"),
    probe=Probe(source="hostile:f"),
)


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
        ("probe.source", {"probe.every": 1}),
    ],
)
def test_check_imports_nothing_and_training_does(field, others, own_module):
    own_module("raise NotImplementedError('one\\ntwo')")
    config = config_lib.replaced(Config(steps=10), {field: "own:part"} | others, "config")
    assert config_lib.from_dict(config_lib.to_dict({"": config})) == {"": config}
    message = f"config.{field} is 'own:part', which cannot be imported: "
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
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(text, reason, own_module):
    own_module(text)
    with pytest.raises(ConfigError) as caught:
        import_user_code(config_with(model=Model(mlp="own:part")))
    assert str(caught.value) == (
        "config.model.mlp is 'own:part', which cannot be imported: " + reason + "."
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
        ("math:pi", "config.optimizer.name is 'math:pi', which is 3.14"),
        ("math:sqrt", "config.optimizer.kwargs is {}: math.sqrt() takes exactly one argument"),
    ],
)
def test_what_is_no_optimizer_is_refused_before_training(name, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        import_user_code(optimizer_config(name))


def test_only_packages_that_are_listed_are_trusted(monkeypatch):
    monkeypatch.setattr(registry, "_trusted", {"used:before"})
    monkeypatch.setenv("VIT_JAX_TRUSTED", "first, second")
    trusted = ("softmax", "used:before", "first:loss", "second.losses:loss")
    registry.require_trusted(("loss", name) for name in trusted)
    names = [("a", "used:other"), ("b", "first:loss"), ("c", "second_other:loss")]
    with pytest.raises(ConfigError) as caught:
        registry.require_trusted(names)
    assert str(caught.value).startswith("a is 'used:other', c is 'second_other:loss': not part of")
    assert str(caught.value).endswith("set VIT_JAX_TRUSTED=first,second,used,second_other.")


def test_an_empty_entry_trusts_nothing(monkeypatch):
    monkeypatch.setenv("VIT_JAX_TRUSTED", ", ")
    with pytest.raises(ConfigError, match="set VIT_JAX_TRUSTED=os"):
        registry.find({}, "os:getcwd", "loss")
    with pytest.raises(ConfigError, match=r"expected package\.module:name\.$"):
        registry.find({}, ".os:getcwd", "loss")


def test_checked_options_are_those_that_training_uses():
    config = optimizer_config("optax:scale_by_yogi", b1=1, b2=0.999)
    assert import_user_code(config).optimizer.kwargs == {"b1": 1.0}
    assert type(import_user_code(config).optimizer.kwargs["b1"]) is float


def test_options_without_a_hash_are_refused():
    with pytest.raises(ConfigError, match=r"kwargs\.x is .*; expected a number, a string"):
        optimizer_config("own.unknown:rule", x=({"a": 1},))


def test_names_in_a_section_include_those_of_augmentation_steps():
    augment = "resize|a.b:c(1)|flip| d:e('x','y:z')"
    config = config_with(data=Data(source="f:g", augment=augment), model=Model(mlp="swiglu"))
    assert list(registry.user_names(config, "config")) == [
        ("config.data.source", "f:g"),
        ("config.data.augment", "a.b:c"),
        ("config.data.augment", "d:e"),
    ]


def test_create_model_imports_its_mlp(own_module):
    own_module("from vit_jax.models.layers import SwiGlu")
    sizes = {"num_classes": 3, "image_size": 16, "num_layers": 1}
    own, named = (create_model("vit_ti8", mlp=mlp, **sizes) for mlp in ("own:SwiGlu", "swiglu"))
    assert param_shapes(own) == param_shapes(named)
    with pytest.raises(ConfigError, match=r"model\.mlp is 'own:Missing', which cannot be imported"):
        create_model("vit_ti8", mlp="own:Missing", **sizes)


@pytest.fixture
def import_spy(monkeypatch):
    """Names of modules that are looked for, of the package `hostile`."""
    names = []

    class Spy:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "hostile":
                names.append(name)

    monkeypatch.setattr(sys, "meta_path", [Spy(), *sys.meta_path])
    return names


def test_no_combination_of_fields_is_imported_by_a_check(import_spy):
    """Rules of one field may look at the object that another one names."""
    random = np.random.default_rng(0)
    names = [place.removeprefix("config.") for place, _ in registry.user_names(HOSTILE, "config")]
    assert len(names) == 10
    for _ in range(300):
        fields = {name: "hostile.part:f" for name in names if random.random() < 0.3}
        fields = {k: f"resize|{v}(1)" if k == "data.augment" else v for k, v in fields.items()}
        others = {
            "task.label_smoothing": 0.1,
            "data.mix": (("a", 1),),
            "data.mixup": 0.2,
            "fewshot.every": 5,
            "fewshot.sets": ("a",),
            "select": "best",
            "optimizer.kwargs": {"x": 1},
        }
        fields |= {name: value for name, value in others.items() if random.random() < 0.3}
        values = config_lib.to_dict({"": Config(steps=10)})
        for name, value in fields.items():
            section, _, field = name.rpartition(".")
            (values[section] if section else values)[field] = value
        with contextlib.suppress(ConfigError):
            config_lib.from_dict(values)
    assert import_spy == []
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        import_user_code(HOSTILE)
    assert import_spy == ["hostile"]


@pytest.mark.parametrize(
    "wrong",
    [{"optimizer": {"name": ["a"], "beta1": 0.5}}, {"data": {"crop": "x"}}, {"data": {"crop": []}}],
    ids=str,
)
def test_impossible_values_of_old_fields_are_one_line(wrong):
    with pytest.raises(
        ConfigError, match=r"^config has fields of an earlier version of vit_jax with values"
    ):
        config_lib.from_dict(wrong)


def test_values_that_are_nested_too_deeply_are_one_line():
    deep: tuple = ()
    for _ in range(5000):
        deep = (deep,)
    with pytest.raises(ConfigError, match="nested too deeply"):
        config_lib.from_dict({"optimizer": {"name": "own:f", "kwargs": {"x": deep}}})


@pytest.mark.parametrize(
    "field",
    [
        *("task.name", "task.loss", "data.source", "model.mlp"),
        *("optimizer.schedule", "fewshot.source"),
    ],
)
def test_object_that_is_no_function_is_refused_before_training(field):
    config = base_config()
    config.steps = 10
    config_lib.override(config, field, "math:pi")
    with pytest.raises(
        ConfigError, match=rf"config\.{field} is 'math:pi'.*expected a function or a class"
    ):
        import_user_code(check(config, is_stored=True)[""])


def test_task_needs_the_attributes_of_an_objective():
    config = config_with(task=Task(name="math:cbrt"))
    with pytest.raises(ConfigError, match="which has no evaluator, has_classes, rules, build_mod"):
        import_user_code(config)
