"""Every field can be set, a wrong one is named, and what was checked comes back whole."""

import dataclasses
import json
import sys

import pytest

from tests.support.runs import ROOT
from vit_jax import config as config_lib
from vit_jax.config import base_config, check, load, override, parse_arg, smoke
from vit_jax.config.schema import Config
from vit_jax.errors import ConfigError

FILES = sorted((ROOT / "configs").glob("*.py"))


def config_of_steps(steps: int = 10):
    config = base_config()
    config.steps = steps
    return config


def checked(key: str, text: str) -> Config:
    config = config_of_steps(10)
    override(config, key, text)
    return check(config, is_stored=True)[""]


def leaves(cls=Config, prefix=""):
    for each in dataclasses.fields(cls):
        if dataclasses.is_dataclass(each.type):
            yield from leaves(each.type, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, each


def test_every_default_is_valid_and_has_a_meaning():
    assert check(config_of_steps(10)) == {"": dataclasses.replace(Config(), steps=10)}
    for name, each in leaves():
        assert each.metadata["meaning"].strip(), name


def test_a_config_is_locked_against_new_names():
    config = base_config()
    for section in (config, config.model, config.data, config.optimizer, config.mesh, config.init):
        with pytest.raises(AttributeError):
            section.no_such_field = 1


def test_to_dict_and_from_dict_are_inverse_through_json():
    config = config_of_steps(7)
    config.optimizer.update(schedule="stair", stair_at=(0.25, 0.5))
    config.data.image_size = (32, 64)
    config.optimizer.clip_norm = None
    stages = check(config)
    values = config_lib.to_dict(stages)
    assert set(values) == {each.name for each in dataclasses.fields(Config)}
    again = config_lib.from_dict(json.loads(json.dumps(values)))
    assert again == stages
    assert isinstance(again[""].optimizer.stair_at, tuple)
    assert check(config_lib.to_config_dict(stages)) == stages


def test_stages_come_back_in_their_order():
    config = base_config("pre", "zoom", "also")
    for i, name in enumerate(config.stages):
        config.stages[name].steps = i + 1
    stages = check(config)
    assert list(stages) == ["pre", "zoom", "also"]
    values = json.loads(json.dumps(config_lib.to_dict(stages)))
    assert list(values) == ["stages"]
    again = config_lib.from_dict(values)
    assert list(again) == ["pre", "zoom", "also"]
    assert again == stages
    assert list(config_lib.to_config_dict(stages).stages) == ["pre", "zoom", "also"]


def test_stages_share_seed_and_mesh_and_nothing_else():
    config = base_config("a", "b")
    assert set(config) == {"seed", "mesh", "stages"}
    override(config, "seed", "3")
    override(config, "mesh.fsdp", "2")
    override(config, "stages.a.steps", "5")
    override(config, "stages.b.steps", "6")
    override(config, "stages.a.optimizer.lr", "0.5")
    a, b = check(config).values()
    assert (a.seed, a.mesh.fsdp) == (b.seed, b.mesh.fsdp) == (3, 2)
    assert (a.steps, b.steps) == (5, 6)
    assert (a.optimizer.lr, b.optimizer.lr) == (0.5, Config().optimizer.lr)


OVERRIDES = [
    ("batch_size", "64", 64),
    ("seed", "0", 0),
    ("optimizer.lr", "3e-4", 3e-4),
    ("optimizer.lr", "1", 1.0),
    ("optimizer.clip_norm", "None", None),
    ("optimizer.clip_norm", "2", 2.0),
    ("data.fast_crop", "false", False),
    ("data.fast_crop", "True", True),
    ("data.dir", "1e3", "1e3"),  # A text is taken as it stands.
    ("data.dir", "1e3", "1e3"),
    ("data.per_class", "5", 5),
    ("data.per_class", "none", None),
    ("data.image_size", "384", 384),
    ("data.image_size", "(32, 64)", (32, 64)),
    ("data.image_size", "[32,64]", (32, 64)),
    ("optimizer.stair_at", "(0.5, 1)", (0.5, 1.0)),
    ("data.augment", "resize | erase( 1 )", "resize|erase(1)"),
    ("model.dtype", "bfloat16", "bfloat16"),
    ("mesh.data", "-1", -1),
    ("keep_every", "100", 100),
]


@pytest.mark.parametrize(("key", "text", "value"), OVERRIDES)
def test_a_text_becomes_the_fields_type(key, text, value):
    found = checked(key, text)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


WRONG_TYPES = [
    ("batch_size", "abc", "config.batch_size is 'abc'; it must be a whole number."),
    ("batch_size", "1.5", "config.batch_size is '1.5'; it must be a whole number."),
    ("batch_size", "true", "config.batch_size is True; it must be a whole number."),
    ("batch_size", "none", "config.batch_size is None; it must be a whole number."),
    ("optimizer.lr", "fast", "config.optimizer.lr is 'fast'; it must be a number."),
    ("data.fast_crop", "yes", "config.data.fast_crop is 'yes'; it must be True or False."),
    ("data.fast_crop", "1", "config.data.fast_crop is '1'; it must be True or False."),
    ("data.per_class", "many", "config.data.per_class is 'many'; it must be a whole number or"),
    ("epochs", "many", "config.epochs is 'many'; it must be a number or None."),
    ("optimizer.stair_at", "0.5", "config.optimizer.stair_at is 0.5; it must be a tuple of "),
    ("data.image_size", "(1,2,3)", "config.data.image_size is (1, 2, 3); it must be a whole "),
]
OUT_OF_BOUNDS = [
    ("batch_size", "-5", "config.batch_size is -5; it must be at least 1."),
    ("optimizer.lr", "nan", "config.optimizer.lr is nan; it must be finite."),
    ("optimizer.lr", "inf", "config.optimizer.lr is inf; it must be finite."),
    ("optimizer.lr", "0", "config.optimizer.lr is 0.0; it must be above 0."),
    ("model.dropout", "1", "config.model.dropout is 1.0; it must be at most 0.99."),
    ("data.image_size", "(0, 8)", "config.data.image_size is (0, 8); it must be at least 1."),
    ("mesh.data", "-2", "config.mesh.data is -2; it must be at least -1."),
    (
        "model.pool",
        "tokn",
        "config.model.pool is 'tokn'; choose from ['token', 'gap', 'map', 'token_gap']. Did",
    ),
    ("data.source", "mnist", "Did you mean mnist5k?"),
    ("data.augment", "flip", "config.data.augment is 'flip'; expected one crop, as the first step"),
    ("optimizer.ema", "1", "config.optimizer.ema is 1.0; it must be at most 0.9999999."),
    ("model.num_layers", "1000000000", "config.model.num_layers is 1000000000; it must be at most"),
    ("batch_size", "100000000000", "config.batch_size is 100000000000; it must be at most 4194304"),
    ("steps", "1000000000000000", "config.steps is 1000000000000000; it must be at most 100000000"),
    ("log_every", "9" * 400, "9... (400 characters); it must be below 9223372036854775808."),
    ("optimizer.lr", "9" * 400, "config.optimizer.lr is "),
    (
        "optimizer.lr",
        "1e39",
        "lr is 1e+39; it must be at most 3.4e+38, in float32",
    ),
    ("optimizer.lr", "1e-300", "config.optimizer.lr is 1e-300; it must be 0 or at least 1.2e-38."),
    ("data.num_classes", "10**9", "config.data.num_classes is '10**9'; it must be a whole number."),
    ("data.workers", "1000000", "config.data.workers is 1000000; it must be at most 1024."),
    ("mesh.fsdp", "-1", "config.mesh is data:-1,fsdp:-1,tensor:1; each size must be at least 1"),
    ("mesh.fsdp", "0", "config.mesh is data:-1,fsdp:0,tensor:1; each size must be at least 1"),
]
UNKNOWN = [
    ("lr", "1", "--config.lr: config has no field 'lr'. Did you mean optimizer.lr?"),
    ("model.lr", "1", "config.model has no field 'lr'. Did you mean optimizer.lr?"),
    ("batchsize", "1", "--config.batchsize: config has no field 'batchsize'. Did you mean batch_"),
    ("optimizer.warmup_step", "1", "config.optimizer has no field 'warmup_step'. Did you mean "),
    ("optimiser.lr", "1", "config has no field 'optimiser'. Did you mean optimizer?"),
    ("mesh.zzzzzz", "1", "config.mesh has no field 'zzzzzz'. It has data, fsdp, tensor."),
    ("seed.deep", "1", "config.seed has no field 'deep'."),
    ("model", "vit", "--config.model is a section; set one of its fields: ['class_token', "),
    ("stages", "None", "--config.stages is a section; this config has none"),
    ("", "1", "config has no field ''."),
]


@pytest.mark.parametrize(("key", "text", "words"), WRONG_TYPES + OUT_OF_BOUNDS + UNKNOWN)
def test_a_wrong_setting_is_named_with_what_it_may_be(key, text, words):
    with pytest.raises(ConfigError) as caught:
        checked(key, text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("optimizer.stair_at", "(0.05, 'x')"),
        ("data.image_size", "(28.5, 28)"),
        ("data.image_size", "(True, 28)"),
    ],
)
def test_each_of_a_pair_has_the_type_of_the_pair(key, text):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        checked(key, text)


