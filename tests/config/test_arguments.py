"""Arguments of config files: commas and home folders in paths, weights options, empty values."""

import pytest

from vit_jax import config as config_lib
from vit_jax.config import find_source, parse_arg
from vit_jax.data import manifest
from vit_jax.errors import ConfigError

DEFAULTS = {"data": "", "weights": "", "count": 500, "quick": False}


@pytest.mark.parametrize("name", ["a, b", "a,b,c", ",", "a,count=3", "lr=1,b", "a,quick"])
def test_parse_arg_accepts_commas_in_a_path_that_exists(name, tmp_path):
    (tmp_path / name).mkdir()
    arg = parse_arg(f"count=7,data={tmp_path / name},quick,weights={tmp_path / name}", **DEFAULTS)
    expected = {"data": f"{tmp_path / name}", "weights": f"{tmp_path / name}", "count": 7}
    assert arg.to_dict() == expected | {"quick": True}


def test_parse_arg_prefers_an_argument_after_a_path_that_exists(tmp_path):
    for name in ("a", "a,quick"):
        (tmp_path / name).mkdir()
    arg = parse_arg(f"data={tmp_path / 'a'},quick", **DEFAULTS)
    assert (arg.data, arg.quick) == (str(tmp_path / "a"), True)


def test_parse_arg_rejects_an_unknown_word_after_a_path(tmp_path):
    with pytest.raises(ConfigError, match=r"argument 'quic' is not one of .*Did you mean quick\?$"):
        parse_arg(f"data={tmp_path},quic", **DEFAULTS)


def test_parse_arg_keeps_the_options_of_weights_together():
    options = "vit.safetensors:num_heads=2,pixel_stats=half,image_size=8x8"
    arg = parse_arg(f"weights={options},count=7,quick,data=x:classes=n.txt,gelu=erf", **DEFAULTS)
    assert arg.weights == options
    assert (arg.count, arg.quick, arg.data) == (7, True, "x:classes=n.txt,gelu=erf")
    with pytest.raises(ConfigError, match="argument 'gelu' is not one of"):
        parse_arg("weights=vit.safetensors,gelu=erf", **DEFAULTS)


@pytest.mark.parametrize("arg", ["data=", "data=,quick", "quick,weights=", "count="])
def test_parse_arg_rejects_an_empty_value(arg):
    with pytest.raises(ConfigError, match=r"^config argument \w+ is empty; give it a value"):
        parse_arg(arg, **DEFAULTS)


def test_an_empty_argument_of_a_config_file_is_rejected():
    with pytest.raises(ConfigError, match="config argument data is empty"):
        config_lib.resolve("configs/finetune.py:data=,smoke")


def test_paths_of_a_config_expand_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (config,) = config_lib.resolve("configs/finetune.py:data=~/photos,init=~/w.npz").values()
    assert (config.data.dir, config.init.path) == ("/home/me/photos", "/home/me/w.npz")
    sets = {"data.mix": (("~/a", 1), ("b~", 2)), "data.dir": "~/c"}
    (config,) = config_lib.resolve("configs/finetune.py:data=x", sets).values()
    assert config.data.mix == (("/home/me/a", 1), ("b~", 2))


@pytest.mark.parametrize("path", ["~/set", "{home}/set"])
def test_find_source_knows_a_prepared_folder(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").mkdir()
    path = path.format(home=tmp_path)
    assert find_source(path) == "folder"
    (tmp_path / "set" / manifest.INFO).write_text("{}")
    assert find_source(path) == "prepared"
    (config,) = config_lib.resolve(f"configs/finetune.py:data={path}").values()
    assert (config.data.source, config.data.dir) == ("prepared", f"{tmp_path}/set")
