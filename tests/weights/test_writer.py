"""Writing in the formats of other projects: names, values, metadata, and failed writes."""

import json
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.support import peer_weights
from tests.support.tiny import assert_same_model
from vit_jax import create_model
from vit_jax.errors import ConfigError
from vit_jax.models import trees
from vit_jax.models.registry import param_shapes
from vit_jax.weights import formats, load, writer
from vit_jax.weights.infer_model import infer_model_options
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.reader import open_weights_file

OWN_MLP = "vit_jax.models.layers:Mlp"  # As a user-defined object, whose parameters are known.
TINY = {"num_layers": 1, "hidden_size": 8, "mlp_size": 16, "num_heads": 2, "num_classes": 3}


def tiny(name="vit_b4", image_size=(8, 12), **changes):
    return create_model(name, image_size=image_size, **TINY | changes)


def some_arrays(model):
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal(shape, np.float32) * np.float32(0.3)
        for name, shape in param_shapes(model).items()
    }


def write(file_format, path, model, arrays=None, metadata=None):
    plan = writer.plan_export(file_format, model, param_shapes(model))
    arrays, metadata = arrays or some_arrays(model), metadata or WeightsMetadata()
    if file_format == "huggingface":
        path.mkdir()
    notes = writer.write(plan, path, model, arrays, metadata, "# A card")
    return path, notes


def names_for(file_format, model):
    return set(writer.plan_export(file_format, model, param_shapes(model)).rows)


# Tensor names of the published files.

BLOCK = str.split(
    """LayerNorm_0/bias LayerNorm_0/scale LayerNorm_2/bias LayerNorm_2/scale
MlpBlock_3/Dense_0/bias MlpBlock_3/Dense_0/kernel MlpBlock_3/Dense_1/bias MlpBlock_3/Dense_1/kernel
MultiHeadDotProductAttention_1/key/bias MultiHeadDotProductAttention_1/key/kernel
MultiHeadDotProductAttention_1/out/bias MultiHeadDotProductAttention_1/out/kernel
MultiHeadDotProductAttention_1/query/bias MultiHeadDotProductAttention_1/query/kernel
MultiHeadDotProductAttention_1/value/bias MultiHeadDotProductAttention_1/value/kernel"""
)
VIT = {f"Transformer/encoderblock_{i}/{name}" for i in (0, 1) for name in BLOCK} | set(
    str.split(
        """Transformer/encoder_norm/bias Transformer/encoder_norm/scale
    Transformer/posembed_input/pos_embedding cls embedding/bias embedding/kernel
    head/bias head/kernel pre_logits/bias pre_logits/kernel"""
    )
)
STEM = {"conv_root/kernel", "gn_root/bias", "gn_root/scale"}
UNIT = str.split(
    """conv1/kernel conv2/kernel conv3/kernel gn1/bias gn1/scale gn2/bias gn2/scale gn3/bias
gn3/scale"""
)
TIMM = set(
    str.split(
        """cls_token pos_embed patch_embed.proj.weight patch_embed.proj.bias norm.weight norm.bias
    head.weight head.bias blocks.0.norm1.weight blocks.0.norm1.bias blocks.0.norm2.weight
    blocks.0.norm2.bias blocks.0.attn.qkv.weight blocks.0.attn.qkv.bias blocks.0.attn.proj.weight
    blocks.0.attn.proj.bias blocks.0.mlp.fc1.weight blocks.0.mlp.fc1.bias blocks.0.mlp.fc2.weight
    blocks.0.mlp.fc2.bias"""
    )
)


def test_npz_has_the_tensor_names_of_the_official_files():
    assert names_for("npz", tiny(num_layers=2, pre_logits=True)) == VIT
    hybrid = names_for("npz", tiny("r26_s32", 32, num_layers=2, pre_logits=True))
    units = {f"block{b}/unit{u}/{name}" for b in (1, 2, 3, 4) for u in (1, 2) for name in UNIT}
    projections = ("conv_proj/kernel", "gn_proj/bias", "gn_proj/scale")
    units |= {f"block{b}/unit1/{name}" for b in (1, 2, 3, 4) for name in projections}
    assert hybrid == VIT | STEM | units
    assert names_for("npz", tiny("r_ti16", 32, num_layers=2, pre_logits=True)) == VIT | STEM


