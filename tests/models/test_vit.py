"""The Vision Transformer against equations 1 to 8 in plain numpy, and what it promises besides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import reference_vit
from tests.support.tiny import (
    TINY,
    equations,
    forward,
    named,
    some_images,
    some_like,
    some_params,
    tiny,
)
from vit_jax import create_model
from vit_jax.config.schema import Model
from vit_jax.errors import ConfigError
from vit_jax.models import trees
from vit_jax.models.layers import Attention, Block
from vit_jax.models.registry import make_init, param_shapes
from vit_jax.models.vit import PatchEmbedding, patchify


def told(changes):
    """The options that numpy cannot read off the parameters."""
    names = {"pool": "pool", "gelu": "gelu", "norm_eps": "eps"}
    return {names[key]: value for key, value in changes.items() if key in names}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gelu": "erf", "pre_logits": True},
        {"pool": "map", "gelu": "erf", "norm_eps": 0.1},
        {"pool": "gap", "pre_logits": True, "image_size": (12, 4)},
        {"pool": "gap", "num_classes": 0, "num_heads": 1, "patch": 2, "num_layers": 1},
        {"pool": "token_gap", "pre_logits": True},
        {"pool": "token_gap", "num_classes": 0, "registers": 2},
        {"registers": 1, "layer_scale": 0.1},
        {"pool": "gap", "registers": 2},
        {"pool": "map", "registers": 3, "qk_norm": True, "norm_eps": 0.1},
        {"qk_norm": True, "layer_scale": 1.0},
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()) or "token",
)
def test_the_model_is_the_papers_equations(changes):
    model = tiny(**changes)
    params, images = some_params(model), some_images(2, *model.image_size, 3)
    expected = reference_vit.vit(params, images, **told(changes))
    np.testing.assert_allclose(forward(model, params, images), expected, rtol=1e-4, atol=1e-4)


def test_layer_norm_adds_a_millionth_to_the_variance():
    # Tokens of variance 1e-6, where 1e-5 or 0 in place of 1e-6 would show.
    model = tiny(pool="gap")
    params, images = some_params(model), some_images(2, 8, 12, 3)
    faint = lambda name, leaf: leaf * (1e-3 if "embed" in name else 1)  # noqa: E731
    params = trees.map_with_names(faint, params)
    actual = forward(model, params, images)
    expected = reference_vit.vit(params, images, pool="gap")
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(actual - reference_vit.vit(params, images, pool="gap", eps=1e-5)).max() > 0.1


def test_the_two_gelus_differ_but_little():
    params, images = some_params(tiny()), some_images(2, 8, 12, 3)
    gap = np.abs(reference_vit.vit(params, images, gelu="erf") - forward(tiny(), params, images))
    assert 1e-4 < gap.max() < 0.1


def test_patches_run_row_by_row():
    images = jnp.arange(32.0).reshape(1, 4, 4, 2)
    np.testing.assert_array_equal(
        patchify(images, 2)[0, :, ::2],
        [[0, 2, 8, 10], [4, 6, 12, 14], [16, 18, 24, 26], [20, 22, 28, 30]],
    )


def test_patch_embedding_is_a_convolution_with_stride_and_window_of_a_patch():
    images, module = some_images(2, 8, 12, 3), PatchEmbedding(Model(patch=4, hidden_size=16))
    params = some_like(jax.eval_shape(module.init, jax.random.key(0), images)["params"])
    convolved = jax.lax.conv_general_dilated(
        images, params["kernel"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = np.asarray(convolved).reshape(2, 2 * 3, 16) + params["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, images), expected, atol=1e-5)


def test_a_block_does_not_know_the_order_of_tokens():
    block = Block(tiny(num_heads=4).config)
    z = some_images(2, 5, 32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), z))["params"]
    params = some_like(shapes)
    apply = jax.jit(lambda z: block.apply({"params": params}, z))
    order = np.array([3, 1, 4, 0, 2])
    np.testing.assert_allclose(apply(z[:, order]), apply(z)[:, order], atol=1e-5)


def test_images_of_another_size_are_refused():
    model = tiny()
    params, turned = some_params(model), some_images(1, 12, 8, 3)
    with pytest.raises(ConfigError, match=r"images are 12x8; .* 8x12"):
        model.apply({"params": params}, turned)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_integer_images_are_rejected_with_the_remedy(dtype):
    model = tiny(num_layers=1)
    images = np.ones((1, 8, 12, 3), dtype)
    with pytest.raises(ConfigError, match=r"images are \w+; .* vit_jax\.preprocess"):
        jax.eval_shape(model.init, jax.random.key(0), images)


def test_images_of_another_layout_are_rejected():
    model = tiny(num_layers=1)
    for shape in ((8, 12, 3), (1, 8, 12, 4), (1, 3, 8, 12)):
        with pytest.raises(ConfigError, match="the model expects B H W 3"):
            jax.eval_shape(model.init, jax.random.key(0), np.zeros(shape, np.float32))


# What later papers added


def test_registers_stand_between_class_token_and_patches_and_have_no_position():
    # Layers that add nothing let the tokens of equation 1 through.
    model = tiny(registers=2, layer_scale=0.5)
    params, images = some_params(model), some_images(1, 8, 12, 3)
    params = trees.map_with_names(lambda n, a: a * ("LayerScale" not in n), params)
    seen = named(model, params, images)
    E_pos = params["Transformer"]["posembed_input"]["pos_embedding"][0]
    assert E_pos.shape == (1 + 6, 32)
    z = seen["Transformer/encoderblock_1"][0]
    assert z.shape == (1 + 2 + 6, 32)
    np.testing.assert_allclose(z[0], params["cls"][0, 0] + E_pos[0], atol=1e-6)
    np.testing.assert_array_equal(z[1:3], params["registers"][0])
    np.testing.assert_allclose(z[3:], seen["embedding"][0] + E_pos[1:], atol=1e-6)


@pytest.mark.parametrize(("pool", "width"), [("gap", 32), ("token_gap", 64)])
def test_the_mean_is_that_of_the_patches_without_registers_or_class_token(pool, width):
    model = tiny(registers=2, pool=pool, num_classes=0)
    params, images = some_params(model), some_images(1, 8, 12, 3)
    seen = named(model, params, images)
    z, features = seen["Transformer"][0], seen[""][0]
    assert features.shape == (width,)
    np.testing.assert_allclose(features[-32:], z[-6:].mean(0), atol=1e-5)
    if pool == "token_gap":
        np.testing.assert_array_equal(features[:32], z[0])


def test_layer_scale_is_off_by_default_and_one_changes_nothing():
    plain, scaled = tiny(), tiny(layer_scale=1.0)
    params, images = some_params(plain), some_images(2, 8, 12, 3)
    new = param_shapes(scaled).keys() - param_shapes(plain).keys()
    assert new == {
        f"Transformer/encoderblock_{i}/LayerScale_{j}/scale" for i in (0, 1) for j in (0, 1)
    }
    ones = dict.fromkeys(new, np.ones(32, np.float32))
    np.testing.assert_allclose(
        forward(scaled, trees.unflatten(trees.flatten(params) | ones), images),
        forward(plain, params, images),
        rtol=1e-5,
        atol=1e-5,
    )


def test_layer_scale_of_zero_leaves_each_layer_the_identity():
    model = tiny(layer_scale=0.5)
    params = trees.map_with_names(lambda n, a: a * ("LayerScale" not in n), some_params(model))
    seen = named(model, params, some_images(1, 8, 12, 3))
    z = np.concatenate([params["cls"], seen["embedding"]], axis=1)
    z += params["Transformer"]["posembed_input"]["pos_embedding"]
    for i in (0, 1):
        np.testing.assert_array_equal(seen[f"Transformer/encoderblock_{i}"], z)


@pytest.mark.parametrize(
    ("qk_norm", "part", "is_free"),
    [(True, "query", True), (True, "key", True), (True, "value", False), (False, "query", False)],
)
def test_normalised_queries_and_keys_have_no_scale_of_their_own(qk_norm, part, is_free):
    model = tiny(qk_norm=qk_norm, norm_eps=1e-12)
    params, images = some_params(model), some_images(1, 8, 12, 3)
    scaled = trees.map_with_names(lambda n, a: a * (7 if f"/{part}/" in n else 1), params)
    gap = np.abs(forward(model, params, images) - forward(model, scaled, images)).max()
    assert gap < 1e-4 if is_free else gap > 0.1


PIXELS = {  # What torchvision and CLIP write in their transforms.
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": (
        [0.48145466, 0.4578275, 0.40821073],
        [0.26862954, 0.26130258, 0.27577711],
    ),
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_are_normalised_by_the_statistics_of_the_weights(name):
    mean, deviation = map(np.array, PIXELS[name])
    images = some_images(2, 8, 12, 3)
    pixels = (np.float64(images) + 1) / 2  # In [0, 1].
    model = tiny(pixel_stats=name, num_layers=1)
    params = some_params(model)
    expected = reference_vit.vit(params, (pixels - mean) / deviation)
    np.testing.assert_allclose(forward(model, params, images), expected, rtol=1e-4, atol=1e-4)


# bfloat16


def in_bfloat16(model):
    return model.clone(config=dataclasses.replace(model.config, dtype="bfloat16"))


@pytest.mark.parametrize("pool", ["token", "gap", "map"])
def test_bfloat16_stays_close_and_answers_in_float32(pool):
    model = tiny(pool=pool, pre_logits=True, num_layers=1)
    params, images = some_params(model), some_images(4, 8, 12, 3)
    exact, rounded = (forward(m, params, images) for m in (model, in_bfloat16(model)))
    assert rounded.dtype == jnp.float32
    # Logits reach 5 here; bfloat16 has 8 bits.
    np.testing.assert_allclose(rounded, exact, atol=0.15)
    assert np.abs(rounded - exact).max() > 1e-4, "nothing was computed in bfloat16"


def test_bfloat16_is_for_activations_and_float32_for_parameters_and_features():
    model = create_model("vit_ti16", **TINY | {"dtype": "bfloat16", "num_classes": 0})
    shapes = jax.eval_shape(make_init(model), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    features, seen = jax.eval_shape(
        lambda p, x: model.apply({"params": p}, x, capture_intermediates=True),
        shapes,
        jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32),
    )
    assert features.dtype == jnp.float32
    block = seen["intermediates"]["Transformer"]["encoderblock_0"]
    for name in ("MultiHeadDotProductAttention_0", "MlpBlock_0", "LayerNorm_0", "__call__"):
        leaf = jax.tree.leaves(block[name])[-1]
        assert leaf.dtype == jnp.bfloat16, name


def test_softmax_and_layer_norm_statistics_stay_float32_in_bfloat16():
    model = tiny(dtype="bfloat16", pool="map")
    jaxpr = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(
        some_params(model), some_images(1, 8, 12, 3)
    )
    dtypes = {"exp": [], "rsqrt": []}
    for eqn in equations(jaxpr.jaxpr):
        if eqn.primitive.name in dtypes:
            dtypes[eqn.primitive.name].append(str(eqn.outvars[0].aval.dtype))
    assert dtypes == {"exp": ["float32"] * 3, "rsqrt": ["float32"] * 6}


def test_attention_over_many_keys_keeps_its_small_probabilities_in_bfloat16():
    # Logits of 0 and 8 times one: a bfloat16 sum of 4096 equal terms would stop at 256.
    attention = Attention(in_bfloat16(tiny(num_heads=1)).config)
    one = np.ones((1, 1), np.float32)
    dense = {"kernel": one[:, None], "bias": one * 0}
    params = dict.fromkeys(("query", "key", "value"), dense)
    params["out"] = {"kernel": one[None], "bias": np.zeros(1, np.float32)}
    y = np.zeros((1, 4096, 1), np.float32)
    y[:, 0] = 8.0
    actual = attention.apply({"params": params}, np.ones((1, 1, 1), np.float32), y)
    expected = 8 * np.exp(8) / (np.exp(8) + 4095)
    np.testing.assert_allclose(np.float32(actual), expected, rtol=0.01)