@pytest.mark.parametrize(("key", "text"), [("steps", "5"), ("epochs", "2"), ("examples", "9")])
def test_a_length_takes_the_place_of_another(key, text):
    for first in ("steps", "epochs", "examples"):
        config = base_config()
        config[first] = 3
        override(config, key, text)
        lengths = {name: config[name] for name in ("steps", "epochs", "examples")}
        assert [name for name, value in lengths.items() if value is not None] == [key]
        assert getattr(check(config)[""], key) == float(text)


def test_a_length_of_one_stage_leaves_the_others_alone():
    config = base_config("a", "b")
    for name in config.stages:
        config.stages[name].epochs = 2
    override(config, "stages.b.steps", "5")
    a, b = check(config).values()
    assert (a.epochs, a.steps, b.epochs, b.steps) == (2.0, None, None, 5)


def test_exactly_one_length_is_set():
    config = base_config()
    with pytest.raises(ConfigError, match="set one of steps, epochs, examples; found none"):
        check(config)
    config.update(steps=5, epochs=2)
    with pytest.raises(ConfigError, match=r"found steps=5 and epochs=2"):
        check(config)


def test_a_field_of_the_stages_is_asked_for_in_a_stage():
    with pytest.raises(ConfigError, match=r"its own: config\.stages\.a\.batch_size\.$"):
        override(base_config("a", "b"), "batch_size", "5")


