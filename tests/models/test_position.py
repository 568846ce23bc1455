"""Table 8: each position embedding, in each of its places, against loops in numpy."""

import numpy as np
import pytest

from tests.support import reference_vit
from tests.support.tiny import forward, some_images, some_params, tiny
from vit_jax.models.position import PositionEmbedding, RelativeKeys, sincos
from vit_jax.models.registry import param_shapes

TABLE_8 = [
    ("none", "stem"),
    ("learned", "stem"),
    ("learned", "layers"),
    ("learned", "shared"),
    ("learned_2d", "stem"),
    ("learned_2d", "layers"),
    ("learned_2d", "shared"),
    ("relative", "stem"),
]


OTHERS = [
    ("sincos", "stem", {}),
    ("sincos", "shared", {}),
    ("learned", "stem", {"pool": "gap", "registers": 2}),
    ("learned_2d", "shared", {"pool": "token_gap", "registers": 1}),
    ("sincos", "layers", {"pool": "gap"}),
]


@pytest.mark.parametrize(("kind", "at", "more"), [(*row, {}) for row in TABLE_8] + OTHERS)
def test_a_model_with_each_position_embedding_is_the_papers(kind, at, more):
    model = tiny(pos_embed=kind, pos_embed_at=at, **more)
    params, images = some_params(model), some_images(1, 8, 12, 3)
    pool = more.get("pool", "token")
    expected = reference_vit.vit(params, images, pool=pool, pos_embed=kind, pos_embed_at=at)
    np.testing.assert_allclose(forward(model, params, images), expected, rtol=1e-4, atol=1e-4)


def positions(model):
    """Names of the parameters that hold positions, without their common beginning."""
    names = {name: shape for name, shape in param_shapes(model).items() if "_embedding" in name}
    return {name.removeprefix("Transformer/"): shape for name, shape in names.items()}


def test_the_default_is_learned_once_before_the_first_layer():
    assert tiny() == tiny(pos_embed="learned", pos_embed_at="stem")
    assert positions(tiny()) == {"posembed_input/pos_embedding": (1, 1 + 6, 32)}
    assert positions(tiny(pool="gap")) == {"posembed_input/pos_embedding": (1, 6, 32)}


@pytest.mark.parametrize("kind", ["learned", "learned_2d"])
def test_positions_are_there_once_or_once_per_layer_or_once_for_all(kind):
    once = positions(tiny(pos_embed=kind, num_layers=3))
    assert {name.split("/")[0] for name in once} == {"posembed_input"}
    assert positions(tiny(pos_embed=kind, num_layers=3, pos_embed_at="shared")) == once
    each = positions(tiny(pos_embed=kind, num_layers=3, pos_embed_at="layers"))
    assert each == {
        name.replace("posembed_input", layer): shape
        for name, shape in once.items()
        for layer in ("posembed_input", "posembed_1", "posembed_2")
    }


def test_rows_and_columns_have_tables_of_half_the_width():
    assert positions(tiny(pos_embed="learned_2d")) == {
        "posembed_input/x_embedding": (1, 3, 16),
        "posembed_input/y_embedding": (1, 2, 16),
    }


def test_relative_keys_are_there_in_every_layer_for_every_offset_and_head():
    name = "MultiHeadDotProductAttention_0/relative/relative_embedding"
    assert positions(tiny(pos_embed="relative", pool="map")) == {
        f"encoderblock_{i}/{name}": (2 * 6 - 1, 2, 16) for i in (0, 1)
    }


@pytest.mark.parametrize("kind", ["none", "sincos"])
def test_what_is_not_learned_has_no_parameters(kind):
    assert positions(tiny(pos_embed=kind)) == {}


def test_the_halves_of_a_place_are_those_of_its_column_and_its_row():
    x, y = np.array([[[1.0], [2.0], [3.0]]]), np.array([[[10.0], [20.0]]])
    params = {"x_embedding": x, "y_embedding": y}
    module = PositionEmbedding("learned_2d", grid=(2, 3), num_class_tokens=1, hidden_size=2)
    expected = [[0, 0], [1, 10], [2, 10], [3, 10], [1, 20], [2, 20], [3, 20]]
    np.testing.assert_array_equal(module.apply({"params": params})[0], expected)


def test_sines_and_cosines_of_the_column_come_before_those_of_the_row():
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]  # Row and column.
    waves = [[np.sin(at), np.sin(at * 1e-4), np.cos(at), np.cos(at * 1e-4)] for at in range(3)]
    expected = [waves[column] + waves[row] for row, column in places]
    np.testing.assert_allclose(sincos((2, 3), 8), expected, rtol=1e-6)
    np.testing.assert_allclose(sincos((5, 4), 192), reference_vit.sincos(5, 4, 192), atol=1e-6)


def test_the_class_token_has_no_sine_and_no_cosine():
    E_pos = PositionEmbedding("sincos", grid=(2, 3), num_class_tokens=1, hidden_size=8).apply({})
    assert E_pos.shape == (1, 7, 8)
    np.testing.assert_array_equal(E_pos[0, 0], np.zeros(8))
    np.testing.assert_array_equal(E_pos[0, 1], [0, 0, 1, 1, 0, 0, 1, 1])


def test_a_query_meets_the_key_of_its_own_place_less_the_others():
    # One head of one number: the logit is the key itself, and keys are their offsets.
    keys = np.arange(-2.0, 3)[:, None, None]
    q = np.ones((1, 3, 1, 1))
    logits = RelativeKeys().apply({"params": {"relative_embedding": keys}}, q)
    np.testing.assert_array_equal(logits[0, 0], [[0, -1, -2], [1, 0, -1], [2, 1, 0]])


def test_relative_logits_are_divided_by_the_root_of_a_heads_size():
    random = np.random.default_rng(0)
    q, keys = random.normal(size=(2, 4, 3, 16)), random.normal(size=(7, 3, 16))
    logits = RelativeKeys().apply({"params": {"relative_embedding": keys}}, q)
    for example in (0, 1):
        for head in (0, 1, 2):
            expected = reference_vit.relative_logits(q[example, :, head], keys[:, head])
            np.testing.assert_allclose(logits[example, head], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "learned", "learned_2d", "relative", "sincos"])
def test_the_order_of_the_patches_matters_unless_there_are_no_positions(kind):
    model = tiny(pos_embed=kind)
    params, images = some_params(model), some_images(1, 8, 12, 3)
    swapped = np.concatenate([images[:, 4:], images[:, :4]], axis=1)
    gap = np.abs(forward(model, params, images) - forward(model, params, swapped)).max()
    assert gap < 1e-5 if kind == "none" else gap > 0.05


def test_relative_logits_in_bfloat16_stay_close():
    exact, rounded = (tiny(pos_embed="relative", dtype=dtype) for dtype in ("float32", "bfloat16"))
    params, images = some_params(exact), some_images(1, 8, 12, 3)
    logits = forward(rounded, params, images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, forward(exact, params, images), atol=0.15)
