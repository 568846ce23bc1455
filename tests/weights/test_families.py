"""Options that files lack: taken from a published family or the model, or requested."""

import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.support.peer_weights import D, as_official, timm_weights
from vit_jax import create_model
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.models.size_table import SIZES
from vit_jax.weights import convert, families, formats, load
from vit_jax.weights.archive import write_npz
from vit_jax.weights.families import find_family, num_heads
from vit_jax.weights.metadata import UNKNOWN

MODEL = {"patch": 4, "num_layers": 2, "hidden_size": D, "mlp_size": 16, "num_classes": 3}


def shapes_of(layers, width, mlp_size):
    shapes = {f"Transformer/encoderblock_{i}/LayerNorm_0/scale": (width,) for i in range(layers)}
    return shapes | {"Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel": (width, mlp_size)}


def test_num_heads_are_those_of_a_size_that_all_families_share():
    for name, size in SIZES.items():
        found = num_heads(shapes_of(size.num_layers, size.hidden_size, size.mlp_size), None)
        assert (found and found[0]) == (None if name == "s" else size.num_heads)
    assert num_heads(shapes_of(12, 384, 1536), families.of_encoder("deit")) == (6, "DeiT")


@pytest.mark.parametrize("shape", [(12, 384, 1536), (8, 768, 2304), (2, 384, 1536), (12, 192, 512)])
def test_num_heads_of_other_shapes_are_not_guessed(shape):
    # MoCo v3 S has 12 heads, timm's first vit_small 8 heads of the width 768.
    assert num_heads(shapes_of(*shape), None) is None


LAYER_SCALE = {"Transformer/encoderblock_0/LayerScale_0/scale": (8,)}


@pytest.mark.parametrize(
    ("format", "prefix", "shapes", "kind", "pixel_stats"),
    [
        (formats.TIMM, "", {"cls": (1, 1, 8)}, "", None),  # AugReg, DeiT, MAE, MoCo v3.
        (formats.TIMM, "", {"cls": (1, 1, 8)} | LAYER_SCALE, "", "imagenet"),
        (formats.TIMM, "", {"MAPHead_0/probe": ()}, "", "half"),
        (formats.TIMM, "", {"conv_root/kernel": ()}, "", "half"),
        (formats.TIMM, "", {"pre_logits/kernel": ()}, "", "half"),
        (formats.TIMM, "teacher.backbone.", {}, "", "imagenet"),
        (formats.TIMM, "", {}, "vit_small_patch16_224", "half"),
        (formats.TIMM, "", {}, "deit_small_patch16_224", "imagenet"),
        (formats.TIMM, "", {}, "vit_base_patch14_dinov2", "imagenet"),
        (formats.TIMM, "", {}, "vit_base_patch16_clip_224", None),
        (formats.DINO, "", {}, "", "imagenet"),
        (formats.HF_DINO, "dinov2.", {}, "dinov2", "imagenet"),
        (formats.HF_VIT, "vit.", {}, "vit", "half"),
        (formats.HF_VIT, "vit.", {}, "deit", "imagenet"),
        (formats.HF_VIT, "deit.", {}, "", "imagenet"),
        (formats.HF_BIT, "bit.", {}, "bit", "half"),
        (formats.HF_DEIT, "deit.", {}, "", "imagenet"),
        (formats.HF_DINO_3, "", {}, "", "imagenet"),
        (formats.HF_VIT, "vit.", {}, "vit_mae", "imagenet"),
        (formats.HF_VIT, "vit.", {}, "vit_msn", None),
        (formats.HF_VIT, "ijepa.", {}, "ijepa", "imagenet"),
        (formats.HF_SIGLIP, "", {"MAPHead_0/probe": ()}, "", "half"),
        (formats.HF_CLIP, "", {}, "clip_vision_model", None),
        (formats.OFFICIAL, "", LAYER_SCALE, "", None),
        (formats.TIMM, "", {}, "vit_base_patch16_224.mae", "imagenet"),
        (formats.TIMM, "", {}, "vit_base_patch16_224.augreg_in21k", "half"),
    ],
)
def test_find_family_gives_the_pixel_statistics(format, prefix, shapes, kind, pixel_stats):
    family = find_family(formats.FORMATS[format], prefix, shapes, kind)
    assert (family and family.options.get("pixel_stats")) == pixel_stats