def test_a_stage_may_start_from_an_earlier_one_only():
    config = base_config("a", "b")
    for name in config.stages:
        config.stages[name].steps = 5
    config.stages.b.init.stage = "a"
    assert check(config)["b"].init.stage == "a"
    config.stages.a.init.stage = "b"
    with pytest.raises(ConfigError, match=r"config\.stages\.a\.init\.stage is 'b'; .* of \[\]"):
        check(config)
    config.stages.a.init.stage = ""
    config.stages.b.init.path = "x.npz"
    with pytest.raises(ConfigError, match=r"config\.stages\.b\.init: set path or stage, not both"):
        check(config)


def test_a_stage_is_named_as_a_folder_can_be():
    config = base_config("a/b")
    config.stages["a/b"].steps = 5
    with pytest.raises(ConfigError, match=r"'a/b' is not a valid stage name"):
        check(config)


def test_fields_of_another_version_are_named():
    values = config_lib.to_dict(check(config_of_steps()))
    with pytest.raises(ConfigError, match=r"config has no field 'step'\. Did you mean steps\?"):
        config_lib.from_dict(values | {"step": 3})
    values["data"]["mixups"] = 0.1
    with pytest.raises(ConfigError, match=r"config\.data has no field 'mixups'\. .* mixup\?"):
        config_lib.from_dict(values)


def test_differing_fields_are_named_with_their_sections():
    old = {"a": 1, "b": {"c": (1, 2), "d": {"e": None}}, "only_old": 0}
    new = {"a": 1, "b": {"c": [1, 2], "d": {"e": 3}}, "only_new": 0}
    assert config_lib.differing_fields(old, old) == []
    assert config_lib.differing_fields(old, new) == ["b.d.e", "only_new", "only_old"]


def test_the_argument_of_a_config_file_is_read_by_its_defaults():
    defaults = {"data": "", "size": 384, "lr": 0.01, "smoke": False, "per_class": None}
    assert parse_arg(None, **defaults).to_dict() == defaults
    arg = parse_arg("data=/a/b=c,size=224,lr=1,smoke=false,per_class=5", **defaults)
    found = {"data": "/a/b=c", "size": 224, "lr": 1.0, "smoke": False, "per_class": 5}
    assert arg.to_dict() == found
    assert type(arg.lr) is float
    assert parse_arg("data=123,smoke=false", **defaults).data == "123"


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("sise=3", "config argument 'sise' is not one of [.*]. Did you mean size?"),
        ("size=big", "config argument size is 'big'; it must be a whole number."),
        ("data", "config argument data is True; it must be a string."),
        ("smoke=1", "config argument smoke is '1'; it must be True or False."),
        ("size=32,smoke", "config argument size has no effect with smoke, which trains a tiny"),
        ("size=1,size=2", "config argument size is given twice."),
    ],
)
def test_a_wrong_argument_of_a_config_file_is_named(arg, words):
    with pytest.raises(ConfigError) as caught:
        parse_arg(arg, data="", size=384, smoke=False)
    assert words.replace("[.*]", "['data', 'size', 'smoke']") in str(caught.value)


