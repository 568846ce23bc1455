"""Folders of Hugging Face's encoders: tensor names, and what is read back without metadata."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.support.golden_outputs import params_of, photo_pixels
from tests.support.huggingface_cases import GOLDEN, MODELS, SIDE
from tests.support.tiny import assert_same_model, some_params, tiny
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.models.registry import param_shapes
from vit_jax.weights import load, writer
from vit_jax.weights.infer_model import infer_model_options
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.reader import open_weights_file

# Names that transformers 5.24 saves, of the first layer and beside the layers; a name with / has
# weight and bias.
QKV_5 = "attention.q_proj/ attention.v_proj/ attention.k_proj.weight attention.o_proj/ "
DINO_LAYER = "layer_scale1.lambda1 layer_scale2.lambda1 norm1/ norm2/ "
VIT_LAYER = (
    "layernorm_before/ layernorm_after/ attention.attention.query/ attention.attention.key/ "
    "attention.attention.value/ attention.output.dense/ "
)
TOWER_LAYER = (
    "layer_norm1/ layer_norm2/ self_attn.q_proj/ self_attn.k_proj/ self_attn.v_proj/ "
    "self_attn.out_proj/ mlp.fc1/ mlp.fc2/"
)
NAMES = {
    "DINOv2 with registers, gated": (
        "embeddings.cls_token embeddings.register_tokens embeddings.position_embeddings "
        "embeddings.patch_embeddings.projection/ layernorm/",
        "encoder.layer.0.",
        DINO_LAYER + VIT_LAYER.split(" ", 2)[2] + "mlp.weights_in/ mlp.weights_out/",
    ),
    "DINOv3": (
        "embeddings.cls_token embeddings.register_tokens embeddings.patch_embeddings/ norm/",
        "layer.0.",
        DINO_LAYER + QKV_5 + "mlp.up_proj/ mlp.down_proj/",
    ),
    "DINOv3, gated": (
        "embeddings.cls_token embeddings.register_tokens embeddings.patch_embeddings/ norm/",
        "layer.0.",
        DINO_LAYER + "attention.q_proj.weight attention.k_proj.weight attention.v_proj.weight "
        "attention.o_proj/ mlp.gate_proj/ mlp.up_proj/ mlp.down_proj/",
    ),
    "SigLIP": (
        "vision_model.embeddings.patch_embedding/ vision_model.post_layernorm/ "
        "vision_model.embeddings.position_embedding.weight vision_model.head.probe "
        "vision_model.head.attention.in_proj_weight vision_model.head.attention.in_proj_bias "
        "vision_model.head.attention.out_proj/ vision_model.head.layernorm/ "
        "vision_model.head.mlp.fc1/ vision_model.head.mlp.fc2/",
        "vision_model.encoder.layers.0.",
        TOWER_LAYER,
    ),
    "CLIP with projection": (
        "vision_model.embeddings.class_embedding vision_model.embeddings.patch_embedding.weight "
        "vision_model.embeddings.position_embedding.weight vision_model.pre_layrnorm/ "
        "vision_model.post_layernorm/ visual_projection.weight",
        "vision_model.encoder.layers.0.",
        TOWER_LAYER,
    ),
    "DeiT": (
        "deit.embeddings.cls_token deit.embeddings.distillation_token "
        "deit.embeddings.position_embeddings deit.embeddings.patch_embeddings.projection/ "
        "deit.layernorm/ cls_classifier/ distillation_classifier/",
        "deit.encoder.layer.0.",
        VIT_LAYER + "intermediate.dense/ output.dense/",
    ),
    "I-JEPA": (
        "ijepa.embeddings.position_embeddings ijepa.embeddings.patch_embeddings.projection/ "
        "ijepa.layernorm/ classifier/",
        "ijepa.encoder.layer.0.",
        VIT_LAYER + "intermediate.dense/ output.dense/",
    ),
}


def names_of(text, prefix=""):
    for name in text.split():
        ends = (".weight", ".bias") if name.endswith("/") else ("",)
        yield from (f"{prefix}{name.removesuffix('/')}{end}" for end in ends)


@pytest.mark.parametrize("title", NAMES)
def test_written_tensors_have_the_names_of_transformers(title):
    options, _ = MODELS[title]
    outer, prefix, layer = NAMES[title]
    model = tiny(num_layers=1, **options)
    plan = writer.plan_export("huggingface", model, param_shapes(model))
    assert sorted(plan.rows) == sorted([*names_of(outer), *names_of(layer, prefix)])


def write(folder, model):
    """Writes a folder without this package's own metadata; returns it and the parameters."""
    params = trees.flatten(some_params(model))
    plan = writer.plan_export("huggingface", model, param_shapes(model))
    folder.mkdir()
    writer.write(plan, folder, model, params, WeightsMetadata(crop="resize"), "# A card")
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    return folder, params


