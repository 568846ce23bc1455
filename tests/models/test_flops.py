"""Multiply-accumulates against published tables and against what JAX would compute."""

import itertools
import math

import jax
import jax.numpy as jnp
import pytest

from tests.support.tiny import small_bit
from vit_jax import create_model
from vit_jax.models.flops import forward_macs, training_flops
from vit_jax.models.registry import make_init
from vit_jax.models.size_table import PARAMETERS

VITS = {  # 1,000 classes: at 224 px, and at the larger size.
    "vit_ti16": (1.254, 384, 4.682),
    "vit_s32": (1.143, 384, 3.443),
    "vit_s16": (4.599, 384, 15.490),
    "vit_b32": (4.409, 384, 13.044),
    "vit_b16": (17.564, 384, 55.484),
    "vit_b8": (78.148, 384, 294.045),
    "vit_l32": (15.378, 384, 45.276),
    "vit_l16": (61.555, 384, 191.066),
    "vit_h14": (167.295, 518, 1016.717),
    "vit_g14": (267.031, 518, 1595.227),
    "vit_gg14": (483.748, 518, 2822.308),
    "r_ti16": (0.434, 384, 1.327),  # The hybrids, with the zeros around their images.
    "r26_s32": (3.464, 384, 10.264),
    "r26_b32": (6.711, 384, 19.808),
    "r50_b32": (8.458, 384, 24.941),
    "r50_b16": (21.535, 384, 67.156),
    "r50_l32": (19.413, 384, 57.136),
    "r50_l16": (65.539, 384, 202.775),
}
BITS = {  # 1,000 classes at 224 px: with the zeros around the images, and without.
    "bit_r50x1": (4.089, 3.948),
    "bit_r50x2": (16.117, 15.556),
    "bit_r50x3": (36.082, 34.825),
    "bit_r101x1": (7.801, 7.478),
    "bit_r101x3": (69.492, 66.590),
    "bit_r152x1": (11.514, 11.028),
    "bit_r152x2": (45.814, 43.877),
    "bit_r152x4": (182.777, 175.037),
    "bit_r200x3": (134.347, 129.208),
}
UNPUBLISHED = {  # Layers, D, MLP and patch, for the formula.
    "vit_s8": (12, 384, 1536, 8),
    "vit_s14": (12, 384, 1536, 14),
    "vit_m16": (12, 512, 2048, 16),
    "vit_m32": (12, 512, 2048, 32),
    "vit_b14": (12, 768, 3072, 14),
    "vit_l14": (24, 1024, 4096, 14),
    "vit_so400m14": (27, 1152, 4304, 14),
    "vit_so400m16": (27, 1152, 4304, 16),
    "vit_h16": (32, 1280, 5120, 16),
}
BODIES = {  # At 224 px without head and class token, as big_vision counts its variants.
    "vit_ti16": 1.25,
    "vit_s14": 6.10,
    "vit_m16": 7.95,
    "vit_b14": 23.07,
    "vit_l14": 80.68,
    "vit_so400m14": 109.5,
    "vit_so400m16": 83.1,
    "vit_h16": 126.7,
    "vit_g14": 266,
    "vit_gg14": 482,
}


def gmacs(name, *, count_padding=True, **options):
    return forward_macs(create_model(name, **options), count_padding=count_padding) / 1e9


def test_every_listed_model_has_a_cost_here():
    assert sorted(PARAMETERS) == sorted([*VITS, *BITS, *UNPUBLISHED])


@pytest.mark.parametrize("name", VITS)
def test_models_cost_the_published_multiply_accumulates(name):
    at_224, larger, at_larger = VITS[name]
    assert gmacs(name) == pytest.approx(at_224, abs=6e-4)
    assert gmacs(name, image_size=larger) == pytest.approx(at_larger, abs=6e-4)


@pytest.mark.parametrize("name", BITS)
def test_bit_resnets_cost_the_published_multiply_accumulates(name):
    with_zeros, without = BITS[name]
    assert gmacs(name) == pytest.approx(with_zeros, abs=6e-4)
    assert gmacs(name, count_padding=False) == pytest.approx(without, abs=6e-4)


