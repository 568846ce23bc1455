"""Numbers of the figures against loops, scipy and scikit-learn."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from vit_jax import create_model
from vit_jax.errors import ConfigError
from vit_jax.figures import attention as attention_lib
from vit_jax.figures import (
    attention_distance,
    attention_heads,
    attention_rollout,
    filters,
    position_similarity,
)

SHAPE = {"patch": 4, "num_layers": 2, "hidden_size": 16, "mlp_size": 32, "num_heads": 2}
GRID, PIXELS = (2, 3), (8, 12)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, *PIXELS, 3)).astype(np.float32)


def vit(name: str = "vit_ti16", **options):
    options = SHAPE | {"num_classes": 5, "image_size": PIXELS} | options
    model = create_model(name, **options)
    images = np.zeros((1, *model.image_size, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    return model, jax.tree.map(
        lambda p: 3 * np.array(p), params
    )  # Larger than initial values: less uniform attention.


def random_weights(num_layers: int, tokens: int, num_images: int = 3, heads: int = 2):
    logits = np.random.default_rng(1).normal(size=(num_layers, num_images, heads, tokens, tokens))
    A = np.exp(2 * logits)
    return list(A / A.sum(-1, keepdims=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scan": True},
        {"remat": "full"},
        {"pool": "gap"},
        {"registers": 2},
        {"pos_embed": "relative"},
        {"qk_norm": True},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
@pytest.mark.slow
def test_attention_weights_sum_to_1_for_each_query(options):
    model, params = vit(**options)
    layers = list(attention_lib.make_attention_fn(model)(params, IMAGES))
    T = 6 + (options.get("pool") != "gap") + options.get("registers", 0)
    assert [A.shape for A in layers] == [(3, 2, T, T)] * 2
    for A in layers:
        np.testing.assert_allclose(np.array(A).sum(-1), 1, rtol=1e-5)
        assert np.array(A).std() > 1e-3, "not uniform"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "map"},
        {"pos_embed_at": "shared", "registers": 2},
        {"pos_embed_at": "layers", "registers": 2},
        {"pos_embed_at": "layers", "pool": "gap"},
        {"pos_embed": "sincos", "pos_embed_at": "layers"},
        {"pos_embed": "relative"},
        {"pos_embed": "rope", "mlp": "swiglu", "registers": 2, "qkv_bias": "qv"},
        {"pos_embed": "learned_rope", "rope": "eva02", "pool": "gap", "fc_norm": True},
        {"pos_embed": "learned_rope", "pos_embed_at": "shared", "pre_norm": True},
        {"distill_token": True},
    ],
    ids=str,
)
@pytest.mark.stress
def test_attention_fn_layer_by_layer_equals_the_full_model(options):
    model, params = vit(**options)
    _, state = model.apply({"params": params}, IMAGES, mutable=["attention"])
    expected = [
        state["attention"]["Transformer"][f"encoderblock_{i}"]["MultiHeadDotProductAttention_0"]
        for i in range(2)
    ]
    attention_fn = attention_lib.make_attention_fn(model)
    encoder = {k: v for k, v in params["Transformer"].items() if "encoderblock" not in k}
    layers = (params["Transformer"][f"encoderblock_{i}"] for i in range(2))
    # The relative error of a weight is the absolute error of its logit, and logits reach 300. Only
    # the layers one by one are compiled: from jax 0.11 on, XLA fuses LayerNorm into loops with
    # other rounding, 4.5 eps of the largest logit in the second layer.
    rtol = 16 * np.finfo(np.float32).eps * 300
    for layer_weights in (
        attention_fn(params, IMAGES),
        attention_fn(params | {"Transformer": encoder}, IMAGES, layers),
    ):
        for sown, A in zip(expected, layer_weights, strict=True):
            np.testing.assert_allclose(A, sown["A"][0], rtol=rtol, atol=1e-7)


def test_attention_weights_are_the_softmax_of_queries_and_keys():
    model, params = vit()
    A = np.array(next(attention_lib.make_attention_fn(model)(params, IMAGES)))
    body = model.clone(num_classes=0)
    _, state = body.apply({"params": params}, IMAGES, capture_intermediates=True)
    block = state["intermediates"]["Transformer"]["encoderblock_0"]
    z = np.array(block["LayerNorm_0"]["__call__"][0], np.float64)
    own = params["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    q, k = (
        np.einsum("btD,Dhd->bthd", z, own[name]["kernel"]) + own[name]["bias"]
        for name in ("query", "key")
    )
    for b in range(3):
        for head in range(2):
            for t in range(7):
                logits = k[b, :, head] @ q[b, t, head] / math.sqrt(8)
                expected = np.exp(logits - logits.max())
                np.testing.assert_allclose(
                    A[b, head, t], expected / expected.sum(), rtol=1e-4, atol=1e-6
                )


def test_sowing_attention_weights_does_not_change_the_output():
    model, params = vit()
    plain = model.apply({"params": params}, IMAGES)
    with_weights, _ = model.apply({"params": params}, IMAGES, mutable=["attention"])
    np.testing.assert_array_equal(plain, with_weights)
    _, state = model.apply({"params": params}, IMAGES, mutable=["intermediates"])
    assert "attention" not in state, "weights are sown only into a mutable collection"


def test_attention_of_a_hybrid_is_over_its_feature_map():
    model, params = vit("r_ti16", patch=None, image_size=(64, 96))
    images = np.zeros((1, 64, 96, 3), np.float32)
    assert model.grid == (2, 3)
    (A, _) = attention_lib.make_attention_fn(model)(params, images)
    assert A.shape == (1, 2, 7, 7)
    assert model.patch_pixels == 32
    assert attention_lib.pixel_filters(model, params).shape == (7, 7, 3, 64)


def test_require_attention_rejects_a_resnet():
    with pytest.raises(ConfigError, match="which has no attention"):
        attention_lib.require_attention(create_model("bit_r26x1", image_size=32), "weights")


def test_mean_distance_equals_its_definition_in_loops():
    (A,) = random_weights(1, 7)
    distances = attention_distance.mean_distance(A, GRID, patch_pixels=16)
    patches = [(r, c) for r in range(2) for c in range(3)]
    for head in range(2):
        total = 0.0
        for image in range(3):
            for i, query in enumerate(patches):
                row = A[image, head, 1 + i, 1:]  # Without the class token.
                for weight, key in zip(row / row.sum(), patches, strict=True):
                    total += weight * 16 * math.dist(query, key)
        np.testing.assert_allclose(distances[head], total / (3 * 6), rtol=1e-12)


def test_mean_distance_is_0_for_identity_and_the_mean_for_uniform_weights():
    identity = np.eye(6)[None, None]
    np.testing.assert_array_equal(attention_distance.mean_distance(identity, GRID, 16), [0])
    uniform = np.full((1, 1, 6, 6), 1 / 6)
    expected = attention_distance.patch_distances(GRID, 16).mean()
    np.testing.assert_allclose(attention_distance.mean_distance(uniform, GRID, 16), expected)
    assert attention_distance.patch_distances(GRID, 16)[0].tolist() == [
        *(0, 16, 32),
        *(16, math.hypot(16, 16), math.hypot(16, 32)),
    ]


def test_rollout_is_the_product_of_layers_with_their_identity():
    layers = random_weights(3, 7)
    rollout = attention_rollout.rollout(layers)
    for b in range(3):
        expected = np.eye(7)
        for A in layers:  # The last layer is the leftmost factor.
            mixed = 0.5 * (A[b, 0] + A[b, 1]) / 2 + 0.5 * np.eye(7)
            expected = mixed @ expected
        np.testing.assert_allclose(rollout[b], expected, rtol=1e-12)
        np.testing.assert_allclose(rollout[b].sum(axis=1), 1)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_output_maps_are_the_rows_of_the_output_tokens(count):
    num_prefix_tokens = max(count, 1)  # Without an output token, a class token that is not pooled.
    joint = attention_rollout.rollout(random_weights(2, num_prefix_tokens + 6))
    masks = attention_rollout.output_maps(joint, GRID, count)
    outputs = joint[:, :count] if count else joint[:, 1:]
    rows = outputs.mean(axis=1)[:, num_prefix_tokens:]
    np.testing.assert_allclose(masks, (rows / rows.max(1, keepdims=True)).reshape(3, 2, 3))


def test_resize_map_equals_scipy_zoom():
    mask = np.random.default_rng(2).uniform(size=(3, 4))
    expected = ndimage.zoom(mask, (9 / 3, 12 / 4), order=1)
    np.testing.assert_allclose(attention_rollout.resize_map(mask, (9, 12)), expected, atol=1e-12)


def test_head_maps_are_rows_of_the_output_tokens_or_a_patch():
    A = random_weights(1, 9)[0][0]  # Two class tokens and a register before six patches.
    for count, rows in ((1, A[:, 0]), (2, (A[:, 0] + A[:, 1]) / 2), (0, A[:, 3:].mean(axis=1))):
        maps = attention_heads.head_maps(A, GRID, count)
        np.testing.assert_allclose(maps, rows[:, 3:].reshape(2, 2, 3))
    maps = attention_heads.head_maps(A, GRID, 1, query=4)
    np.testing.assert_array_equal(maps, A[:, 7, 3:].reshape(2, 2, 3))


def test_cosine_similarity_equals_scipy_and_tiles_are_in_grid_order():
    embeddings = np.random.default_rng(3).normal(size=(6, 5))
    similarities = position_similarity.cosine_similarity(embeddings, GRID)
    expected = 1 - cdist(embeddings, embeddings, metric="cosine")
    np.testing.assert_allclose(similarities.reshape(6, 6), expected, atol=1e-12)
    tiles = position_similarity.tile_similarities(similarities)
    assert tiles.shape == (2 * 2 + 1, 3 * 3 + 2)
    np.testing.assert_array_equal(tiles[3:, 4:7], similarities[1, 1])
    assert np.isnan(tiles[2]).all()
    assert np.isnan(tiles[:, 3]).all()


@pytest.mark.parametrize("kind", ["learned", "learned_2d", "sincos", "learned_rope"])
@pytest.mark.parametrize("pool", ["token", "gap"])
def test_position_embeddings_are_those_added_to_the_patches(kind, pool):
    model, params = vit(pos_embed=kind, pool=pool)
    embeddings = attention_lib.position_embeddings(model, params)
    assert embeddings.shape == (6, 16)
    own = params["Transformer"].get("posembed_input", {})
    if kind in ("learned", "learned_rope"):
        np.testing.assert_array_equal(embeddings, own["pos_embedding"][0, -6:])
    if kind == "learned_2d":
        for i in range(6):
            halves = own["x_embedding"][0, i % 3], own["y_embedding"][0, i // 3]
            np.testing.assert_allclose(embeddings[i], np.concatenate(halves))


@pytest.mark.parametrize("kind", ["none", "relative", "rope"])
def test_position_embeddings_are_none_without_added_embeddings(kind):
    assert attention_lib.position_embeddings(*vit(pos_embed=kind)) is None


def test_principal_components_equal_scikit_learn_up_to_sign():
    kernel = np.random.default_rng(4).normal(size=(2, 2, 3, 40)).astype(np.float32)
    components = filters.principal_components(kernel, 5).reshape(5, -1)
    expected = (
        PCA(5, svd_solver="full").fit(kernel.reshape(12, 40).T.astype(np.float64)).components_
    )
    np.testing.assert_allclose(np.abs((components * expected).sum(1)), 1, rtol=1e-6)
    for component in components:
        assert component[np.abs(component).argmax()] > 0


def test_top_patches_are_sorted_by_response():
    components = np.zeros((2, 1, 2, 3))
    components[0, 0, 0] = components[1, 0, 1] = 1
    patches = np.zeros((4, 1, 2, 3))
    patches[2, 0, 0], patches[1, 0, 0] = 1.0, 0.5
    patches[3, 0, 1] = 1.0
    assert filters.top_patches(patches, components, 2).tolist() == [[2, 1], [3, 0]]


def test_pixel_filters_are_the_patch_embedding_kernel():
    model, params = vit()
    kernel = attention_lib.pixel_filters(model, params)
    assert kernel.shape == (4, 4, 3, 16)
    np.testing.assert_array_equal(kernel, params["embedding"]["kernel"])
    wide = dataclasses.replace(model.config, kernels="plain")
    assert attention_lib.pixel_filters(model.clone(config=wide), params) is not None
