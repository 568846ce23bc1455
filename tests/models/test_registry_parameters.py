"""Numbers, names and shapes of parameters against what was published."""

import functools
import math

import pytest

from vit_jax import create_model
from vit_jax.models.registry import PARAMETERS, param_shapes

VITS = {  # Layers, D, MLP, heads and patch: Table 1, and the papers of the other sizes.
    "vit_ti16": (12, 192, 768, 3, 16),
    "vit_s8": (12, 384, 1536, 6, 8),
    "vit_s14": (12, 384, 1536, 6, 14),
    "vit_s16": (12, 384, 1536, 6, 16),
    "vit_s32": (12, 384, 1536, 6, 32),
    "vit_m16": (12, 512, 2048, 8, 16),
    "vit_m32": (12, 512, 2048, 8, 32),
    "vit_b8": (12, 768, 3072, 12, 8),
    "vit_b14": (12, 768, 3072, 12, 14),
    "vit_b16": (12, 768, 3072, 12, 16),
    "vit_b32": (12, 768, 3072, 12, 32),
    "vit_l14": (24, 1024, 4096, 16, 14),
    "vit_l16": (24, 1024, 4096, 16, 16),
    "vit_l32": (24, 1024, 4096, 16, 32),
    "vit_so400m14": (27, 1152, 4304, 16, 14),
    "vit_so400m16": (27, 1152, 4304, 16, 16),
    "vit_h14": (32, 1280, 5120, 16, 14),
    "vit_h16": (32, 1280, 5120, 16, 16),
    "vit_g14": (40, 1408, 6144, 16, 14),
    "vit_gg14": (48, 1664, 8192, 16, 14),
}
# Parameters with 1,000 classes at 224 px and at the larger size; without head at 224 px; and
# with the 21,843 classes of ImageNet-21k, without and with the tanh layer.
PUBLISHED = {
    "vit_ti16": (5_717_416, 384, 5_790_376, 5_524_416, 9_740_115, 9_777_171),
    "vit_s32": (22_878_952, 384, 22_915_432, 22_493_952, 30_903_507, 31_051_347),
    "vit_s16": (22_050_664, 384, 22_196_584, 21_665_664, 30_075_219, 30_223_059),
    "vit_b32": (88_224_232, 384, 88_297_192, 87_455_232, 104_252_499, 104_843_091),
    "vit_b16": (86_567_656, 384, 86_859_496, 85_798_656, 102_595_923, 103_186_515),
    "vit_b8": (86_576_872, 384, 87_744_232, 85_807_872, 102_605_139, 103_195_731),
    "vit_l32": (306_535_400, 384, 306_632_680, 305_510_400, 327_899_475, 328_949_075),
    "vit_l16": (304_326_632, 384, 304_715_752, 303_301_632, 325_690_707, 326_740_307),
    "vit_h14": (632_045_800, 518, 633_470_440, 630_764_800, 658_745_683, 660_385_363),
    "vit_g14": (1_012_611_432, 518, 1_014_178_536, 1_011_202_432, None, 1_043_963_091),
    "vit_gg14": (1_844_440_680, 518, 1_846_292_712, 1_842_775_680, None, 1_881_914_835),
}
# Of the hybrids, 1,000 classes at 224 and 384 px; their ResNet; 21,843 classes.
HYBRIDS = {
    "r_ti16": (6_337_704, 6_355_944, 9_536, 10_360_403),
    "r26_s32": (36_431_912, 36_468_392, 13_946_176, 44_456_467),
    "r26_b32": (101_383_976, 101_456_936, 13_946_176, 117_412_243),
    "r50_b32": (110_945_832, 111_018_792, 23_508_032, 110_945_832 + 769 * 20_843),
    "r50_b16": (98_659_112, 98_950_952, 11_894_848, 114_687_379),
    "r50_l32": (328_994_856, 329_092_136, 23_508_032, 350_358_931),
    "r50_l16": (316_483_624, 316_872_744, 11_894_848, 316_483_624 + 1025 * 20_843),
}
BITS = {  # 1,000 classes.
    "bit_r50x1": 25_549_352,
    "bit_r50x2": 97_988_712,
    "bit_r50x3": 217_319_080,
    "bit_r101x1": 44_541_480,
    "bit_r101x3": 387_934_888,
    "bit_r152x1": 60_185_128,
    "bit_r152x2": 236_335_208,
    "bit_r152x4": 936_533_224,
    "bit_r200x3": 568_633_000,
}
POSITIONS = "Transformer/posembed_input/pos_embedding"


@functools.cache
def whole(name, **options):
    return param_shapes(create_model(name, **options))


def count(shapes):
    return sum(map(math.prod, shapes.values()))


def parted(name, **options):
    """Parameters outside the layers, and in one of them; all layers are alike, as tested."""
    shapes = whole(name, num_layers=1, **options)
    layer = count({n: shape for n, shape in shapes.items() if "encoderblock_0" in n})
    return count(shapes) - layer, layer