def test_safetensors_has_the_tensor_names_of_timm():
    assert names_for("safetensors", tiny()) == TIMM
    stem = {f"patch_embed.backbone.{n}" for n in ("conv.weight", "norm.weight", "norm.bias")}
    assert names_for("safetensors", tiny("r_ti16", 32)) == TIMM | stem
    bit = names_for("safetensors", create_model("bit_r101x1", num_classes=3))
    assert {"stem.conv.weight", "norm.weight", "head.fc.weight"} <= bit
    assert {"stages.2.blocks.22.conv3.weight", "stages.0.blocks.0.downsample.conv.weight"} <= bit
    assert not any("downsample.norm" in name for name in bit)


def test_npz_of_bit_numbers_units_with_two_digits():
    names = names_for("npz", create_model("bit_r101x1", num_classes=3))
    assert "resnet/block3/unit23/c/standardized_conv2d/kernel" in names
    assert "resnet/block3/unit09/a/group_norm/gamma" in names


# Round trips of files built in the tests.


def official(name, array):
    """Name and array of a parameter in the official files."""
    for old, new in (
        ("/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/"),
        ("/LayerNorm_1/", "/LayerNorm_2/"),
        ("/MlpBlock_0/", "/MlpBlock_3/"),
    ):
        name = name.replace(old, new) if "encoderblock" in name else name
    is_group_norm = name.startswith("gn_") or "/gn" in name
    return name, array.reshape(1, 1, 1, -1) if is_group_norm else array


def bit(name, array):
    """Name and array of a parameter in the published BiT files."""
    parts = name.split("/")
    if parts[0] == "head":
        return f"resnet/head/conv2d/{parts[1]}", array[None, None] if array.ndim == 2 else array
    unit = f"resnet/{parts[0]}/unit{int(parts[1][4:]):02}/" if len(parts) == 4 else "resnet/"
    place = {"gn_final": "group_norm", "conv_root": "root_block/standardized_conv2d"}
    place |= {"conv_proj": "a/proj/standardized_conv2d"}
    for n, letter in enumerate("abc", 1):
        place |= {f"gn{n}": f"{letter}/group_norm", f"conv{n}": f"{letter}/standardized_conv2d"}
    leaf = {"scale": "gamma", "bias": "beta", "kernel": "kernel"}[parts[-1]]
    return f"{unit}{place[parts[-2]]}/{leaf}", array


