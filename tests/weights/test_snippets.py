"""Code that loads exported weights: complete calls, which run."""

import types
from functools import partial

import numpy as np
import pytest

import vit_jax
from tests.support.tiny import assert_same_model, tiny
from vit_jax.models.registry import param_shapes
from vit_jax.weights import snippets, writer
from vit_jax.weights.metadata import WeightsMetadata

WIDE = {"image_size": (8, 12), "gelu": "erf"}


def timm_call(model) -> dict:
    """Arguments of the call in timm, with the names of its functions."""
    models = types.SimpleNamespace(
        VisionTransformer=lambda **options: options,
        ResNetV2=lambda **options: options,
        vision_transformer_hybrid=types.SimpleNamespace(_resnetv2=lambda layers: layers),
    )
    layers = types.SimpleNamespace(HybridEmbed=dict, StdConv2d=dict)
    torch = types.SimpleNamespace(nn=types.SimpleNamespace(LayerNorm=dict))
    timm = types.SimpleNamespace(models=models, layers=layers)
    return eval(
        snippets.timm_constructor(model), {"timm": timm, "torch": torch, "partial": partial}
    )


def test_timm_constructor_has_all_sizes():
    assert timm_call(tiny(**WIDE, num_layers=3)) == {
        "img_size": (8, 12),
        "patch_size": 4,
        "num_classes": 5,
        "global_pool": "token",
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gelu": "tanh"}, {"act_layer": "gelu_tanh"}),
        ({"pool": "gap"}, {"global_pool": "avg", "class_token": False, "fc_norm": False}),
        ({"pool": "map"}, {"global_pool": "map", "class_token": False}),
        ({"registers": 4}, {"reg_tokens": 4, "no_embed_class": True}),
        ({"layer_scale": 1e-5}, {"init_values": 1e-5}),
        ({"pos_embed": "none"}, {"pos_embed": "none"}),
    ],
)
def test_timm_constructor_has_the_options_of_the_model(options, expected):
    base = timm_call(tiny(**WIDE))
    assert timm_call(tiny(**WIDE | options)) == base | expected


def test_timm_constructor_gives_epsilon_stem_and_bit():
    assert timm_call(tiny(**WIDE, norm_eps=1e-12))["norm_layer"]() == {"eps": 1e-12}
    hybrid = timm_call(vit_jax.create_model("r50_b16", gelu="erf"))
    assert hybrid["patch_size"] == 1
    assert hybrid["embed_layer"]() == {"backbone": (3, 4, 9)}
    bit = timm_call(vit_jax.create_model("bit_r101x3", num_classes=7))
    assert (bit["layers"], bit["width_factor"], bit["num_classes"]) == ((3, 4, 23, 3), 3, 7)


def test_mlp_ratio_gives_the_mlp_size_that_timm_computes():
    for hidden_size, mlp_size in ((1152, 4304), (8, 12), (768, 3072), (48, 161), (7, 29)):
        assert int(hidden_size * snippets._ratio(mlp_size, hidden_size)) == mlp_size


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
