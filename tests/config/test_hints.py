"""Hints at fields of any section."""

import pytest

from vit_jax.config.hints import ALIASES, field_names, suggest


@pytest.mark.parametrize(
    ("name", "section", "hint"),
    [
        ("lr", "", " Did you mean optimizer.lr?"),
        ("lr", "model", " Did you mean optimizer.lr?"),
        ("dropout", "", " Did you mean model.dropout?"),
        ("mixup", "task", " Did you mean data.mixup?"),
        ("learning_rate", "", " Did you mean optimizer.lr?"),
        ("num_layer", "", " Did you mean model.num_layers?"),
        ("image_sise", "model", " Did you mean data.image_size?"),
        ("name", "", " Did you mean model.name or task.name or optimizer.name?"),
        ("zzzz", "", ""),
    ],
)
def test_suggest_finds_fields_of_other_sections(name, section, hint):
    assert suggest(name, section) == hint


def test_suggest_prefers_a_similar_field_of_the_section_to_one_of_another():
    siblings = ["warmup_steps", "cooldown_steps", "name"]
    assert suggest("warmup_step", "optimizer", siblings) == " Did you mean warmup_steps?"


def test_aliases_name_fields_and_are_none():
    names = set(field_names())
    assert set(ALIASES.values()) <= names
    assert not {name.rpartition(".")[2] for name in names} & set(ALIASES)
