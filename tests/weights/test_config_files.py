"""A config.json that contradicts the tensors, or asks for what is not supported."""

import json

import pytest

from tests.support.peer_weights import HF_CONFIG, TIMM_CONFIG, as_huggingface, save, timm_weights
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.weights import load
from vit_jax.weights.reader import open_weights_file

HUGGING_FACE = HF_CONFIG | {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "qkv_bias": True,
    "id2label": {"0": "ant", "1": "bee", "2": "cat"},
    "label2id": {"ant": 0, "bee": 1, "cat": 2},
}
TIMM_ARGUMENTS = {"num_heads": 2, "embed_dim": 8, "depth": 2, "mlp_ratio": 2.0, "patch_size": 4}
TIMM = TIMM_CONFIG | {"num_classes": 3, "num_features": 8, "model_args": TIMM_ARGUMENTS}


def folder_of(path, config, processor=None):
    arrays = as_huggingface(timm_weights()) if "model_type" in config else timm_weights()
    return save(path / "model.safetensors", arrays, config, processor).parent


def test_config_that_agrees_with_the_tensors_is_read(tmp_path):
    loaded = load.load(folder_of(tmp_path, HUGGING_FACE))
    assert loaded.classes == ("ant", "bee", "cat")
    assert load.load(folder_of(tmp_path, TIMM)).model.size.num_heads == 2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, the tensors have layers 2"),
        ({"hidden_size": 16}, "hidden_size is 16, the tensors have width 8"),
        ({"intermediate_size": 32}, "intermediate_size is 32, the tensors have MLP size 16"),
        ({"patch_size": [4, 8]}, r"patch_size is \[4, 8\], the tensors have patch side 4"),
        ({"num_channels": 1}, "num_channels is 1, the tensors have channels 3"),
        ({"qkv_bias": False}, "qkv_bias is False, the tensors have bias of queries"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": None}, "the length of id2label is 2"),
        ({"image_size": [16, 12]}, "image_size 16x12 contradicts 6 position embeddings"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"layer_norm_eps": None}, "layer_norm_eps is null"),
        ({"num_attention_heads": None}, "num_attention_heads is null"),
        ({"label2id": {"ant": 1, "bee": 0, "cat": 2}}, "label2id in config.json has 1 for 'ant'"),
        (
            {"id2label": {"1": "a", "2": "b", "3": "c"}},
            "id2label in config.json counts from 1, without 0",
        ),
    ],
)
def test_huggingface_config_that_contradicts_the_tensors_is_rejected(tmp_path, changes, text):
    with pytest.raises(CheckpointError, match=text):
        open_weights_file(folder_of(tmp_path, HUGGING_FACE | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"depth": 12}, "model_args.depth is 12, the tensors have layers 2"),
        ({"mlp_ratio": 4.0}, "model_args.mlp_ratio is 4.0, the tensors have MLP ratio 2"),
        ({"num_heads": None}, "model_args.num_heads is null"),
        ({"img_size": 32}, "image_size 32x32 contradicts 6 position embeddings"),
        ({"norm_layer": "rmsnorm"}, "model_args.norm_layer is 'rmsnorm'.* not supported"),
        ({"pre_norm": True}, "pre_norm is True, the tensors have no LayerNorm before the first"),
        ({"use_fc_norm": True}, "use_fc_norm is True, the tensors have no LayerNorm after pooling"),
        ({"swiglu_mlp": True}, "model_args.swiglu_mlp is True, the tensors have no gate"),
        ({"rope_type": "cat"}, "model_args.rope_type is 'cat' in config.json; this option is not"),
    ],
)
def test_timm_config_that_contradicts_the_tensors_is_rejected(tmp_path, changes, text):
    config = TIMM | {"model_args": TIMM_ARGUMENTS | changes}
    with pytest.raises(CheckpointError, match=text):
        open_weights_file(folder_of(tmp_path, config))
    with pytest.raises(CheckpointError, match="num_classes is 7, the tensors have classes 3"):
        open_weights_file(folder_of(tmp_path, TIMM | {"num_classes": 7}))


PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
PROCESSOR |= {"size": {"height": 8, "width": 12}}


@pytest.mark.parametrize("name", ["do_pad", "do_flip_channel_order", "do_grayscale", "offset"])
def test_preprocessing_that_is_not_supported_is_rejected(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"{name} in preprocessor_config.json is not"):
        open_weights_file(folder_of(tmp_path, HUGGING_FACE, PROCESSOR | {name: True}))


def test_given_names_must_not_contradict_those_of_the_file(tmp_path):
    folder, names = folder_of(tmp_path, HUGGING_FACE), tmp_path / "names.txt"
    names.write_text("ant\nwasp\ncat\n")
    where = f"{folder}:classes={names}"
    assert load.load(where).classes == ("ant", "wasp", "cat")
    names.write_text("cat\nbee\nant\n")
    with pytest.raises(ConfigError, match="'cat' is the name of output 0, but of output"):
        load.load(where)


def test_preprocessing_is_read_from_processor_config_json_too(tmp_path):
    folder = folder_of(tmp_path, HUGGING_FACE)
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    text = json.dumps({"image_processor": PROCESSOR | imagenet})
    (folder / "processor_config.json").write_text(text)
    assert open_weights_file(folder).metadata.pixel_stats == "imagenet"


def test_squashed_images_are_cropped_as_the_processor_says(tmp_path):
    crop = {"do_center_crop": True, "crop_size": {"height": 8, "width": 12}}
    processor = PROCESSOR | crop | {"size": {"height": 10, "width": 15}}
    recipe = load.load(folder_of(tmp_path, HUGGING_FACE, processor)).recipe
    assert (recipe.crop, recipe.side) == ("huggingface", (10, 15))


def test_other_sizes_of_the_processor_and_missing_values_are_assumed(tmp_path):
    processor = PROCESSOR | {"size": {"height": 16, "width": 24}}
    config = HUGGING_FACE | {"problem_type": "multi_label_classification"}
    assumed = open_weights_file(folder_of(tmp_path, config, processor)).metadata.assumed
    assert "probabilities=softmax (problem_type is 'multi_label_classification')" in assumed
    assert "image_size=8x12 (config.json; preprocessor_config.json has 16x24)" in assumed
    assert "layer_norm_eps=1e-12 (default of transformers)" in assumed
