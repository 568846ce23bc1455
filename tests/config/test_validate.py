"""What fields of a config must be to each other, one line for each mistake."""

import dataclasses
import json
import re

import pytest

from vit_jax import config as config_lib
from vit_jax.config import base_config, check, override
from vit_jax.errors import ConfigError


def checked(**overrides: str):
    """The checked run of the defaults with some fields set as on the command line."""
    config = base_config()
    config.steps = 10
    for key, text in overrides.items():
        override(config, key.replace("__", "."), text)
    return check(config, is_stored=True)[""]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"data__per_class": "5", "data__fraction": "0.5"},
            "data sets per_class and fraction; set at most one of per_class, fraction, count.",
        ),
        ({"data__mix": "(('a', 0),)", "data__source": "tfds"}, "every weight must be at least 1."),
        ({"data__mix": "(('a', 1),)"}, "data sets of data.source='fake' cannot be mixed."),
        ({"data__mix": "(('a', 0.5),)"}, "it must be a tuple of (string, whole number) items."),
        ({"data__mix": "a"}, "data.mix is 'a'; it must be a tuple of (string, whole number)"),
        (
            {"optimizer__lr_factors": "(('(', 1.0),)"},
            "optimizer.lr_factors: '(' is no regular expression.",
        ),
        (
            {"optimizer__decay_factors": "(('a', -1),)"},
            "optimizer.decay_factors: 'a' has the factor -1.0, below 0.",
        ),
        (
            {"optimizer__freeze_steps": "(('(', 5),)"},
            "optimizer.freeze_steps: '(' is no regular expression.",
        ),
        (
            {"optimizer__freeze_steps": "(('head', 0),)"},
            "optimizer.freeze_steps: 'head' has 0 steps; expected 1 or more.",
        ),
        ({"optimizer__end_ema": "1.5"}, "optimizer.end_ema is 1.5; it must be at most 1."),
        (
            {"optimizer__stair_at": "(0.6, 0.3)"},
            "optimizer.stair_at is (0.6, 0.3); the values must increase.",
        ),
        ({"optimizer__stair_at": "(0.6, 1.3)"}, "it must be at most 1."),
        ({"optimizer__end_lr": "1"}, "optimizer.end_lr is 1.0; it must be at most lr, 0.001."),
        (
            {"optimizer__gsam_alpha": "0.5"},
            "optimizer.gsam_alpha is 0.5; it needs sam_rho, which is None.",
        ),
        (
            {"optimizer__sam_rho": "0.1", "optimizer__sam_rho_min": "0.2"},
            "optimizer.sam_rho_min is 0.2; sam_rho must be at least that, and is 0.1",
        ),
        (
            {"task__name": "masked_patches", "task__mask_share": "0.95"},
            "task.mask_share and random_share are 0.95 and 0.1;",
        ),
        (
            {"task__name": "masked_patches", "data__mixup": "0.2"},
            "data.mixup is 0.2; it must be 0.0 with task.name='masked_patches'.",
        ),
        (
            {"task__name": "masked_patches", "data__augment": "resize|erase(0.25)"},
            "data.augment is 'resize|erase(0.25)'; it must not have erase with task.name=",
        ),
        (
            {"task__loss": "binary", "task__label_smoothing": "0.1"},
            "task.label_smoothing is 0.1; it must be 0 with task.loss='binary'.",
        ),
        ({"accumulate": "3"}, "accumulate is 3; it must divide batch_size, 512."),
        (
            {"select": "best"},
            "select is 'best', but eval_every is None; set eval_every, or select='last'.",
        ),
        (
            {"select": "best", "eval_every": "5", "data__val_split": ""},
            "select is 'best', but data.val_split is empty and data.dev is None; set one of them",
        ),
        (
            {"fewshot__every": "5", "fewshot__shots": "()"},
            "fewshot.shots is empty; expected at least one number of examples per class.",
        ),
        (
            {"probe__every": "5", "probe__test_split": "train"},
            "probe.test_split is 'train'; it must differ from probe.split.",
        ),
        (
            {"probe__every": "5", "data__source": "tfds", "data__mix": "(('a', 1),)"},
            "probe.source is ''; with data.mix=(('a', 1),), it must name a labelled data set.",
        ),
        (
            {"optimizer__sam_rho_min": "0.2"},
            "optimizer.sam_rho_min is 0.2; sam_rho must be at least that, and is None",
        ),
    ],
)
def test_fields_that_cannot_go_together_are_named(overrides, words):
    with pytest.raises(ConfigError) as caught:
        checked(**overrides)
    assert str(caught.value).startswith("config.")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tuples_of_any_length_keep_their_order_and_types():
    run = checked(
        optimizer__lr_factors="((r'head', 10), ('', 0.5))",
        optimizer__stair_at="(0.3, 0.6, 0.9)",
        data__source="tfds",
        data__mix="[['a', 3], ['b', 1]]",
    )
    assert run.optimizer.lr_factors == (("head", 10.0), ("", 0.5))
    assert run.optimizer.stair_at == (0.3, 0.6, 0.9)
    assert run.data.mix == (("a", 3), ("b", 1))


def test_tuples_survive_being_written_and_read():
    run = checked(optimizer__lr_factors="((r'head', 10), ('', 0.5))")
    written = json.loads(json.dumps(config_lib.to_dict({"": run})))
    assert config_lib.from_dict(written)[""] == run
    assert config_lib.differing_fields(written, dataclasses.asdict(run)) == []
    other = checked(optimizer__lr_factors="((r'head', 11), ('', 0.5))")
    found = config_lib.differing_fields(written, dataclasses.asdict(other))
    assert found == ["optimizer.lr_factors"]


def test_a_number_takes_the_place_of_a_word_where_a_field_has_both():
    config = base_config()
    for text, value in (("auto", "auto"), ("2", 2)):
        override(config, "accumulate", text)
        assert config.accumulate == value


@pytest.mark.parametrize("value", [None, "None"])  # Of a config file, and of the command line.
@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("data.dir", "a string, which is empty ('') for none"),
        ("data.val_split", "a string, which is empty ('') for none"),
        ("model.name", "a string"),
    ],
)
def test_none_for_a_text_is_rejected_with_the_spelling_of_none(field, wanted, value):
    config = base_config()
    config.steps = 1
    override(config, field, value)
    message = re.escape(f"config.{field} is None; it must be {wanted}.")
    with pytest.raises(ConfigError, match=message):
        check(config)
