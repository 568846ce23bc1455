"""A ViT with masked patches: its names, what a mask hides, and what it predicts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import forward, named, some_images, some_params, tiny
from vit_jax.models import trees
from vit_jax.models.flops import forward_macs
from vit_jax.models.masked_vit import MaskedViT
from vit_jax.models.registry import make_init, param_shapes

OUT, D = 7, 32
NONE = np.zeros((2, 6), bool)


def masked(**changes):
    return MaskedViT.of(tiny(num_classes=0, **changes), OUT)


@functools.cache
def compiled(model):
    return jax.jit(
        lambda params, images, is_masked: model.apply({"params": params}, images, is_masked)
    )


def predict(model, params, images, is_masked):
    return compiled(model)(params, images, is_masked)


def patch(images, row, column):
    """A view of the pixels of one patch."""
    return images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "gap"},
        {"pool": "token_gap", "registers": 2, "layer_scale": 0.1},
        {"pool": "gap", "class_token": True, "fc_norm": True, "mlp": "swiglu", "mlp_norm": True},
        {"pos_embed": "rope", "registers": 2, "qkv_bias": "qv"},
        {"distill_token": True, "pre_norm": True, "patch_bias": False},
    ],
    ids=str,
)
def test_parameters_are_those_of_a_headless_vit_and_three_more(changes):
    own = {"mask_token": (1, 1, D), "patch_head/kernel": (D, OUT), "patch_head/bias": (OUT,)}
    vit = tiny(num_classes=0, **changes)
    assert param_shapes(MaskedViT.of(vit, OUT)) == param_shapes(vit) | own


def test_the_mask_token_and_the_head_begin_with_zeros():
    key = jax.random.key(0, impl="rbg")  # Quicker to compile.
    params = trees.flatten(jax.jit(make_init(masked(num_layers=1)))(key))
    for name in ("mask_token", "patch_head/kernel", "patch_head/bias"):
        assert not np.any(params[name]), name
    assert np.any(params["embedding/kernel"])


@pytest.mark.parametrize(
    ("changes", "first"),
    [({"registers": 2}, 3), ({"pool": "gap"}, 0)],
    ids=str,
)
def test_predictions_are_one_dense_layer_over_the_last_tokens(changes, first):
    model = masked(**changes)
    params, images = some_params(model), some_images(2, 8, 12, 3)
    seen = named(model, params, images)
    tokens = seen["Transformer"]
    head = params["patch_head"]
    assert tokens.shape == (2, first + 6, D)
    expected = tokens[:, first:] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(seen[""], expected, rtol=1e-4, atol=1e-4)


def test_the_mask_token_stands_for_an_embedding_before_positions_are_added():
    model = masked()
    params, images = some_params(model), some_images(2, 8, 12, 3)
    # Pixels of which the embedding is the mask token: 48 of them for 32 numbers.
    E = params["embedding"]["kernel"].reshape(48, D)
    wanted = params["mask_token"][0, 0] - params["embedding"]["bias"]
    pixels = np.linalg.lstsq(E.T, wanted, rcond=None)[0]
    np.testing.assert_allclose(pixels @ E, wanted, atol=1e-4)
    is_masked, drawn = NONE.copy(), images.copy()
    is_masked[0, 4] = is_masked[1, 2] = True  # Rows of three patches: 4 is (1, 1).
    patch(drawn[:1], 1, 1)[:] = patch(drawn[1:], 0, 2)[:] = pixels.reshape(4, 4, 3)
    expected = predict(model, params, drawn, NONE)
    actual = predict(model, params, images, is_masked)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(actual - predict(model, params, images, NONE)).max() > 0.1


def test_masked_pixels_are_not_seen_and_all_others_are():
    model = masked()
    params, images = some_params(model), some_images(1, 8, 12, 3)
    is_masked = np.array([[False, True, False, False, False, False]])
    before = predict(model, params, images, is_masked)
    for place in range(6):
        other = images.copy()
        patch(other, *divmod(place, 3))[:] = 0.5
        after = predict(model, params, other, is_masked)
        assert np.array_equal(before, after) == (place == 1), place


def test_no_mask_is_the_same_as_a_mask_of_nothing():
    model = masked()
    params, images = some_params(model), some_images(2, 8, 12, 3)
    np.testing.assert_allclose(
        forward(model, params, images), predict(model, params, images, NONE), atol=1e-5
    )


def test_predictions_are_float32_where_the_body_computes_in_bfloat16():
    model = masked(dtype="bfloat16")
    params, images = some_params(model), some_images(2, 8, 12, 3)
    predictions = predict(model, params, images, ~NONE)
    assert predictions.dtype == jnp.float32
    expected = predict(masked(), params, images, ~NONE)
    np.testing.assert_allclose(predictions, expected, atol=0.1 * np.std(expected))


def test_the_head_of_every_patch_is_counted_among_the_products():
    vit = tiny(num_classes=0)
    assert forward_macs(MaskedViT.of(vit, OUT)) - forward_macs(vit) == 6 * D * OUT
    vit = tiny(num_classes=0, pool="token_gap")
    assert forward_macs(MaskedViT.of(vit, OUT)) - forward_macs(vit) == 6 * D * OUT


def test_predictions_are_made_from_normalised_tokens_with_fc_norm():
    model = masked(pool="gap", fc_norm=True)
    params, images = some_params(model), some_images(2, 8, 12, 3)
    before = masked(pool="gap")  # The same LayerNorm inside the encoder.
    norm = params["fc_norm"]
    own = {name: value for name, value in params.items() if name != "fc_norm"}
    own["Transformer"] = params["Transformer"] | {"encoder_norm": norm}
    expected = predict(before, own, images, NONE)
    np.testing.assert_allclose(predict(model, params, images, NONE), expected, atol=1e-5)