@pytest.mark.parametrize("name", UNPUBLISHED)
def test_models_without_a_published_cost_have_that_of_the_formula(name):
    L, D, M, P = UNPUBLISHED[name]
    for size in (224, 518 if P == 14 else 384):
        N = (size // P) ** 2
        T = N + 1
        macs = N * P**2 * 3 * D + L * (T * (4 * D**2 + 2 * D * M) + 2 * T**2 * D) + 1000 * D
        assert forward_macs(create_model(name, image_size=size)) == macs


@pytest.mark.parametrize("name", BODIES)
def test_bodies_cost_what_big_vision_counts(name):
    # So many digits are published.
    digit = 0.5 * 10.0 ** -len(str(BODIES[name]).partition(".")[2])
    assert gmacs(name, pool="gap", num_classes=0) == pytest.approx(BODIES[name], abs=digit)


def test_l16_at_512_costs_its_published_multiply_accumulates():
    assert gmacs("vit_l16", image_size=512) == pytest.approx(361.986, abs=6e-4)


def test_padding_is_nothing_to_a_vision_transformer():
    assert gmacs("vit_b16") == gmacs("vit_b16", count_padding=False)


def taps(length, window, stride, before, places):
    """Products of all places with what is not padding, one after the other."""
    inputs = itertools.product(range(places), range(window))
    return sum(0 <= place * stride - before + i < length for place, i in inputs)


def products(eqn, count_padding):
    """Multiply-accumulates of one equation of a jaxpr."""
    shapes = [variable.aval.shape for variable in eqn.invars]
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return math.prod(eqn.outvars[0].aval.shape) * math.prod(shapes[0][i] for i in contracted)
    if eqn.primitive.name != "conv_general_dilated":
        return 0
    (_, *lengths, _), (*windows, inputs, outputs) = shapes
    total = inputs * outputs
    for axis in (0, 1):
        places, window = eqn.outvars[0].aval.shape[1 + axis], windows[axis]
        before, stride = eqn.params["padding"][axis][0], eqn.params["window_strides"][axis]
        seen = taps(lengths[axis], window, stride, before, places)
        total *= places * window if count_padding else seen
    return total


def all_products(jaxpr, count_padding):
    total = 0
    for eqn in jaxpr.eqns:
        total += products(eqn, count_padding)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += all_products(inner, count_padding)
    return total


def jaxpr_of(model):
    params = jax.eval_shape(make_init(model), jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
    return jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(params, image).jaxpr


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "gap", "pre_logits": True},
        {"pool": "map", "num_classes": 0},
        {"pool": "map", "pre_logits": True, "registers": 2, "qk_norm": True},
        {"pool": "token_gap", "registers": 3},
        {"pool": "token_gap", "pre_logits": True, "pos_embed": "sincos"},
        {"pool": "token_gap", "num_classes": 0, "layer_scale": 0.1},
        {"pos_embed": "relative", "registers": 1},
        {"pos_embed": "learned_2d", "pos_embed_at": "layers"},
        {"pos_embed": "rope", "mlp": "swiglu", "registers": 4, "qkv_bias": "qv"},
        {"mlp": "glu", "mlp_norm": True, "pool": "gap", "class_token": True, "fc_norm": True},
        {"pre_norm": True, "projection": 7},
        {"projection": 7, "num_classes": 0},
        {"projection": 7, "pool": "token_gap", "pre_logits": True},
        {"distill_token": True},
        {"distill_token": True, "num_classes": 0},
        {"pool": "map", "mlp": "swiglu", "class_token": True},
    ],
    ids=str,
)
def test_the_formula_counts_the_matrix_products_of_the_model(options):
    tiny = {"patch": 4, "image_size": (8, 20), "num_layers": 2, "hidden_size": 32}
    tiny |= {"mlp_size": 48, "num_heads": 2, "num_classes": 5}
    model = create_model("vit_ti16", **tiny | options)
    assert forward_macs(model) == all_products(jaxpr_of(model), count_padding=True)