def assert_same_bits(loaded, expected):
    found = trees.flatten(loaded.params())
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("title", MODELS)
def test_written_folder_is_read_back_by_its_config(tmp_path, title):
    options, class_name = MODELS[title]
    model = tiny(**options)
    folder, params = write(tmp_path / "hf", model)
    loaded = load.load(folder)
    assert_same_model(loaded.model, model)
    assert_same_bits(loaded, params)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [class_name]
    assert loaded.weights_file.ignored == tuple(
        name for name in loaded.weights_file.archive.arrays if "mask_token" in name
    )


# Towers of images and texts.

TEXT = {
    "text_model.encoder.layers.0.layer_norm1.weight": (8,),
    "text_model.embeddings.token_embedding.weight": (9, 8),
    "text_model.embeddings.position_ids": (1, 9),
    "text_projection.weight": (6, 8),
    "logit_scale": (),
    "logit_bias": (1,),
}


def with_text_tower(folder, model_type, **changes):
    """Makes the folder that of a whole model of images and texts."""
    path = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    arrays |= {name: np.ones(shape, np.float32) for name, shape in TEXT.items()}
    arrays["vision_model.embeddings.position_ids"] = np.arange(7)[None]
    safetensors.numpy.save_file(arrays, path)
    config = json.loads((folder / "config.json").read_text())
    outer = {"model_type": model_type, "architectures": ["AModel"], "vision_config": config}
    outer |= {"text_config": {"hidden_size": 8}, "projection_dim": 6}
    (folder / "config.json").write_text(json.dumps(outer | changes))
    return folder


@pytest.mark.parametrize(
    ("title", "model_type"), [("SigLIP", "siglip"), ("CLIP with projection", "clip")]
)
def test_tower_of_images_is_read_from_a_whole_model(tmp_path, capsys, title, model_type):
    model = tiny(**MODELS[title][0])
    folder, params = write(tmp_path / "hf", model)
    loaded = load.load(with_text_tower(folder, model_type))
    assert_same_model(loaded.model, model)
    assert_same_bits(loaded, params)
    assert set(loaded.weights_file.other_tower) == set(TEXT)
    assert f"ignored {len(TEXT)} tensors of another tower." in capsys.readouterr().err
    assert loaded.weights_file.ignored == ("vision_model.embeddings.position_ids",)
    with pytest.raises(CheckpointError, match="hidden_size is 64, the tensors have width 32"):
        config = json.loads((folder / "config.json").read_text())["vision_config"]
        with_text_tower(folder, model_type, vision_config=config | {"hidden_size": 64})
        load.load(folder)


def test_projection_width_is_that_of_the_whole_model(tmp_path):
    folder, _ = write(tmp_path / "hf", tiny(**MODELS["CLIP with projection"][0]))
    with pytest.raises(CheckpointError, match="projection_dim is 7, the tensors have projection"):
        load.load(with_text_tower(folder, "clip", projection_dim=7))


def test_head_on_siglips_mean_of_tokens_leaves_its_attention_pooling_unused(tmp_path):
    folder, params = write(tmp_path / "hf", tiny(pool="map", num_classes=0))
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    head = {"classifier.weight": (5, 32), "classifier.bias": (5,)}
    arrays |= {name: np.ones(shape, np.float32) for name, shape in head.items()}
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    loaded = load.load(
        with_text_tower(folder, "siglip", architectures=["SiglipForImageClassification"])
    )
    assert_same_model(loaded.model, tiny(pool="gap"))
    assert "vision_model.head.probe" in loaded.weights_file.ignored
    assert {name for name in params if "MAPHead" in name} == set(params) - set(
        trees.flatten(loaded.params())
    )


def test_poolers_that_no_output_depends_on_are_ignored(tmp_path):
    for title in ("DeiT, features", "I-JEPA, features"):
        folder, params = write(tmp_path / title, tiny(**MODELS[title][0]))
        arrays = safetensors.numpy.load_file(folder / "model.safetensors")
        arrays["pooler.dense.weight"] = np.ones((32, 32), np.float32)
        safetensors.numpy.save_file(arrays, folder / "model.safetensors")
        loaded = load.load(folder)
        assert_same_bits(loaded, params)
        assert loaded.weights_file.ignored == ("pooler.dense.weight",)