POSITIONS = "Transformer/posembed_input/pos_embedding"
SCALED = LAYER_SCALE | {"cls": (1, 1, 8)}


@pytest.mark.parametrize(
    ("format", "shapes", "kind", "family"),
    [
        (formats.TIMM, {}, "vit_small_patch16_224.dino", "dino"),
        (formats.TIMM, {}, "vit_huge_patch14_gap_224.in1k_ijepa", "ijepa"),
        (formats.TIMM, {}, "vit_base_patch14_reg4_dinov2.lvd142m", "dinov2_reg"),
        (formats.TIMM_EVA, {}, "vit_small_patch16_dinov3.lvd1689m", "dinov3"),
        (formats.TIMM_EVA, {}, "eva02_tiny_patch14_224.mim_in22k", "eva02"),
        (formats.TIMM, {}, "vit_base_patch16_clip_quickgelu_224.openai", "clip"),
        (formats.TIMM, {}, "vit_base_patch16_clip_224.laion2b", "openclip"),
        (formats.TIMM, {}, "deit_base_distilled_patch16_224.fb_in1k", "deit_distilled"),
        (formats.TIMM, {}, "deit3_base_patch16_224.fb_in1k", "deit3"),
        (formats.TIMM, {}, "vit_base_patch16_224.augreg2_in21k_ft_in1k", None),
        (formats.TIMM, SCALED | {POSITIONS: (1, 196, 8)}, "", "deit3"),
        (formats.TIMM, SCALED | {POSITIONS: (1, 1370, 8)}, "", "dinov2"),
        (formats.TIMM, SCALED | {POSITIONS: (1, 150, 8)}, "", None),
        (formats.DINO, {"registers": (1, 4, 8)}, "", "dinov2_reg"),
        (formats.DINO, {"registers": (1, 1, 8)}, "", "tips"),
        (formats.DINO, {"registers": (1, 2, 8)}, "", None),
        (formats.HF_DEIT, {"dist_token": (1, 1, 8)}, "deit", "deit_distilled"),
        (formats.BIG_VISION, {"MAPHead_0/probe": (1, 1, 8)}, "", None),
    ],
)
def test_find_family_gives_the_row_of_the_encoder(format, shapes, kind, family):
    found = find_family(formats.FORMATS[format], "", shapes, kind)
    assert (found and found.key) == family


@pytest.mark.parametrize(("gelu", "family"), [("quick", "clip"), ("erf", "openclip"), (None, None)])
def test_find_family_tells_clips_by_their_activation(gelu, family):
    for format, kind in ((formats.OPEN_CLIP, ""), (formats.HF_CLIP, "clip_vision_model")):
        found = find_family(formats.FORMATS[format], "visual.", {}, kind, gelu=gelu)
        assert (found and found.key) == family


def bare_timm(path):
    safetensors.numpy.save_file(timm_weights(), path)
    return path


def test_load_asks_for_what_nothing_gives(tmp_path):
    path = bare_timm(tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError, match=r"cannot infer num_heads .* and pixel_stats"
    ) as caught:
        load.load(path)
    assert str(caught.value).endswith(f"as in {path}:num_heads=1,pixel_stats=imagenet.")
    with pytest.raises(CheckpointError, match="cannot infer pixel_stats"):
        load.load(f"{path}:num_heads=2,image_size=8x12")
    loaded = load.load(f"{path}:num_heads=4,pixel_stats=imagenet,image_size=8x12,norm_eps=1e-5")
    assert (loaded.model.size.num_heads, loaded.model.image_size) == (4, (8, 12))
    assert (loaded.model.config.pixel_stats, loaded.model.config.norm_eps) == ("imagenet", 1e-5)