def test_argument_without_effect_is_refused():
    defaults = {"grid": False, "seeds": 3, "lr": 0.1, "source": "folder", "dataset": ""}
    rules = {"needs": {"seeds": "grid"}, "excludes": {"lr": "grid", "source": "dataset"}}
    assert parse_arg("grid,seeds=5", **rules, **defaults).seeds == 5
    for arg, words in (
        ("seeds=5", "config argument seeds has no effect without grid."),
        ("grid,lr=1", "config argument lr has no effect with grid; leave one of them out."),
        ("source=csv,dataset=cifar10", "config argument source has no effect with dataset"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_arg(arg, **rules, **defaults)
        assert words in str(caught.value)


@pytest.mark.parametrize("is_smoke", [False, True], ids=["whole", "smoke"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_file_builds_and_passes_its_check(file, is_smoke, tmp_path):
    data = [f"data={tmp_path}"] if file.stem == "finetune" else []
    config = load(f"{file}:{','.join(data + ['smoke'] * is_smoke)}")
    assert config.is_locked
    stages = check(config)
    assert config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(stages)))) == stages
    for stage in stages.values():
        if data:
            assert (stage.data.source, stage.data.dir) == ("folder", str(tmp_path))
        if is_smoke:
            assert (stage.steps, stage.batch_size) == (20, 16)
            is_bit = stage.model.name.startswith("bit_")  # It has units, not layers.
            assert stage.model.num_layers == (None if is_bit else 2)


def test_smoke_makes_any_config_small_and_keeps_its_stages():
    config = base_config("a", "b")
    for name in config.stages:
        config.stages[name].update(epochs=300.0, batch_size=4096)
        config.stages[name].data.update(source="tfds", dataset="imagenet2012", per_class=3)
        config.stages[name].optimizer.update(warmup_steps=10_000)
    config.stages.b.init.update(stage="a", new_head=True)
    stages = check(smoke(config))
    assert list(stages) == ["a", "b"]
    for stage in stages.values():
        assert (stage.data.source, stage.data.per_class) == ("digits", None)
        assert (stage.steps, stage.epochs, stage.optimizer.warmup_steps) == (20, None, 2)
    assert stages["b"].init.stage == "a"


def test_smoke_may_keep_the_data():
    config = config_of_steps()
    config.data.update(source="folder", dir="photos")
    assert check(smoke(config, keep_data=True))[""].data.dir == "photos"


IMPORT = "from vit_jax.config import base_config, parse_arg\n"
BROKEN = {
    "raise KeyError('gone')": "KeyError: 'gone'",
    "def get_config(arg): return 1 / 0": "ZeroDivisionError: division by zero",
    "def get_config(arg): return {}": "get_config must return a ConfigDict",
    "def get_config(arg) return": "SyntaxError",
    "x = 1": "AttributeError",
    IMPORT + "def get_config(arg):\n  base_config().stepz = 1": "Did you mean steps?",
    IMPORT + "def get_config(arg):\n  base_config().lr = 1": "Did you mean optimizer.lr?",
    IMPORT + "def get_config(arg): return parse_arg(arg, size=1)": "Did you mean size?",
}


def test_config_file_imports_the_files_beside_it(tmp_path):
    text = "import shared_settings\n" + IMPORT + "def get_config(arg):\n  config = base_config()\n"
    for name, seed in (("a", 3), ("b", 4)):  # Two neighbours of one name.
        (tmp_path / name).mkdir()
        (tmp_path / name / "shared_settings.py").write_text(f"SEED = {seed}\n")
        file = tmp_path / name / "mine.py"
        file.write_text(text + "  config.seed = shared_settings.SEED\n  return config\n")
        assert load(str(file)).seed == seed
    assert str(tmp_path / "a") not in sys.path


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_mistake_in_a_config_file_is_one_line_that_names_it(text, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(f"{file}:sizes=3")
    assert str(caught.value).startswith(f"--config={file}: ")
    assert BROKEN[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_file_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"config\.yaml: expected a \.py file"):
        load(str(tmp_path / "config.yaml"))


def test_a_missing_config_file_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"quikstart\.py: no such file\. Did .*/quickstart\.py\?"):
        load(f"{ROOT}/configs/quikstart.py:smoke")


def test_load_names_the_repository_for_its_configs_in_another_folder(tmp_path, monkeypatch):
    (tmp_path / "finetune.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"finetune\.py: no such file\. The folder configs/ is in"
    ):
        load("configs/finetune.py:smoke")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "is not the config of a run"),
        ("{", "is not the config of a run"),
        ('{"sed": 1}', "Did you mean seed"),
    ],
)
def test_load_rejects_json_that_is_not_a_config(text, message, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(str(tmp_path / "c.json"))


def test_load_rejects_arguments_of_a_json_config(tmp_path):
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"accepts no arguments; found 'smoke'"):
        load(f"{tmp_path / 'c.json'}:smoke")


def test_resolve_keeps_the_order_of_the_stages_of_a_config_dict():
    config = load(f"{ROOT / 'configs' / 'quickstart.py'}:smoke")
    assert list(config_lib.resolve(config)) == ["pretrain", "finetune", "scratch"]
    assert list(config.stages) == ["pretrain", "finetune", "scratch"]