def test_mae_is_read_without_its_decoder(tmp_path):
    model = tiny(gelu="erf", num_classes=0, pixel_stats="imagenet")
    folder, params = write(tmp_path / "hf", model)
    arrays = {
        f"vit.{name}": array
        for name, array in safetensors.numpy.load_file(folder / "model.safetensors").items()
    }
    decoder = ("decoder.mask_token", "decoder.decoder_layers.0.layernorm_before.weight")
    arrays |= {name: np.ones((1, 8), np.float32) for name in decoder}
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"]}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load.load(folder)
    assert_same_model(loaded.model, model)
    assert_same_bits(loaded, params)
    assert set(loaded.weights_file.ignored) == set(decoder)


def test_clip_without_a_config_is_asked_for_its_gelu(tmp_path):
    folder, _ = write(tmp_path / "hf", tiny(**MODELS["CLIP"][0]))
    where = f"{folder / 'model.safetensors'}:num_heads=2,image_size=8x12,pixel_stats=clip"
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot infer gelu \(quick in OpenAI's CLIP"):
        load.load(where)
    assert load.load(f"{where},gelu=erf").model.config.gelu == "erf"


def test_dinov3_without_a_config_has_the_options_of_all_dinov3(tmp_path, capsys):
    model = tiny(**MODELS["DINOv3, gated"][0] | {"norm_eps": 1e-5})
    folder, params = write(tmp_path / "hf", model)
    (folder / "config.json").unlink()
    loaded = load.load(f"{folder / 'model.safetensors'}:num_heads=2,image_size=8x12")
    assert_same_model(loaded.model, model)
    assert_same_bits(loaded, params)
    assert "pos_embed=rope, rope=dinov3, mlp=swiglu (DINOv3)" in capsys.readouterr().err


# Storage: shards, types, damage.


def shard(folder, num_shards=2, dtype=None):
    """Splits model.safetensors into shards with an index."""
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, file_of = sorted(arrays), {}
    for k in range(num_shards):
        file = f"model-{k + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: arrays[name] for name in names[k::num_shards]}
        part = part if dtype is None else {name: a.astype(dtype) for name, a in part.items()}
        safetensors.numpy.save_file(part, folder / file)
        file_of |= dict.fromkeys(part, file)
    write_index(folder, file_of)
    return file_of


def write_index(folder, file_of):
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": file_of})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("title", ["DINOv3, gated", "SigLIP", "CLIP", "DeiT"])
def test_shards_in_half_precision_are_read_with_the_values_that_are_stored(tmp_path, title, dtype):
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    folder, params = write(tmp_path / "hf", tiny(**MODELS[title][0]))
    shard(folder, 3, dtype)
    rounded = {name: array.astype(dtype).astype(np.float32) for name, array in params.items()}
    assert_same_bits(load.load(folder), rounded)


def outside(folder, file_of):
    (folder / min(file_of.values())).rename(folder.parent / "x.safetensors")
    return dict.fromkeys(file_of, "../x.safetensors")


def missing(folder, file_of):
    (folder / max(file_of.values())).unlink()
    return file_of


def twice(folder, file_of):
    first, second = sorted(set(file_of.values()))
    arrays = [safetensors.numpy.load_file(folder / name) for name in (first, second)]
    safetensors.numpy.save_file(arrays[0] | arrays[1], folder / first)
    return file_of


@pytest.mark.parametrize("title", MODELS)
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (outside, "weight_map does not name .safetensors files"),
        (missing, "1 of 2 shards are missing, such as model-00002-of-00002.safetensors"),
        (twice, "is in model-00001-of-00002.safetensors too"),
        (lambda folder, file_of: file_of | {"more": min(file_of.values())}, "more is in no shard"),
    ],
    ids=["outside", "missing", "twice", "in no shard"],
)
def test_damaged_shards_are_rejected_in_one_line(tmp_path, title, damage, text):
    folder, _ = write(tmp_path / "hf", tiny(num_layers=1, **MODELS[title][0]))
    write_index(folder, damage(folder, shard(folder)))
    assert text in read_error(folder)


