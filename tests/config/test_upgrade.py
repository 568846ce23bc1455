"""Configs of earlier versions: stored ones are translated, new ones get the new spelling."""

import itertools
import json

import pytest

from vit_jax import config as config_lib
from vit_jax.config import base_config, check, override
from vit_jax.config.upgrade import AUGMENT_FIELDS, RENAMED
from vit_jax.data import augment
from vit_jax.data.randaugment import IncreasingRandAugment, PublishedRandAugment
from vit_jax.errors import ConfigError

VALUES = {
    "crop": ("inception", "resize", "random", "pad"),
    "crop_area": ((0.05, 1.0), (0.08, 0.7)),
    "flip": (True, False),
    "randaug": ("none", "published", "corrected"),
    "randaug_layers": (2, 3),
    "randaug_magnitude": (10.0, 7.5),
    "randaug_std": (0.0, 0.5),
    "randaug_prob": (1.0, 0.5),
    "three_augment": (False, True),
    "color_jitter": (0.0, 0.3),
    "random_erasing": (0.0, 0.25),
}


def stored(**old) -> dict:
    """The config.json of a run of an earlier version, as read from disk."""
    config = base_config()
    config.steps = 1
    values = config_lib.to_dict(check(config))
    del values["data"]["augment"]
    values["data"] |= old
    return json.loads(json.dumps(values))


def expected(old: dict) -> augment.Augmentation:
    """The steps in the order in which earlier versions applied them."""
    crop = {
        "inception": augment.RandomResizedCrop(*old["crop_area"]),
        "resize": augment.Resize(),
        "random": augment.RandomCrop(),
        "pad": augment.PadCrop(),
    }[old["crop"]]
    layers, magnitude = old["randaug_layers"], old["randaug_magnitude"]
    std, prob = old["randaug_std"], old["randaug_prob"]
    steps = [augment.Flip()] * old["flip"]
    if old["randaug"] == "published":
        steps.append(PublishedRandAugment(layers, magnitude))
    elif old["randaug"] == "corrected":
        steps.append(IncreasingRandAugment(layers, magnitude, std=std, prob=prob))
    steps += [augment.ThreeAugment()] * old["three_augment"]
    if old["color_jitter"]:
        steps.append(augment.ColorJitter(old["color_jitter"]))
    erase = [augment.Erase(old["random_erasing"])] if old["random_erasing"] else []
    return augment.Augmentation(crop, tuple(steps), tuple(erase))


def test_upgrade_translates_every_combination_of_augmentation_fields():
    values = stored()
    for combination in itertools.product(*VALUES.values()):
        old = dict(zip(VALUES, combination, strict=True))
        run = config_lib.upgrade.upgrade(values | {"data": values["data"] | old})
        assert augment.parse(run["data"]["augment"]) == expected(old)
        assert not run["data"].keys() & AUGMENT_FIELDS.keys()


def test_stored_config_of_an_earlier_version_is_read_as_the_new_spelling():
    old = {"crop_area": [0.08, 1.0], "randaug": "corrected", "randaug_magnitude": 9.0}
    old |= {"randaug_std": 0.5, "randaug_prob": 0.5, "random_erasing": 0.25}
    text = "random_resized_crop|flip|randaug_increasing(2,9,std=0.5,prob=0.5)|erase(0.25)"
    assert config_lib.from_dict(stored(**old))[""].data.augment == text
    staged = config_lib.from_dict({"stages": {"a": stored(**old), "b": stored(crop="pad")}})
    assert [staged[name].data.augment for name in "ab"] == [text, "pad_crop|flip"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("inception_crop|flip", "random_resized_crop(0.05)|flip"),
        ("inception_crop", "random_resized_crop(0.05)"),
        ("inception_crop(0.08)|flip|erase(0.25)", "random_resized_crop|flip|erase(0.25)"),
        ("inception_crop(0.3,0.7)", "random_resized_crop(0.3,0.7)"),
        ("inception_crop(max_area=0.5)|flip", "random_resized_crop(0.05,0.5)|flip"),
        ("resize|my_steps:inception_crop", "resize|my_steps:inception_crop"),
        ("pad_crop|flip", "pad_crop|flip"),
    ],
)
def test_stored_config_keeps_the_crop_rule_that_it_was_trained_with(old, new):
    values = config_lib.to_dict(check(_of_one_step()))
    values["data"]["augment"] = old
    assert config_lib.from_dict(values)[""].data.augment == old  # Of this version.
    del values["data"]["eval_resample"]
    assert config_lib.from_dict(values)[""].data.augment == new


def test_upgrade_keeps_configs_of_this_version():
    config = base_config()
    config.update(steps=1)
    config.data.augment = "resize|erase(0.5)"
    values = config_lib.to_dict(check(config))
    assert config_lib.upgrade.upgrade(values) == values


@pytest.mark.parametrize("field", RENAMED)
def test_removed_field_is_answered_with_its_new_spelling(field, tmp_path):
    name, config = field.rpartition(".")[2], base_config()
    with pytest.raises(ConfigError) as flag:
        override(config, field, "1")
    values = config_lib.to_dict(check(_of_one_step())) | {"steps": 1}
    messages = [str(flag.value)]
    for line in (f"config.{field} = 1", f"config.data.update({name}=1)", f"config.{field}"):
        file = tmp_path / "config.py"
        file.write_text(
            "from vit_jax.config import base_config\n\n\n"
            "def get_config(arg=None):\n    config = base_config()\n"
            f"    {line}\n    return config\n"
        )
        with pytest.raises(ConfigError) as caught:
            config_lib.load(str(file))
        messages.append(str(caught.value))
    with pytest.raises(ConfigError) as caught:
        config_lib.replaced(config_lib.from_dict(values)[""], {field: 1}, "config.sweep.grid")
    for message in (*messages, str(caught.value)):
        assert name in message
        assert message.endswith(f". Use {RENAMED[field]}.")
        assert "\n" not in message
    assert set(AUGMENT_FIELDS) == set(VALUES)


@pytest.mark.parametrize("field", [field for field in RENAMED if field.startswith("data.")])
def test_new_spelling_of_a_removed_field_is_valid(field):
    texts = [text for text in RENAMED[field].split("'") if "_crop" in text and " " not in text]
    assert texts
    for text in texts:
        augment.parse(text)


def _of_one_step():
    config = base_config()
    config.steps = 1
    return config
