"""Crop and resampling in config files of Hugging Face: what is written is read back."""

import pytest

from vit_jax.weights import image_processor


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"crop": "resize"}, {"crop": "resize"}),
        ({"crop": "center", "fraction": 0.9}, {"crop": "huggingface", "crop_side": 249}),
        ({"crop": "timm", "fraction": 0.9}, {"crop": "huggingface", "crop_side": 248}),
        (
            {"crop": "timm_squash", "fraction": 0.9},
            {"crop": "huggingface", "crop_side": (248, 248)},
        ),
        ({"crop": "center", "side": 256}, {"crop": "huggingface", "crop_side": 256}),
        ({"crop": "huggingface", "side": 225}, {"crop": "huggingface", "crop_side": 225}),
        ({"crop": "huggingface", "side": (256, 240)}, {"crop_side": (256, 240)}),
    ],
    ids=str,
)
def test_from_huggingface_is_the_inverse_of_to_huggingface(fields, expected):
    values = {"fraction": None, "side": None, "resample": "bicubic"} | fields
    contents = image_processor.to_huggingface((224, 224), **values)
    assert contents["resample"] == 3
    for model_type in ("vit", "dinov2", "bit"):
        found = image_processor.from_huggingface(contents, model_type, (224, 224), "file")
        assert {name: found[name] for name in expected} == expected
        assert image_processor.huggingface_size(contents, model_type, "file") == (224, 224)


def test_from_huggingface_gives_a_fraction_for_an_unknown_image_size():
    values = {"size": {"shortest_edge": 256}}
    for contents, fraction in (({}, 1.0), (values, 0.875)):
        found = image_processor.from_huggingface(contents, "dinov2", None, "file")
        assert found == {"crop": "huggingface", "crop_fraction": fraction, "resample": "bicubic"}


def test_to_huggingface_keeps_the_given_side_of_a_crop_that_is_not_square():
    contents = image_processor.to_huggingface((96, 160), "huggingface", 0.875, 192, "antialias")
    assert contents["size"] == {"shortest_edge": 192}
    assert contents["crop_size"] == {"height": 96, "width": 160}
