"""Arguments of the command line: the home folder, and values that are empty."""

import os

import pytest

from vit_jax import main
from vit_jax.cli.parser import split_config_flags
from vit_jax.errors import ConfigError


def test_split_config_flags_expands_the_home_folder_in_every_value(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    rest, file, overrides = split_config_flags(
        [
            *("evaluate", "--workdir=~/runs/x", "--out", "~/out", "~/a.png", "a~b", "--x=a~/b"),
            *("--config=~/c.py:data=~/photos", "--config.init.path=~/w.npz"),
        ]
    )
    home = ["--workdir=/home/me/runs/x", "--out", "/home/me/out", "/home/me/a.png"]
    assert rest == ["evaluate", *home, "a~b", "--x=a~/b"]
    assert file == "/home/me/c.py:data=~/photos"  # The config expands its fields.
    assert overrides == {"init.path": "/home/me/w.npz"}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--workdir="], "--workdir"),
        (["--workdir", ""], "an argument"),
        (["prepare", "photos", ""], "an argument"),
        (["prepare", "photos", "set", "--exclude="], "--exclude"),
        (["predict", "--checkpoint=", "x.png"], "--checkpoint"),
        (["predict", "--checkpoint=w.npz", ""], "an argument"),
        (["evaluate", "--workdir=w", "--class_map="], "--class_map"),
        (["features", "--checkpoint=w", "--out="], "--out"),
        (["--config=", "--workdir=w"], "--config"),
        (["--config=c.py", "--config.init.path=", "--workdir=w"], "--config.init.path"),
        (["--config=c.py", "--config.stages.a.data.dir=", "--workdir=w"], "--config.stages.a.data"),
    ],
)
def test_an_empty_argument_is_rejected(arguments, name):
    with pytest.raises(ConfigError, match=rf"^{name}.* is empty; give it a value"):
        main.run(arguments)


def test_an_empty_text_that_has_a_meaning_is_accepted():
    assert split_config_flags(["--config.data.val_split="])[2] == {"data.val_split": ""}


def test_the_home_folder_holds_the_run_and_not_a_folder_named_by_a_tilde(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for title in ("cat", "dog"):
        os.makedirs(f"home/photos/{title}")
        (tmp_path / f"home/photos/{title}/1.txt").write_text("x")
    with pytest.raises(Exception, match=rf"^{tmp_path}/home/photos/cat: no images"):
        main.run(["prepare", "~/photos", "~/set"])
    assert os.listdir(tmp_path) == ["home"]


@pytest.mark.parametrize("value", ["0", "-1", "many", "200", "nan"])
@pytest.mark.parametrize("verb", ["prepare", "predict"])
def test_max_megapixels_has_the_bounds_of_the_config_field(verb, value):
    with pytest.raises(ConfigError, match=r"max_megapixels.* is not a number above 0 and at most"):
        main.run([verb, f"--max_megapixels={value}", "a", "b"])