def read_error(folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_weights_file(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    return str(caught.value)


@pytest.mark.parametrize("title", MODELS)
def test_shapes_that_contradict_the_config_are_rejected_in_one_line(tmp_path, title):
    folder, _ = write(tmp_path / "hf", tiny(**MODELS[title][0]))
    config = json.loads((folder / "config.json").read_text())
    wrong = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "intermediate_size": 65,
        "patch_size": 8,
        "num_register_tokens": 5,
        "use_gated_mlp": not config.get("use_gated_mlp"),
        "use_swiglu_ffn": not config.get("use_swiglu_ffn"),
        "query_bias": not config.get("query_bias"),
        "key_bias": True,
        "num_attention_heads": 5,
        "image_size": [8, 16],
    }
    for key in wrong.keys() & config.keys():
        if key == "image_size" and "DINOv3" in title:
            continue  # Rotary positions have no tensors.
        (folder / "config.json").write_text(json.dumps(config | {key: wrong[key]}))
        named = {"num_attention_heads": "heads"}  # Which do not divide the rows of a tensor.
        if config["hidden_act"] == "silu":
            named["use_gated_mlp"] = "hidden_act"
        assert named.get(key, key) in read_error(folder), key


@pytest.mark.parametrize(
    ("title", "tensor", "shape", "text"),
    [
        ("DINOv3", "embeddings.cls_token", None, "class token of dinov3_vit is True, the tensors"),
        ("DINOv3", "embeddings.patch_embeddings.bias", None, "have no bias of the patch embed"),
        ("DINOv3", "layer.0.layer_scale1.lambda1", None, "LayerScale of dinov3_vit is True"),
        (
            "DINOv3",
            "layer.0.attention.v_proj.bias",
            None,
            "value_bias is True, the tensors have no",
        ),
        ("DINOv3", "embeddings.register_tokens", (3,), "(3,), which has the wrong number of axes"),
        ("DINOv3", "layer.0.attention.o_proj.weight", (32, 32, 1), "the wrong number of axes"),
        ("SigLIP", "encoder.layers.0.self_attn.k_proj.bias", None, "the tensors have no bias of"),
        ("SigLIP", "head.probe", (), "(), which has the wrong number of axes"),
        ("SigLIP", "head.probe", None, "MAPHead_0/LayerNorm_0/bias is not in the model"),
        ("CLIP", "pre_layrnorm.weight", None, "Transformer/pre_norm"),
        ("CLIP with projection", "visual_projection.weight", None, "projection of 'CLIPVisionMod"),
        ("DeiT", "embeddings.distillation_token", None, "cls_classifier.bias is not a tensor of"),
        ("DINOv2, gated", "encoder.layer.0.layer_scale2.lambda1", None, "LayerScale_1/scale"),
    ],
)
def test_missing_and_misshapen_tensors_are_rejected(tmp_path, title, tensor, shape, text):
    folder, _ = write(tmp_path / "hf", tiny(num_layers=1, **MODELS[title][0]))
    path = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    (name,) = (name for name in arrays if name.endswith(tensor))
    del arrays[name]
    if shape is not None:
        arrays[name] = np.ones(shape, np.float32)
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(CheckpointError) as caught:
        load.load(folder)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


ANYTHING = [None, 5, "x", {"x": 1}, True, 1e400]


@pytest.mark.parametrize(
    ("title", "model_type"),
    [("SigLIP", "siglip"), ("CLIP with projection", "clip"), ("DINOv2, gated", ""), ("DINOv3", "")],
)
def test_arbitrary_config_values_are_read_or_rejected_in_one_line(tmp_path, title, model_type):
    folder, _ = write(tmp_path / "hf", tiny(num_layers=1, **MODELS[title][0]))
    if model_type:
        with_text_tower(folder, model_type)
    config = json.loads((folder / "config.json").read_text())
    inner = config.get("vision_config", {})
    variants = [config | {key: value} for key in config for value in ANYTHING]
    variants += [
        config | {"vision_config": inner | {key: value}} for key in inner for value in ANYTHING
    ]
    num_read = 0
    for changed in variants:
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            infer_model_options(open_weights_file(folder))
            num_read += 1
        except CheckpointError as error:
            assert "\n" not in str(error)
    assert 10 < num_read < len(variants) - 10


# Outputs of transformers, which `test_huggingface_parity.py` stores.


@pytest.mark.parametrize("title", MODELS)
def test_outputs_equal_those_of_transformers(title, photos):
    expected = np.array(json.loads(GOLDEN.read_text())[title])
    model = tiny(image_size=SIDE, **MODELS[title][0])
    params = trees.unflatten(params_of(model))
    outputs = np.asarray(jax.jit(model.apply)({"params": params}, photo_pixels(photos, SIDE)))
    # Outputs of the two photos differ by far more than the tolerance.
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()
    np.testing.assert_allclose(outputs, expected, atol=1e-5 * np.abs(expected).max())