def formula(L, D, M, P, *, size=224, num_classes=1000, pre_logits=False):
    """The sum over equations 1 to 4, where the class token has a position and C is 3."""
    N = (size // P) ** 2
    body = P**2 * 3 * D + D + (N + 1) * D + D
    body += L * (4 * D**2 + 4 * D + 2 * D * M + M + D + 4 * D) + 2 * D
    head = D * num_classes + num_classes if num_classes else 0
    return body + head + (D**2 + D if pre_logits else 0)


def test_every_listed_model_has_a_row_here():
    assert sorted(PARAMETERS) == sorted([*VITS, *HYBRIDS, *BITS])


def test_the_formula_gives_the_published_numbers():
    for name, (at_224, larger, at_larger, body, classes, with_tanh) in PUBLISHED.items():
        L, D, M, _, P = VITS[name]
        assert formula(L, D, M, P) == at_224
        assert formula(L, D, M, P, size=larger) == at_larger
        assert formula(L, D, M, P, num_classes=0) == body
        assert classes in (None, formula(L, D, M, P, num_classes=21843))
        assert formula(L, D, M, P, num_classes=21843, pre_logits=True) == with_tanh


@pytest.mark.parametrize(("name", "L"), [("vit_l16", 24), ("r50_b16", 12)])
@pytest.mark.stress
def test_all_layers_of_a_model_are_alike_and_as_many_as_its_size_says(name, L):
    blocks = [{} for _ in range(L)]
    for array, shape in whole(name).items():
        if "encoderblock_" in array:
            _, block, rest = array.split("/", 2)
            blocks[int(block.removeprefix("encoderblock_"))][rest] = shape
    assert len(blocks[0]) == 16
    assert all(block == blocks[0] for block in blocks)
    rest, layer = parted(name)
    assert rest + L * layer == count(whole(name))


@pytest.mark.parametrize("name", VITS)
def test_a_vision_transformer_has_the_parameters_of_its_row(name):
    L, D, M, h, P = VITS[name]
    assert create_model(name).size.num_layers == L
    rest, layer = parted(name)
    assert rest + L * layer == formula(L, D, M, P) == PARAMETERS[name]
    for part in ("query", "key", "value"):
        kernel = f"Transformer/encoderblock_0/MultiHeadDotProductAttention_0/{part}/kernel"
        assert whole(name, num_layers=1)[kernel] == (D, h, D // h)


@pytest.mark.parametrize("name", VITS)
@pytest.mark.stress
def test_a_vision_transformer_of_another_size_or_head_has_those_of_the_formula(name):
    L, D, M, _, P = VITS[name]
    larger, head = 518 if P == 14 else 384, {"num_classes": 21843}
    for size, more in [(larger, {}), (224, {"num_classes": 0}), (224, head)]:
        rest, layer = parted(name, image_size=size, **more)
        assert rest + L * layer == formula(L, D, M, P, size=size, **more), (size, more)
    rest, layer = parted(name, **head, pre_logits=True)
    assert rest + L * layer == formula(L, D, M, P, **head, pre_logits=True)


@pytest.mark.parametrize("name", HYBRIDS)
@pytest.mark.stress
def test_a_hybrid_has_the_published_parameters(name):
    at_224, at_384, resnet, classes = HYBRIDS[name]
    shapes = whole(name, num_layers=1)
    parts = ("conv_root", "gn_root", "block")
    assert count({n: shape for n, shape in shapes.items() if n.startswith(parts)}) == resnet
    L = {"ti": 12, "s": 12, "b": 12, "l": 24}[name.split("_")[1][:-2]]
    assert create_model(name).size.num_layers == L
    rest, layer = parted(name)
    assert rest + L * layer == at_224 == PARAMETERS[name]
    rest, layer = parted(name, image_size=384, num_classes=21843)
    assert rest + L * layer == at_384 + classes - at_224


@pytest.mark.parametrize("name", BITS)
@pytest.mark.stress
def test_a_bit_resnet_has_the_published_parameters(name):
    shapes = whole(name)
    assert count(shapes) == BITS[name] == PARAMETERS[name]
    features = 2048 * int(name[-1])
    assert shapes["head/kernel"] == (features, 1000)
    if name.startswith("bit_r50"):
        for classes in (0, 21843):
            found = count(whole(name, num_classes=classes))
            assert found == BITS[name] + (features + 1) * (classes - 1000)


@pytest.mark.parametrize(
    ("name", "options", "expected", "arrays"),
    [
        ("vit_b16", {}, 86_567_656, 200),
        ("vit_b16", {"num_classes": 21843, "pre_logits": True}, 103_186_515, 202),
        ("r50_b16", {"num_classes": 21843, "pre_logits": True}, 115_277_971, 358),
        ("vit_l16", {"image_size": 512}, 305_174_504, 392),
        ("vit_s16", {"pool": "gap"}, 22_049_896, 199),
        ("vit_s32", {"pool": "gap"}, 22_878_184, 199),
        ("vit_b16", {"pool": "gap"}, 86_566_120, 199),
        ("vit_b32", {"pool": "gap"}, 88_222_696, 199),
    ],
)
def test_published_files_have_their_numbers_of_parameters_and_arrays(
    name, options, expected, arrays
):
    shapes = whole(name, **options)
    assert count(shapes) == expected
    assert len(shapes) == arrays


@pytest.mark.parametrize(
    ("pool", "arrays", "parameters"),
    [
        ("gap", 199, -2 * 768),  # Neither a class token nor its position.
        ("token_gap", 200, 768 * 1000),
        ("map", 199 + 15, -2 * 768 + 768 + 4 * 768 * 769 + 2 * 768 + 2 * 768 * 3072 + 3840),
    ],
)
def test_pools_differ_by_their_own_parameters(pool, arrays, parameters):
    token, other = whole("vit_b16"), whole("vit_b16", pool=pool)
    assert len(other) == arrays
    assert count(other) - count(token) == parameters


def test_the_names_of_b16_are_those_of_the_published_file():
    D, M, K = 768, 3072, 21843
    expected = {
        "embedding/kernel": (16, 16, 3, D),
        "embedding/bias": (D,),
        "cls": (1, 1, D),
        POSITIONS: (1, 197, D),
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
    assert whole("vit_b16", num_classes=K, pre_logits=True) == expected
