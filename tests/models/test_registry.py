"""Names of models, the options of `create_model`, and what cannot be built."""

import jax
import pytest

import vit_jax
from vit_jax import create_model, list_models
from vit_jax.config.schema import Model
from vit_jax.errors import ConfigError
from vit_jax.models.encoders import ENCODERS
from vit_jax.models.registry import build, param_shapes


def test_names_match_shell_patterns():
    assert list_models("vit_l*") == ["vit_l14", "vit_l16", "vit_l32"]
    assert list_models("r*b32") == ["r26_b32", "r50_b32"]
    assert list_models("bit_r50*") == ["bit_r50x1", "bit_r50x2", "bit_r50x3"]
    assert list_models("resnet*") == []
    assert list_models("dinov2_s*") == ["dinov2_s14"]
    assert len(list_models()) == len(set(list_models()))


def test_any_patch_makes_a_name_even_an_unpublished_one():
    assert create_model("vit_ti28").grid == (8, 8)
    assert create_model("vit_b16", patch=32).grid == (7, 7)
    assert create_model("r101_so400m16").grid == (14, 14)


def test_a_pair_of_sizes_is_height_then_width():
    for name, grid in [("vit_s16", (4, 6)), ("r50_s32", (2, 3)), ("r_ti16", (2, 3))]:
        model = create_model(name, image_size=(64, 96))
        assert model.image_size == (64, 96)
        assert model.grid == grid
    assert create_model("bit_r50x1", image_size=(33, 97)).image_size == (33, 97)