def test_load_params_takes_from_the_model_what_the_file_lacks_and_prints_it(tmp_path, capsys):
    path = bare_timm(tmp_path / "x.safetensors")
    model = create_model("vit_ti16", **MODEL, image_size=(8, 12), num_heads=4, gelu="erf")
    params = vit_jax.load_params(path, model)
    block = params["Transformer"]["encoderblock_0"]
    assert block["MultiHeadDotProductAttention_0"]["query"]["kernel"].shape == (D, 4, D // 4)
    assert capsys.readouterr().err == (
        f"{path}: assumed gelu=erf, norm_eps=1e-06 (timm); num_heads=4, pixel_stats=half, "
        "image_size=8x12 (the model).\n"
    )


def test_dinov2_without_preprocessor_has_the_pixel_statistics_of_all_dinov2(tmp_path):
    path = bare_timm(tmp_path / "x.safetensors")
    w = timm_weights(registers=4, positions=7, scales=True)
    w["register_tokens"] = w.pop("reg_token")
    safetensors.numpy.save_file(w, path)
    model = create_model(
        "vit_ti16",
        **MODEL,
        image_size=(8, 12),
        num_heads=2,
        gelu="erf",
        layer_scale=1.0,
        registers=4,
    )
    text = r"pixel_stats is 'imagenet' in the weights, assumed \(DINOv2 with registers\), and"
    with pytest.raises(CheckpointError, match=text):
        vit_jax.load_params(path, model)


def test_what_is_assumed_is_kept_by_a_conversion_and_printed_again(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", **as_official(timm_weights(positions=10)))
    loaded = load.load(tmp_path / "x.npz")
    expected = "assumed gelu=tanh, norm_eps=1e-06, pixel_stats=half, crop=resize, "
    expected += "resample=tf_bilinear (the official code); image_size=12x12 (square grid)."
    assert capsys.readouterr().err == f"{tmp_path / 'x.npz'}: {expected}\n"
    values = convert._target_metadata(loaded, loaded.model).known_fields()
    write_npz(tmp_path / "y.npz", trees.flatten(loaded.params()).items(), values)
    load.load(tmp_path / "y.npz")
    assert capsys.readouterr().err == f"{tmp_path / 'y.npz'}: {expected}\n"


def test_complete_rejects_heads_that_contradict_the_tensors(tmp_path):
    np.savez(tmp_path / "x.npz", **as_official(timm_weights(positions=10)))
    with pytest.raises(CheckpointError, match="num_heads is 4, the tensors have 2 heads"):
        load.load(f"{tmp_path / 'x.npz'}:num_heads=4")


def wide_npz(path, sequence=17):
    np.savez(path, **as_official(timm_weights(positions=sequence)))
    return path


def test_a_grid_that_is_square_and_that_of_the_model_is_reported(tmp_path, capsys):
    path = wide_npz(tmp_path / "x.npz")
    wide = create_model("vit_ti16", **MODEL, image_size=(8, 32), num_heads=2)
    both = "grid is 4x4 in the weights and 2x8 in the model .* but 2x8 fits, too"
    with pytest.raises(CheckpointError, match=both):
        vit_jax.load_params(path, wide)
    vit_jax.load_params(path, wide, resize=True)
    assert "resized from 4x4 to 2x8 (assumed image_size=16x16 (square" in capsys.readouterr().out
    stored = dict(np.load(path))["Transformer/posembed_input/pos_embedding"]
    taken = vit_jax.load_params(f"{path}:image_size=8x32", wide)
    positions = taken["Transformer"]["posembed_input"]["pos_embedding"]
    np.testing.assert_array_equal(positions, stored)


def test_report_prints_nothing_for_complete_metadata(capsys):
    families.report(UNKNOWN, "x", False)
    assert capsys.readouterr().err == ""
    assumed = UNKNOWN.assuming("timm", gelu="erf").assuming("the model", num_heads=2)
    for _ in range(2):  # As for every run of a sweep.
        families.report(assumed, "x", True)
    assert capsys.readouterr().err == "x: assumed num_heads=2 (the model).\n"


def test_classes_after_a_colon_name_the_outputs(tmp_path):
    path = wide_npz(tmp_path / "x.npz")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    loaded = load.load(f"{path}:classes={tmp_path / 'names.txt'}")
    assert (loaded.classes, loaded.has_class_names) == (("ant", "bee", "cat"), True)


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (384, 6), (200, 4), (1152, 18), (7, 1)])
def test_ask_suggests_a_divisor_of_the_width(width, heads):
    shapes = {"Transformer/encoderblock_0/LayerNorm_0/scale": (width,)}
    assert str(families.ask("x", ["num_heads"], shapes)).endswith(f"as in x:num_heads={heads}.")
