"""What a model begins with: the official code's initialisers."""

import jax
import numpy as np
import pytest

from tests.support.tiny import tiny
from vit_jax import create_model
from vit_jax.models import trees
from vit_jax.models.position import PositionEmbedding, RelativeKeys
from vit_jax.models.registry import make_init


@pytest.fixture(scope="module")
def born():
    """Name -> initial array, wide enough for statistics."""
    wide = {"image_size": 64, "hidden_size": 64, "mlp_size": 192, "pre_logits": True}
    model = tiny(**wide, registers=40, layer_scale=1e-5, qk_norm=True)
    return trees.flatten(jax.jit(make_init(model))(jax.random.key(0)))


def test_the_head_starts_at_zero_and_so_does_the_class_token(born):
    for name in ("head/kernel", "head/bias", "cls"):
        assert not np.any(born[name]), name


@pytest.mark.parametrize("name", ["vit_ti16", "bit_r50x1"])
def test_the_heads_bias_starts_where_it_is_told_and_its_kernel_at_zero(name):
    layers = {"num_layers": 1} if name == "vit_ti16" else {}
    model = create_model(name, num_classes=5, image_size=32, head_bias=-6.9, **layers)
    head = jax.jit(lambda key: make_init(model)(key)["head"])(jax.random.key(0, impl="rbg"))
    np.testing.assert_array_equal(head["bias"], np.full(5, -6.9, np.float32))
    assert not np.any(head["kernel"])


def test_positions_start_normal_with_deviation_two_hundredths(born):
    positions = np.asarray(born["Transformer/posembed_input/pos_embedding"])  # 16 448 numbers.
    assert positions.shape == (1, 257, 64)
    assert positions.std() == pytest.approx(0.02, rel=0.03)
    assert abs(positions.mean()) < 0.001
    assert np.abs(positions).max() > 0.06  # Not cut off at two deviations.


@pytest.mark.parametrize(
    ("name", "fans"),
    [
        ("MultiHeadDotProductAttention_0/query", 64 + 64),
        ("MultiHeadDotProductAttention_0/key", 64 + 64),
        ("MultiHeadDotProductAttention_0/value", 64 + 64),
        ("MultiHeadDotProductAttention_0/out", 64 + 64),
        ("MlpBlock_0/Dense_0", 64 + 192),
        ("MlpBlock_0/Dense_1", 192 + 64),
    ],
)
def test_encoder_kernels_start_xavier_uniform(born, name, fans):
    kernel = np.asarray(born[f"Transformer/encoderblock_1/{name}/kernel"])
    bound = np.sqrt(6 / fans)
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)


@pytest.mark.parametrize(("name", "fan_in"), [("embedding", 4 * 4 * 3), ("pre_logits", 64)])
def test_patches_and_pre_logits_start_lecun_normal(born, name, fan_in):
    kernel = np.asarray(born[f"{name}/kernel"])
    assert kernel.std() == pytest.approx(np.sqrt(1 / fan_in), rel=0.05)
    # Truncated at two deviations of the normal that has deviation 0.88 once truncated.
    assert np.abs(kernel).max() <= 2 * np.sqrt(1 / fan_in) / 0.8796
    assert np.abs(kernel).max() > 1.8 * np.sqrt(1 / fan_in)


def test_biases_start_at_zero_but_those_of_the_mlp_at_a_millionth(born):
    for name, array in born.items():
        if "MlpBlock_0" in name and name.endswith("bias"):
            assert np.std(array) == pytest.approx(1e-6, rel=0.3), name
        elif name.endswith("bias"):
            assert not np.any(array), name
        elif name.endswith("scale") and "LayerScale" not in name:
            assert np.all(array == 1), name


def test_no_two_layers_start_alike(born):
    kernel = "MlpBlock_0/Dense_0/kernel"
    first, second = (born[f"Transformer/encoderblock_{i}/{kernel}"] for i in (0, 1))
    assert np.mean(np.abs(first - second) < 1e-6) < 0.01


def test_registers_start_at_a_millionth_and_layer_scale_where_it_is_told(born):
    assert np.std(born["registers"]) == pytest.approx(1e-6, rel=0.1)
    scales = [array for name, array in born.items() if "LayerScale" in name]
    np.testing.assert_array_equal(scales, np.full((4, 64), 1e-5, np.float32))


@pytest.mark.parametrize("kind", ["learned", "learned_2d"])
def test_positions_without_a_deviation_start_as_in_big_vision(kind):
    # models/vit.py of google-research/big_vision: normal(stddev=1/np.sqrt(width)).
    options = {"num_layers": 1, "hidden_size": 384, "image_size": 224, "num_classes": 2}
    model = create_model("vit_ti16", pos_embed=kind, pos_embed_std=None, **options)
    init = jax.jit(lambda key: make_init(model)(key)["Transformer"]["posembed_input"])
    for table in init(jax.random.key(0, impl="rbg")).values():
        assert np.std(table) == pytest.approx(0.0510, rel=0.05)


def test_other_positions_start_normal_with_deviation_two_hundredths_too():
    key = jax.random.key(0, impl="rbg")  # Quicker to compile.
    halves = PositionEmbedding("learned_2d", (20, 24), 1, 64).init(key)
    keys = RelativeKeys().init(key, np.zeros((1, 30, 2, 8), np.float32))
    tables = trees.flatten(halves["params"] | keys["params"])
    assert {name: table.shape for name, table in tables.items()} == {
        "x_embedding": (1, 24, 32),
        "y_embedding": (1, 20, 32),
        "relative_embedding": (59, 2, 8),
    }
    for name, table in tables.items():
        assert np.std(table) == pytest.approx(0.02, rel=0.1), name
