"""Code that loads exported weights: complete calls, which run."""

import numpy as np
import pytest

import vit_jax
from tests.support.tiny import assert_same_model, tiny
from vit_jax.models.registry import param_shapes
from vit_jax.weights import snippets, writer
from vit_jax.weights.metadata import WeightsMetadata

WIDE = {"image_size": (8, 12), "gelu": "erf"}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"crop": "resize"}, ("squash", 1.0)),
        ({"crop": "timm", "crop_fraction": 0.9}, ("center", 0.9)),
        ({"crop": "timm_squash", "crop_fraction": 0.875}, ("squash", 0.875)),
    ],
)
def test_timm_crop_has_the_number_of_the_file(metadata, expected):
    assert snippets._timm_crop(tiny(**WIDE), WeightsMetadata(**metadata)) == expected


def test_timm_crop_gives_the_short_side_of_a_file():
    model = vit_jax.create_model("vit_b16", image_size=224)
    for side in range(224, 520):
        metadata = WeightsMetadata(crop="huggingface", crop_side=side)
        mode, fraction = snippets._timm_crop(model, metadata)
        assert (mode, int(np.floor(224 / fraction))) == ("center", side)


def test_vit_jax_code_reproduces_outputs(tmp_path, monkeypatch, photos):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    model = tiny(**WIDE, pixel_stats="imagenet")
    plan = writer.plan_export("npz", model, param_shapes(model))
    metadata = WeightsMetadata(crop="timm", crop_fraction=0.9, resample="bicubic")
    arrays = {n: np.full(s, 0.1, np.float32) for n, s in param_shapes(model).items()}
    writer.write(plan, tmp_path / "x.npz", model, arrays, metadata, "")
    Image.fromarray(photos[0][:90, :120]).save("image.jpg")
    names = {}
    exec(snippets.vit_jax_code("x.npz", model), names)
    recipe = vit_jax.load("x.npz").recipe
    assert (recipe.crop, recipe.crop_fraction, recipe.resample) == ("timm", 0.9, "bicubic")
    np.testing.assert_array_equal(names["pixels"], vit_jax.load("x.npz").preprocess(["image.jpg"]))
    assert names["logits"].shape == (1, 5)
    assert_same_model(names["model"], names["loaded"].model)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_code_for_other_packages_is_valid(num_classes):
    model = tiny(**WIDE, num_classes=num_classes)
    metadata = WeightsMetadata(crop="huggingface", crop_side=(9, 13), resample="bicubic")
    for code in (
        snippets.timm_code("x.safetensors", model, metadata),
        snippets.huggingface_code("x y'z", model),
    ):
        compile(code, "code", "exec")