@pytest.mark.parametrize(
    "model",
    [
        create_model("r_ti16", image_size=(32, 96), num_layers=1),
        create_model("r26_ti32", image_size=(96, 32), num_layers=1, pool="gap"),
        create_model("r50_s16", image_size=224, num_layers=1),
        small_bit((1, 1, 1, 1), 1, (224, 224), num_classes=5),
        small_bit((1, 2, 1, 1), 2, (37, 50), num_classes=5),
        small_bit((2, 1), 1, (13, 1), num_classes=5),
        small_bit((1,), 3, (5, 6), num_classes=5),
    ],
    ids=lambda model: f"{model.image_size[0]}x{model.image_size[1]}",
)
def test_the_formula_counts_the_convolutions_tap_by_tap(model):
    jaxpr = jaxpr_of(model)
    with_zeros, without = (all_products(jaxpr, count_padding=count) for count in (True, False))
    assert forward_macs(model) == with_zeros
    assert forward_macs(model, count_padding=False) == without < with_zeros


def test_encoders_cost_the_sum_of_their_matrix_products():
    D, M, T = 384, 1536, 14 * 14 + 5  # DINOv3 S+ at 224 px: a class token and four registers.
    layer = T * (4 * D * D + 3 * D * M) + 2 * T * T * D
    patches = 14 * 14 * 16 * 16 * 3 * D
    assert forward_macs(create_model("dinov3_splus16", num_classes=0)) == patches + 12 * layer
    D, M, T = 768, 3072, 14 * 14 + 2  # DeiT B with both tokens and heads.
    layer = T * (4 * D * D + 2 * D * M) + 2 * T * T * D
    patches = 14 * 14 * 16 * 16 * 3 * D
    assert forward_macs(create_model("deit_distilled_b16")) == patches + 12 * layer + 2 * D * 1000
    N = 14 * 14  # SigLIP B: keys and values of all patches, one query, its output and its MLP.
    layer = N * (4 * D * D + 2 * D * M) + 2 * N * N * D
    pool = 2 * N * D * D + 2 * D * D + 2 * N * D + 2 * D * M
    assert forward_macs(create_model("siglip_b16", num_classes=0)) == patches + 12 * layer + pool


def test_a_root_on_four_pixels_has_taps_that_can_be_counted_by_hand():
    # Places at -3..3 and -1..5 see pixels 0..3: 4 and 4 of 7 taps, along both axes.
    root = 8 * 8 * 3 * 64
    # One unit on a single place: 1x1 convolutions, and the middle of a 3x3.
    unit = 64 * 256 + 64 * 64 + 64 * 64 + 64 * 256
    head = 256 * 5
    assert (
        forward_macs(small_bit((1,), 1, (4, 4), num_classes=5), count_padding=False)
        == root + unit + head
    )


TABLE_6 = [
    ("vit_b32", 7, 55),
    ("vit_b16", 7, 224),
    ("vit_l32", 7, 196),
    ("vit_l16", 7, 783),
    ("vit_l16", 14, 1567),
    ("vit_h14", 14, 4262),
    ("bit_r50x1", 7, 50),
    ("bit_r50x2", 7, 199),
    ("bit_r101x1", 7, 96),
    ("bit_r152x1", 7, 141),
    ("bit_r152x2", 7, 563),
    ("bit_r152x2", 14, 1126),
    ("bit_r200x3", 14, 3306),
    ("r50_b32", 7, 106),
    ("r50_b16", 7, 274),
    ("r50_l32", 7, 246),
    ("r50_l16", 7, 859),  # Half of the next row is 834.
    ("r50_l16", 14, 1668),
]


@pytest.mark.parametrize(("name", "epochs", "exaflops"), TABLE_6)
def test_training_costs_the_exaflops_of_table_6(name, epochs, exaflops):
    # JFT-300M: 303 million images of 18,291 classes.
    options = {} if name.startswith("bit") else {"pre_logits": True}
    model = create_model(name, num_classes=18_291, **options)
    found = training_flops(model, examples=303_000_000 * epochs) / 1e18
    assert found == pytest.approx(exaflops, rel=0.05 if exaflops == 859 else 0.03)
