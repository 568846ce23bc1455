"""The tables of models, encoders and published weights."""

import json

import pytest

from tests.support.runs import ROOT
from vit_jax.errors import ConfigError
from vit_jax.models.encoders import ENCODERS
from vit_jax.weights.list_models import models_table


def test_models_table_lists_encoders_by_family_with_the_location_of_their_weights():
    lines = models_table("dinov2_*").splitlines()
    assert lines[0].split() == ["family", "encoder", "parameters", "pixels", "licence", "weights"]
    assert lines[1].split()[:3] == ["DINOv2", "dinov2_s14", "22,056,192"]
    assert lines[2].split() == ["dinov2_b14", "86,579,712", "518", "hf://facebook/dinov2-base"]
    assert sum(line.startswith("DINOv2") for line in lines) == 2  # With registers, too.


def test_models_table_as_json_has_every_published_encoder_once():
    found = json.loads(models_table("*", as_json=True))
    names = [row["encoder"] for row in found["encoders"]]
    assert len(names) == len(set(names)) == sum(len(row.published) for row in ENCODERS.values())
    weights = [row["weights"] for row in found["encoders"]]
    assert len(set(weights)) == len(weights)
    assert all(text.startswith(("hf://", "https://")) and "{" not in text for text in weights)
    assert found["models"]
    assert found["weights"]


def test_models_table_finds_encoders_by_their_weights():
    (row,) = json.loads(models_table("hf://openai/*16", as_json=True))["encoders"]
    assert row["encoder"] == "clip_b16"
    with pytest.raises(ConfigError, match="Did you mean dinov3_s16"):
        models_table("dinov3_s17")


def test_documents_list_every_family_with_its_licence_and_sizes():
    weights, models = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("weights", "models"))
    for family, encoder in ENCODERS.items():
        (row,) = (line for line in weights.splitlines() if f"`{family}_*`" in line)
        assert row.endswith(f"| {encoder.licence} |")
        assert row.startswith(f"| {encoder.title}")
        (row,) = (
            line
            for line in models.splitlines()
            if line.startswith("| `") and f"`{family}`" in line.split("|")[1]
        )
        assert all(f"`{size}`" in row for size in encoder.published)
