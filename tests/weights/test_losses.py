"""Lines about what other code does not get from exported weights."""

import pytest

from tests.support.tiny import tiny
from vit_jax import create_model
from vit_jax.weights.losses import list_losses
from vit_jax.weights.metadata import WeightsMetadata

OFFICIAL = WeightsMetadata(crop="resize", resample="tf_bilinear")


def lines(file_format, metadata, **options):
    return list_losses(file_format, tiny(**{"image_size": 8} | options), metadata)


def test_official_weights_lose_nothing_as_npz():
    assert lines("npz", OFFICIAL) == []
    assert list_losses("npz", create_model("bit_r26x1"), OFFICIAL) == []


@pytest.mark.parametrize(
    ("options", "metadata", "expected"),
    [
        ({"pos_embed": "rope"}, {}, "pos_embed is learned, these weights need rope"),
        ({"qkv_bias": "qv"}, {}, "qkv_bias is qkv, these weights need qv"),
        ({"gelu": "erf"}, {}, "gelu is tanh, these weights need erf"),
        ({"norm_eps": 1e-12}, {}, "norm_eps is 1e-06, these weights need 1e-12"),
        ({"pixel_stats": "imagenet"}, {}, "pixel_stats is half, these weights need imagenet"),
        ({}, {"resample": "bicubic"}, "images are resized by tf_bilinear, not by bicubic"),
        ({}, {"crop": "timm"}, "the whole image is resized, without the crop timm"),
    ],
)
def test_npz_has_one_line_for_each_loss(options, metadata, expected):
    metadata = WeightsMetadata(**{"crop": "resize", "resample": "tf_bilinear"} | metadata)
    assert lines("npz", metadata, **options) == [f"the official code: {expected}"]


@pytest.mark.parametrize(
    ("options", "metadata", "expected"),
    [
        ({}, {}, []),
        ({"gelu": "tanh", "norm_eps": 1e-3, "pixel_stats": "clip"}, {}, []),  # In its files.
        (
            *({}, {"resample": "tf_area_uint8"}),
            ["changes scores: train with --config.data.resample=antialias"],
        ),
        ({}, {"crop": "huggingface", "crop_side": 9}, []),
        ({}, {"crop": "timm", "crop_fraction": 0.9}, ["rounded in another way, by up to a pixel"]),
        ({"image_size": (8, 12)}, {"crop": "center"}, ["stretched to 8x12, without the crop"]),
    ],
)
def test_huggingface_has_one_line_for_each_loss(options, metadata, expected):
    metadata = WeightsMetadata(**{"crop": "resize", "resample": "bicubic"} | metadata)
    found = lines("huggingface", metadata, **options)
    assert len(found) == len(expected)
    for line, text in zip(found, expected):
        assert line.startswith("transformers: ")
        assert text in line


def test_timm_reads_none_of_the_preprocessing():
    timm = WeightsMetadata(crop="timm", crop_fraction=0.9, resample="bicubic")
    found = lines("safetensors", timm, gelu="tanh", norm_eps=1e-12)
    for text in (
        "gelu is erf, these weights need tanh; give it to the model",
        "norm_eps is 1e-06, these weights need 1e-12; give it to the model",
        "pixel_stats=half is not in the file; the code of the model card sets it",
        "resample=bicubic is not in the file; the code of the model card sets it",
        "the crop timm is not in the file; the code of the model card sets it",
    ):
        assert f"timm: {text}" in found
    assert len(found) == 5
    assert len(lines("safetensors", OFFICIAL)) == 4  # And one for tf_bilinear.


def test_orbax_loses_nothing():
    assert lines("orbax", OFFICIAL, gelu="erf") == []
