"""Published encoders: options, tokens and heads of their models."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from tests.support.tiny import forward, some_images, some_params, tiny
from vit_jax import create_model
from vit_jax.config.schema import Model
from vit_jax.errors import ConfigError
from vit_jax.models.encoders import ENCODERS, parse_name, with_encoder
from vit_jax.models.registry import param_shapes


def test_a_name_gives_the_options_of_its_family_and_size():
    config = create_model("eva02_b14").config
    assert (config.rope, config.mlp_norm, config.qkv_bias) == ("eva02", True, "qv")
    assert not create_model("eva02_s14").config.mlp_norm
    assert create_model("eva02_b14", mlp_norm=False).config.mlp_norm is False


def test_fields_of_a_config_with_their_default_take_the_value_of_the_encoder():
    config = with_encoder(Model(name="dinov3_s16", registers=2))
    assert (config.registers, config.pos_embed, config.norm_eps) == (2, "rope", 1e-5)
    assert with_encoder(config) == config
    assert with_encoder(Model()) == Model()


@pytest.mark.parametrize("name", ["dinov2_x14", "dinov4_s14", "dinov2_s", "vit_b16", "dinov2_s0"])
def test_other_names_are_no_encoders(name):
    assert parse_name(name) is None


def count(model):
    return sum(map(math.prod, param_shapes(model).values()))


@pytest.mark.parametrize("family", ENCODERS)
def test_published_sizes_have_the_published_numbers_of_parameters(family):
    for size, published in ENCODERS[family].published.items():
        model = create_model(f"{family}_{size}", num_classes=0, image_size=published.image_size)
        assert count(model) == published.parameters


# Of timm 1.0.31, without a head, at its image size.
COUNTS = {
    "dinov2_s14": (518, {}, 22_056_192),
    "dinov2_g14": (518, {}, 1_136_479_232),
    "dinov3_s16": (256, {"qkv_bias": "none"}, 21_586_944),
    "dinov3_splus16": (256, {"qkv_bias": "none"}, 28_683_264),
    "dinov3_b16": (256, {"qkv_bias": "none"}, 85_641_216),
    "dinov3_l16": (256, {"qkv_bias": "none"}, 303_079_424),
    "dinov3_hplus16": (256, {"qkv_bias": "none"}, 840_509_440),
    "siglip_b16": (224, {}, 92_884_224),
    "siglip_l16": (256, {}, 315_956_224),
    "siglip_so400m14": (384, {"image_size": (378, 378)}, 428_225_600),
    "openclip_b16": (224, {}, 85_799_424),
    "openclip_l14": (224, {}, 303_179_776),
    "mae_b16": (224, {}, 85_798_656),
    "deit_distilled_b16": (224, {}, 85_800_192),
    "eva02_ti14": (224, {}, 5_502_144),
    "eva02_b14": (224, {}, 85_758_720),
    "eva02_l14": (224, {}, 303_268_800),
    "ijepa_h14": (224, {}, 630_762_240),
}


@pytest.mark.parametrize("name", COUNTS)
def test_encoders_have_the_numbers_of_parameters_of_timm(name):
    image_size, options, parameters = COUNTS[name]
    model = create_model(name, **{"num_classes": 0, "image_size": image_size} | options)
    assert count(model) == parameters


def test_both_class_tokens_of_deit_are_averaged_after_their_heads():
    options = {"distill_token": True, "num_classes": 3}
    model = tiny(**options)
    params, images = some_params(model), some_images(2, 8, 12, 3)
    z = model.apply(
        {"params": params}, model.apply({"params": params}, images, method="embed"), method="encode"
    )
    heads = [
        np.array(z[:, i]) @ params[name]["kernel"] + params[name]["bias"]
        for i, name in enumerate(("head", "head_dist"))
    ]
    np.testing.assert_allclose(forward(model, params, images), sum(heads) / 2, atol=1e-5)
    features = forward(tiny(distill_token=True, num_classes=0), params, images)
    np.testing.assert_allclose(features, (z[:, 0] + z[:, 1]) / 2, atol=1e-6)
    assert params["Transformer"]["posembed_input"]["pos_embedding"].shape[1] == 2 + 6


def test_fc_norm_normalises_the_mean_of_tokens_that_are_not_normalised():
    model = tiny(pool="gap", class_token=True, fc_norm=True, num_classes=0)
    params, images = some_params(model), some_images(2, 8, 12, 3)
    assert "encoder_norm" not in params["Transformer"]
    embedded = model.apply({"params": params}, images, method="embed")
    z = np.array(model.apply({"params": params}, embedded, method="encode"))
    mean = z[:, 1:].mean(1)
    mean -= mean.mean(-1, keepdims=True)
    mean /= np.sqrt((mean**2).mean(-1, keepdims=True) + 1e-6)
    norm = params["fc_norm"]
    expected = mean * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(forward(model, params, images), expected, rtol=1e-4, atol=1e-5)


def test_layers_without_a_bias_have_no_such_parameter():
    names = param_shapes(tiny(qkv_bias="qv", patch_bias=False, projection=5))
    attention = "Transformer/encoderblock_0/MultiHeadDotProductAttention_0"
    assert f"{attention}/query/bias" in names
    assert f"{attention}/value/bias" in names
    assert f"{attention}/key/bias" not in names
    assert "embedding/bias" not in names
    assert "projection/bias" not in names
    assert names["head/kernel"][0] == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_token": False}, "class_token is False; model.pool='token' needs it"),
        (
            {"distill_token": True, "pool": "gap"},
            "distill_token is True, with pool='gap', .* needs pool='token'",
        ),
    ],
)
def test_tokens_that_contradict_the_pooling_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**options)


def test_noise_of_a_model_with_all_options_depends_on_the_key_alone():
    model = tiny(pos_embed="rope", mlp="glu", mlp_norm=True, pre_norm=True, dropout=0.5)
    params, images = some_params(model), some_images(2, 8, 12, 3)
    run = lambda key: model.apply(  # noqa: E731
        {"params": params}, images, train=True, rngs={"dropout": jax.random.key(key)}
    )
    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3
    assert dataclasses.asdict(model.config)["mlp"] == "glu"
