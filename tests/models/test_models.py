"""Names and shapes of the published models, and what cannot be built."""

import math

import jax
import pytest

from vit_jax import create_model, list_models
from vit_jax.errors import ConfigError
from vit_jax.models import build, param_shapes
from vit_jax.schema import Model

# Parameters: 1000 classes at 224 px, and at the larger size; no head; and the 21843 classes of
# ImageNet-21k with the tanh layer of pre-training.
COUNTS = {
    "vit_ti16": (5_717_416, 384, 5_790_376, 5_524_416, 9_777_171),
    "vit_s32": (22_878_952, 384, 22_915_432, 22_493_952, 31_051_347),
    "vit_s16": (22_050_664, 384, 22_196_584, 21_665_664, 30_223_059),
    "vit_b32": (88_224_232, 384, 88_297_192, 87_455_232, 104_843_091),
    "vit_b16": (86_567_656, 384, 86_859_496, 85_798_656, 103_186_515),
    "vit_b8": (86_576_872, 384, 87_744_232, 85_807_872, 103_195_731),
    "vit_l32": (306_535_400, 384, 306_632_680, 305_510_400, 328_949_075),
    "vit_l16": (304_326_632, 384, 304_715_752, 303_301_632, 326_740_307),
    "vit_h14": (632_045_800, 518, 633_470_440, 630_764_800, 660_385_363),
}


POSITIONS = "Transformer/posembed_input/pos_embedding"


def count(shapes):
    return sum(map(math.prod, shapes.values()))


def without(shapes, *layers):
    return {name: shape for name, shape in shapes.items() if not name.startswith(layers)}


def test_every_listed_model_has_its_published_counts_here():
    assert sorted(list_models()) == sorted(COUNTS)


@pytest.mark.parametrize("name", list_models())
def test_models_have_the_published_numbers_of_parameters(name):
    at_224, larger_size, at_larger, body, with_pre_logits = COUNTS[name]
    plain = param_shapes(create_model(name))
    assert count(plain) == at_224
    assert count(without(plain, "head")) == body
    options = {"image_size": larger_size, "num_classes": 21843, "pre_logits": True}
    larger = param_shapes(create_model(name, **options))
    assert count(without(larger, "head", "pre_logits")) == at_larger - (at_224 - body)
    # Everything but the positions is the same at all sizes.
    assert count(larger | {POSITIONS: plain[POSITIONS]}) == with_pre_logits


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("vit_l16", {"image_size": 512}, 305_174_504),
        ("vit_b16", {"num_classes": 21843}, 102_595_923),
        ("vit_s16", {"pool": "gap"}, 22_049_896),
        ("vit_b32", {"pool": "gap"}, 88_222_696),
    ],
)
def test_further_published_checkpoints_have_their_numbers(name, options, expected):
    assert count(param_shapes(create_model(name, **options))) == expected


def test_the_names_of_b16_are_those_of_the_published_file():
    D, M, K = 768, 3072, 21843
    expected = {
        "embedding/kernel": (16, 16, 3, D),
        "embedding/bias": (D,),
        "cls": (1, 1, D),
        "Transformer/posembed_input/pos_embedding": (1, 197, D),
        "Transformer/encoder_norm/scale": (D,),
        "Transformer/encoder_norm/bias": (D,),
        "pre_logits/kernel": (D, D),
        "pre_logits/bias": (D,),
        "head/kernel": (D, K),
        "head/bias": (K,),
    }
    for i in range(12):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_0"
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            expected |= {f"{block}/{norm}/scale": (D,), f"{block}/{norm}/bias": (D,)}
        for part in ("query", "key", "value"):
            expected |= {f"{attention}/{part}/kernel": (D, 12, 64)}
            expected |= {f"{attention}/{part}/bias": (12, 64)}
        expected |= {f"{attention}/out/kernel": (12, 64, D), f"{attention}/out/bias": (D,)}
        expected |= {f"{block}/MlpBlock_0/Dense_0/kernel": (D, M)}
        expected |= {f"{block}/MlpBlock_0/Dense_0/bias": (M,)}
        expected |= {f"{block}/MlpBlock_0/Dense_1/kernel": (M, D)}
        expected |= {f"{block}/MlpBlock_0/Dense_1/bias": (D,)}
    assert len(expected) == 202
    model = create_model("vit_b16", num_classes=K, pre_logits=True)
    assert param_shapes(model) == expected


def test_names_match_shell_patterns():
    assert list_models("vit_l*") == ["vit_l16", "vit_l32"]
    assert list_models("*32") == ["vit_s32", "vit_b32", "vit_l32"]
    assert list_models("resnet*") == []


def test_any_patch_makes_a_name_even_an_unpublished_one():
    assert create_model("vit_ti28").grid == (8, 8)
    assert create_model("vit_b16", patch=32).grid == (7, 7)


def test_a_pair_of_sizes_is_height_then_width():
    model = create_model("vit_s16", image_size=(64, 96))
    assert model.image_size == (64, 96)
    assert model.grid == (4, 6)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_b17x", {}, r"'vit_b17x' is unknown; .* Did you mean vit_b16\?"),
        ("vit_xl16", {}, r"vit_<ti\|s\|b\|l\|h><patch>"),
        ("vit_b0", {}, "unknown"),
        ("resnet", {}, "unknown"),
        ("vit_b16", {"num_heads": 7}, "hidden_size 768 is not divisible by model.num_heads 7"),
        ("vit_b16", {"pool": "mean"}, r"model.pool is 'mean'.*'token', 'gap', 'map'"),
        ("vit_b16", {"gelu": "relu"}, r"model.gelu is 'relu'.*'tanh', 'erf'"),
        ("vit_b16", {"dtype": "float16"}, r"model.dtype is 'float16'.*'float32', 'bfloat16'"),
        ("vit_h14", {"image_size": 384}, r"384x384 .* 14x14; nearest sizes: 378 or 392"),
        ("vit_b16", {"image_size": (224, 230)}, "nearest sizes: 224 or 240"),
        ("vit_b16", {"image_size": (10, 32)}, r"10x32 .* nearest sizes: 16\.$"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        create_model(name, **options)
    assert "\n" not in str(caught.value)


def test_a_config_section_builds_the_same_model_as_the_same_options():
    section = Model(name="vit_ti16", patch=4, num_layers=1, pool="map", dropout=0.1, gelu="erf")
    options = {"patch": 4, "num_layers": 1, "pool": "map", "dropout": 0.1, "gelu": "erf"}
    built = build(section, num_classes=3, image_size=(8, 12))
    assert built == create_model("vit_ti16", num_classes=3, image_size=(8, 12), **options)
    assert built.layers.dropout == 0.1
    assert built.grid == (2, 3)


def test_shapes_cost_no_memory():
    before = len(jax.live_arrays())
    param_shapes(create_model("vit_b16"))
    assert len(jax.live_arrays()) <= before + 1  # The one dummy image at most.