def assert_bits(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        written = actual[name]
        assert (written.dtype, written.shape) == (array.dtype, array.shape), name
        assert written.tobytes() == np.ascontiguousarray(array).tobytes(), name


FAMILIES = {
    "token": tiny(image_size=8, num_layers=2),
    "pre_logits": tiny(image_size=8, pre_logits=True),
    "features": tiny(image_size=8, num_classes=0, pre_logits=True),
    "gap": tiny(image_size=8, pool="gap"),
    "map": tiny(image_size=8, pool="map"),
    "stem without units": tiny("r_ti16", 32),
    "hybrid": tiny("r26_s32", 64, num_classes=0),
    "BiT": create_model("bit_r26x1", num_classes=3),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_npz_round_trip_is_exact(tmp_path, family):
    model = FAMILIES[family]
    rename, arrays = bit if family == "BiT" else official, some_arrays(model)
    stored = dict(rename(*item) for item in arrays.items())
    np.savez(tmp_path / "published.npz", **stored)
    loaded = load.load(tmp_path / "published.npz")
    assert_same_model(loaded.model, model)
    params = trees.flatten(loaded.params())
    assert_bits(params, arrays)
    path, _ = write("npz", tmp_path / "written.npz", model, params)
    assert_bits(dict(np.load(path)), stored)


def test_timm_round_trip_is_exact(tmp_path):
    for options in ({}, {"registers": 4, "positions": 6, "scales": True}):
        w = peer_weights.timm_weights(**options)
        folder = peer_weights.save(
            tmp_path / "timm" / "model.safetensors", w, peer_weights.TIMM_CONFIG
        )
        loaded = load.load(folder.parent)
        params = trees.flatten(loaded.params())
        path, _ = write("safetensors", tmp_path / "written.safetensors", loaded.model, params)
        assert_bits(safetensors.numpy.load_file(path), w)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers"])
def test_huggingface_round_trip_is_exact(tmp_path, kind):
    is_dino, registers = kind != "vit", 4 if "registers" in kind else 0
    width = 2 * peer_weights.D if is_dino else peer_weights.D
    w = peer_weights.timm_weights(registers=registers, scales=is_dino, head=width)
    stored = peer_weights.as_huggingface(w, is_dino=is_dino, root=f"{kind}.")
    name = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}[kind]
    config = peer_weights.HF_CONFIG | {
        "model_type": kind,
        "architectures": [f"{name}ForImageClassification"],
    }
    source = peer_weights.save(tmp_path / "hf" / "model.safetensors", stored, config).parent
    loaded = load.load(source)
    params = trees.flatten(loaded.params())
    folder, _ = write("huggingface", tmp_path / "written", loaded.model, params)
    if is_dino:  # Expected by Hugging Face's class.
        stored[f"{kind}.embeddings.mask_token"] = np.zeros((1, peer_weights.D), np.float32)
    assert_bits(safetensors.numpy.load_file(folder / "model.safetensors"), stored)
    written = json.loads((folder / "config.json").read_text())
    assert written["model_type"] == kind
    assert written["layer_norm_eps"] == (1e-6 if is_dino else 1e-12)
    assert written["image_size"] == [8, 12]
    assert written["num_attention_heads"] == 2
    assert written.get("num_register_tokens", 0) == registers
    assert written["mlp_ratio" if is_dino else "intermediate_size"] == (2 if is_dino else 16)


@pytest.mark.parametrize(
    "options", [{}, {"registers": 4}, {"registers": 4, "layer_scale": 1.0}, {"num_classes": 0}]
)
def test_outputs_of_timms_forward_pass_on_a_written_file_are_equal(tmp_path, options):
    model = tiny(gelu="erf", num_layers=peer_weights.L, **options)
    arrays = some_arrays(model)
    path, _ = write("safetensors", tmp_path / "written.safetensors", model, arrays)
    w = safetensors.numpy.load_file(path)
    assert w["pos_embed"].shape[1] == (6 if "registers" in options else 7)
    expected = peer_weights.outputs(w, peer_weights.IMAGES)
    outputs = jax.jit(model.apply)({"params": trees.unflatten(arrays)}, peer_weights.IMAGES)
    np.testing.assert_allclose(outputs, expected, atol=1e-5 * np.abs(expected).max())


# Metadata.

METADATA = WeightsMetadata(
    classes=("cat", "Kätzchen", 'a "dog", 犬'), crop="center", crop_fraction=0.8
)
FILE_FORMATS = ("npz", "safetensors", "huggingface")


def named(tmp_path, file_format):
    return tmp_path / ("folder" if file_format == "huggingface" else f"x.{file_format}")


@pytest.mark.parametrize("resample", ["antialias", "bicubic", "tf_bilinear"])
@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_written_file_keeps_classes_preprocessing_and_options(tmp_path, file_format, resample):
    model = tiny(gelu="erf", norm_eps=1e-12, pixel_stats="clip")
    metadata = WeightsMetadata(**METADATA.known_fields() | {"resample": resample})
    path, _ = write(file_format, named(tmp_path, file_format), model, metadata=metadata)
    loaded = load.load(path)
    assert_same_model(loaded.model, model)
    assert loaded.classes == metadata.classes
    recipe = loaded.recipe
    assert (recipe.size, recipe.crop, recipe.crop_fraction) == ((8, 12), "center", 0.8)
    assert recipe.resample == resample
    card = path / "README.md" if path.is_dir() else path.with_name(f"{path.name}.md")
    assert card.read_text() == "# A card"


def test_huggingface_config_files_contain_classes_and_preprocessing(tmp_path):
    model = tiny(image_size=8, gelu="erf", pixel_stats="imagenet")
    metadata = WeightsMetadata(**METADATA.known_fields() | {"resample": "bicubic"})
    folder, _ = write("huggingface", tmp_path / "hf", model, metadata=metadata)
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")  # No metadata.
    loaded = load.load(folder)
    assert_same_model(loaded.model, model)
    assert loaded.classes == metadata.classes
    assert (loaded.recipe.crop, loaded.recipe.side) == ("huggingface", 10)  # 8 / 0.8.
    assert loaded.recipe.resample == "bicubic"


@pytest.mark.parametrize(("file_format", "length"), [("npz", 70_000), ("safetensors", 1_000_000)])
def test_class_names_that_do_not_fit_are_written_beside_the_file(tmp_path, file_format, length):
    names = ("a" * length, "b", "c")
    path, notes = write(
        file_format,
        named(tmp_path, file_format),
        tiny(image_size=8, gelu="erf"),
        metadata=WeightsMetadata(classes=names),
    )
    assert notes == [f"class names are too long for {path.name}; they are in x.classes.txt"]
    assert (tmp_path / "x.classes.txt").read_text().splitlines() == list(names)
    assert open_weights_file(path).metadata.classes is None
    assert load.load(path).classes == names
    (tmp_path / "x.classes.txt").write_text("of\nanother\n")
    assert not load.load(path).has_class_names
    with pytest.raises(ConfigError, match="900,000"):
        write(
            "huggingface",
            tmp_path / "hf",
            tiny(),
            metadata=WeightsMetadata(classes=("a" * 10**6, "b", "c")),
        )
    assert list((tmp_path / "hf").iterdir()) == []


# Unsupported models and failed writes.


@pytest.mark.parametrize(
    ("file_format", "options", "text"),
    [
        ("safetensors", {"pre_logits": True}, "pre_logits; --no_head omits pre_logits"),
        ("safetensors", {"pool": "token_gap"}, "pool='token_gap'"),
        ("safetensors", {"pos_embed": "sincos"}, "pos_embed='sincos'"),
        ("safetensors", {"pos_embed_at": "shared"}, "pos_embed_at='shared'"),
        ("safetensors", {"qk_norm": True}, "qk_norm"),
        ("safetensors", {"mlp": OWN_MLP}, f"timm does not support mlp={OWN_MLP!r}"),
        ("huggingface", {"mlp": OWN_MLP}, f"does not support mlp={OWN_MLP!r}, only mlp='mlp'"),
        ("huggingface", {"pool": "gap", "class_token": True}, "pool='gap', only pool='token'"),
        ("huggingface", {"pool": "map"}, "a head; --no_head"),
        (
            "huggingface",
            {"layer_scale": 1.0},
            "pool='token', only pool='token_gap'",
        ),
        ("huggingface", {"registers": 2}, "registers=2, only registers=0"),
        ("huggingface", {"pos_embed": "learned_2d"}, "pos_embed='learned_2d'"),
        ("huggingface", {"qk_norm": True}, "qk_norm"),
        ("huggingface", {"pre_logits": True}, "a head after pre_logits; --no_head"),
        (
            "huggingface",
            {"layer_scale": 1.0, "num_classes": 0, "mlp_size": 12},
            "mlp_size=12, which follows from no mlp_ratio",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_plan_export_rejects_unsupported_models(file_format, options, text):
    with pytest.raises(ConfigError, match=r"\.$") as caught:
        names_for(file_format, tiny(**options))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plan_export_rejects_hybrids_for_huggingface():
    with pytest.raises(ConfigError, match="a ResNet before the encoder"):
        names_for("huggingface", tiny("r_ti16", 32))


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_plan_export_rejects_unknown_parameters(file_format):
    with pytest.raises(ConfigError, match=r"does not support the parameters mystery/kernel\.$"):
        writer.plan_export(file_format, tiny(), param_shapes(tiny()) | {"mystery/kernel": (1,)})


@pytest.mark.parametrize("name", ["r26_s32", "r50_b16", "r50_l32", "r101_b16", "r_ti16"])
def test_infer_model_options_finds_depth_and_patch_of_hybrids(name):
    model = tiny(name, 64)
    shapes = param_shapes(model)
    metadata = WeightsMetadata(2, (64, 64), gelu="tanh", pixel_stats="half")
    weights = types.SimpleNamespace(
        path="x.npz", shapes=shapes, metadata=metadata, format=formats.FORMATS[formats.OFFICIAL]
    )
    assert_same_model(create_model(**infer_model_options(weights)), model)


def test_npz_note_lists_parameters_unknown_to_the_official_code(tmp_path):
    assert write("npz", tmp_path / "plain.npz", tiny())[1] == []
    _, notes = write("npz", tmp_path / "x.npz", tiny(registers=2))
    assert notes == ["the official code does not support registers"]
    for options, name in (
        ({"distill_token": True}, "dist_token"),
        ({"pre_norm": True}, "Transformer/pre_norm/bias"),
        ({"pool": "gap", "fc_norm": True}, "fc_norm/scale"),
        ({"projection": 7}, "projection/kernel"),
        ({"mlp": "swiglu"}, "Transformer/encoderblock_0/MlpBlock_0/Dense_gate/bias"),
        ({"mlp_norm": True}, "Transformer/encoderblock_0/MlpBlock_0/LayerNorm_0/bias"),
    ):
        _, [note] = write("npz", tmp_path / f"{name.replace('/', '_')}.npz", tiny(**options))
        assert name in note