UNKNOWN = {
    "vit_b17x": "vit_b16",
    "vit_xl16": "vit_l16",
    "vit_b0": "vit_b8",
    "vit_16": "vit_s16",
    "r50_b14": "r50_b16",
    "r51_b16": "r50_b16",
    "r_ti32": "r_ti16",
    "bit_r51x1": "bit_r50x1",
    "bit_r50x0": "bit_r50x3",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_answered_with_the_pattern_of_names_and_the_nearest(name):
    with pytest.raises(ConfigError) as caught:
        create_model(name)
    assert str(caught.value) == (
        f"model name {name!r} is unknown; expected vit_<ti|s|m|b|l|so400m|h|g|gg><patch>, "
        f"r<depth>_<size><16|32>, bit_r<depth>x<width>, or <family>_<size><patch> of the families "
        f"{', '.join(ENCODERS)}. Did you mean {UNKNOWN[name]}?"
    )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet", {}, r"'resnet' is unknown; .*x<width>, or .*ijepa\.$"),
        ("vit_b16", {"pol": "gap"}, r"^model has no field 'pol'\. Did you mean pool\?$"),
        ("vit_b16", {"pos_embd": "none"}, r"no field 'pos_embd'\. Did you mean pos_embed\?$"),
        ("bit_r50x1", {"widht": 2}, r"^model has no field 'widht'\."),
        ("vit_b16", {"num_heads": 7}, "hidden_size 768 is not divisible by model.num_heads 7"),
        ("vit_b16", {"pool": "mean"}, r"model.pool is 'mean'.*'gap', 'map', 'token_gap'"),
        ("vit_b16", {"gelu": "relu"}, r"model.gelu is 'relu'.*'tanh', 'erf'"),
        ("vit_b16", {"dtype": "float16"}, r"model.dtype is 'float16'.*'float32', 'bfloat16'"),
        ("vit_b16", {"pos_embed": "sincos2d"}, r"'learned_rope'\]\. Did you mean sincos\?$"),
        ("vit_b16", {"pixel_stats": "dino"}, r"choose from \['half', 'imagenet', 'clip', 'unit'\]"),
        ("vit_b16", {"registers": -1}, r"^model\.registers is -1; it must be at least 0\.$"),
        ("vit_b16", {"layer_scale": -0.1}, r"^model\.layer_scale is -0\.1; it must be at least"),
        ("vit_b16", {"norm_eps": 0}, r"^model\.norm_eps is 0\.0; it must be above 0\.$"),
        ("r50_b16", {"patch": 16}, r"^model\.patch is 16; it must be None for r50_b16, whose name"),
        ("r_ti16", {"patch": 8}, r"^model\.patch is 8; it must be None for r_ti16, whose name"),
        ("vit_h14", {"image_size": 384}, r"384x384 .* 14x14; nearest sizes: 378 or 392"),
        ("vit_b16", {"image_size": (224, 230)}, "nearest sizes: 224 or 240"),
        ("vit_b16", {"image_size": (10, 32)}, r"10x32 .* nearest sizes: 16\.$"),
        ("r50_b16", {"image_size": 225}, r"225x225 .* 16x16; nearest sizes: 224 or 240"),
        ("r50_l32", {"image_size": (224, 208)}, r"224x208 .* 32x32; nearest sizes: 192 or 224"),
        ("r_ti16", {"image_size": 240}, r"240x240 .* 32x32; nearest sizes: 224 or 256"),
        ("r26_s32", {"image_size": 16}, r"16x16 .* 32x32; nearest sizes: 32\.$"),
        ("bit_r50x1", {"image_size": (0, 32)}, r"^image_size is \(0, 32\); expected a positive"),
        ("vit_b16", {"num_classes": -1}, "^num_classes is -1; expected a whole number"),
        ("vit_b16", {"image_size": (224,)}, r"^image_size is \(224,\); expected a positive"),
        ("vit_b16", {"image_size": 224.0}, "^image_size is 224.0; expected a positive"),
        ("vit_b016", {}, "^model name 'vit_b016' is unknown"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        create_model(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "width", "parts"), [("sincos", 10, 4), ("sincos", 7, 4), ("learned_2d", 9, 2)]
)
def test_a_width_that_a_position_embedding_cannot_part_is_refused(kind, width, parts):
    shape = {"hidden_size": width, "num_heads": 1}
    words = rf"hidden_size {width} is not divisible by {parts}, which model.pos_embed='{kind}'"
    with pytest.raises(ConfigError, match=words):
        create_model("vit_b16", pos_embed=kind, **shape)
    assert create_model("vit_b16", pos_embed="learned", **shape).size.hidden_size == width


@pytest.mark.parametrize("at", ["layers", "shared"])
@pytest.mark.parametrize("kind", ["none", "relative"])
def test_what_is_not_added_cannot_be_added_elsewhere(kind, at):
    words = rf"^model\.pos_embed_at is '{at}'; with pos_embed='{kind}' no positions are added"
    with pytest.raises(ConfigError, match=words):
        create_model("vit_b16", pos_embed=kind, pos_embed_at=at)


def test_a_config_section_builds_the_same_model_as_the_same_options():
    options = {"patch": 4, "num_layers": 1, "pool": "map", "dropout": 0.1, "gelu": "erf"}
    options |= {"pos_embed": "sincos", "pos_embed_at": "shared", "registers": 2, "qk_norm": True}
    options |= {"layer_scale": 0.1, "pixel_stats": "clip"}
    built = build(Model(name="vit_ti16", **options), num_classes=3, image_size=(8, 12))
    assert built == create_model("vit_ti16", num_classes=3, image_size=(8, 12), **options)
    assert built.config.dropout == 0.1
    assert built.grid == (2, 3)


def test_shapes_cost_no_memory():
    before = len(jax.live_arrays())
    param_shapes(create_model("vit_b16", num_layers=1))
    assert len(jax.live_arrays()) <= before + 1  # The one dummy image at most.


def test_the_package_lists_its_api_before_it_is_used():
    assert {"create_model", "list_models", "load_params", "preprocess"} <= set(dir(vit_jax))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("vit_base_patch16_224", "vit_b16"),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_b16"),
        ("timm/vit_large_patch14_clip_224.openai", "vit_l14"),
        ("deit_small_patch16_224", "vit_s16"),
        ("deit3_huge_patch14_224", "vit_h14"),
        ("vit_tiny_patch16_384", "vit_ti16"),
        ("vit_so400m_patch14_siglip_384", "vit_so400m14"),
        ("vit_small_patch14_dinov2.lvd142m", "vit_s14"),
        ("google/vit-base-patch16-224-in21k", "vit_b16"),
        ("facebook/deit-tiny-patch16-224", "vit_ti16"),
        ("ViT-B_16", "vit_b16"),
        ("ViT-L/16-224", "vit_l16"),
        ("vit_b_32", "vit_b32"),
        ("dinov2_vits14", "vit_s14"),
        ("vit_giant_patch14_224", "vit_g14"),
        ("vit_base_r50_s16_224", "r50_b16"),
        ("vit_small_r26_s32_224", "r26_s32"),
        ("vit_tiny_r_s16_p8_224", "r_ti16"),
        ("R50+ViT-B_16", "r50_b16"),
        ("resnetv2_50x1_bit.goog_in21k", "bit_r50x1"),
        ("BiT-M-R101x3", "bit_r101x3"),
    ],
)
def test_create_model_translates_the_names_of_other_projects(name, ours):
    with pytest.raises(ConfigError, match=rf"Did you mean {ours}\?"):
        create_model(name)
