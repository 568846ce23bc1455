"""Metadata of this package's files: values and rejected values."""

import dataclasses
import json

import pytest

from vit_jax.errors import CheckpointError
from vit_jax.weights import metadata
from vit_jax.weights.metadata import WeightsMetadata

FULL = WeightsMetadata(
    num_heads=2,
    image_size=(8, 12),
    pool="token",
    pos_embed="learned",
    pos_embed_at="stem",
    rope="eva02",
    mlp="glu",
    gelu="erf",
    norm_eps=1e-12,
    pixel_stats="clip",
    family="dinov2",
    classes=("cat", "Kätzchen"),
    crop="center",
    crop_fraction=0.875,
    crop_side=(16, 18),
    resample="bicubic",
    assumed=("gelu=erf (timm)",),
)


def test_from_json_is_the_inverse_of_known_fields():
    assert None not in vars(FULL).values()
    text = json.dumps(FULL.known_fields())
    assert metadata.from_json(json.loads(text), "x") == FULL
    for name in vars(FULL):
        one = WeightsMetadata(**{name: getattr(FULL, name)})
        assert metadata.from_json(json.loads(json.dumps(one.known_fields())), "x") == one


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(WeightsMetadata)])
def test_from_json_rejects_invalid_values_and_names_the_field(name):
    nonsense = ["nonsense", -1, 0, 10**9, {"a": 1}, True, [1], [8, "8"], "x" * 10**5]
    if name not in ("classes", "assumed"):  # Any strings are allowed.
        nonsense += [[["a"]], [8, -8], [10**9, 10**9], [None, None], ["ERF"]]
    for value in nonsense:
        with pytest.raises(CheckpointError) as caught:
            metadata.from_json({name: value}, "folder")
        assert str(caught.value).startswith(f"folder: invalid metadata: {name} is ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300
