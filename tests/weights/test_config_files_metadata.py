"""Metadata of config files of Hugging Face and timm: values and rejected values."""

import json

import pytest

from tests.support import peer_weights
from vit_jax.errors import CheckpointError, VitJaxError
from vit_jax.weights import config_huggingface, config_timm, load
from vit_jax.weights.infer_model import infer_model_options
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.reader import open_weights_file

HALF, IMAGENET = [0.5] * 3, ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
VIT = {"model_type": "vit", "num_attention_heads": 3, "image_size": 224}
PROCESSOR = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": HALF,
    "image_std": HALF,
    "resample": 2,
    "size": {"height": 224, "width": 224},
}
TIMM = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 1000,
    "global_pool": "token",
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": HALF,
        "std": HALF,
    },
}


def from_huggingface(config=None, processor=None):
    return config_huggingface.from_huggingface(VIT | (config or {}), processor or {}, "folder")


def from_timm(**changes):
    return config_timm.from_timm(
        TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | changes}, "folder"
    )


def error_of(function, *args, **kwargs):
    with pytest.raises(CheckpointError, match=r"^folder: ") as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    return str(caught.value)


# Hugging Face.


@pytest.mark.parametrize(
    ("config", "eps"),
    [
        ({}, 1e-12),  # The defaults of Hugging Face's classes.
        ({"model_type": "dinov2"}, 1e-6),
        ({"model_type": "dinov2_with_registers"}, 1e-6),
        ({"layer_norm_eps": 1e-5}, 1e-5),
    ],
)
def test_from_huggingface_uses_its_default_epsilon(config, eps):
    fields = from_huggingface(config)
    assert (fields.norm_eps, fields.gelu, fields.image_size) == (eps, "erf", (224, 224))
    assert config_huggingface.from_huggingface({"model_type": "vit"}, {}, "folder").num_heads == 12


@pytest.mark.parametrize(
    ("activation", "gelu"),
    [
        ("gelu", "erf"),
        ("gelu_python", "erf"),
        ("gelu_new", "tanh"),
        ("gelu_fast", "tanh"),
        ("gelu_pytorch_tanh", "tanh"),
        ("quick_gelu", "quick"),
    ],
)
def test_from_huggingface_translates_activations(activation, gelu):
    assert from_huggingface({"hidden_act": activation}).gelu == gelu


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"model_type": "swin"}, "model_type 'swin'"),
        ({"model_type": ["vit"]}, "model_type ['vit']"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"pooler_act": "relu"}, "pooler_act 'relu'"),
        ({"model_type": "bit", "layer_type": "bottleneck"}, "layer_type 'bottleneck'"),
        ({"model_type": "bit", "global_padding": "SAME"}, "global_padding 'SAME'"),
        ({"model_type": "bit", "num_groups": 16}, "num_groups 16"),
        ({"num_attention_heads": "3"}, "num_heads is '3'"),
        ({"num_attention_heads": 0}, "num_heads is 0"),
        ({"layer_norm_eps": -1}, "norm_eps is -1"),
        ({"image_size": 10**9}, "image_size is [1000000000, 1000000000]"),
        ({"image_size": [224]}, "image_size is [224]"),
        (
            {"id2label": {"0": "cat", "2": "dog"}},
            "id2label in config.json counts from 0, without 1",
        ),
        ({"id2label": {str(k): f"c{k}" for k in range(1, 13)}}, "counts from 1, without 0; number"),
        ({"id2label": {"00": "cat", "01": "dog"}}, "counts from 00, without 0"),
        ({"id2label": {"cat": "0", "dog": "1"}}, "counts from cat, without 0"),
        ({"id2label": {str(k): k for k in range(9999)}}, "classes is [0, 1, 2"),
    ],
    ids=str,
)
def test_from_huggingface_rejects_unsupported_models_in_one_line(config, text):
    assert text in error_of(from_huggingface, config)


def test_from_huggingface_pools_patches_for_dinov2_classifiers_only():
    dino = {"model_type": "dinov2", "architectures": ["Dinov2ForImageClassification"]}
    assert from_huggingface(dino).pool == "token_gap"
    assert from_huggingface(dino | {"architectures": ["Dinov2Model"]}).pool is None
    assert from_huggingface(dino | {"architectures": None}).pool is None
    assert from_huggingface({"architectures": ["ViTForImageClassification"]}).pool is None


def test_from_huggingface_orders_class_names_by_index():
    labels = {str(k): f"kind {k}" for k in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}
    assert from_huggingface({"id2label": labels}).classes == tuple(f"kind {k}" for k in range(11))
    nameless = {"0": "LABEL_0", "1": "LABEL_1"}
    assert from_huggingface({"id2label": nameless}).classes is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"crop": "resize", "resample": "antialias", "pixel_stats": "half"}),
        ({"resample": 3}, {"crop": "resize", "resample": "bicubic"}),
        (
            {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": 224},
            {"crop": "huggingface", "crop_side": 256},
        ),
        ({"do_center_crop": True, "size": 256}, {"crop": "huggingface", "crop_side": (256, 256)}),
        (
            {"do_center_crop": True, "size": 256, "image_processor_type": "BitImageProcessor"},
            {"crop": "huggingface", "crop_side": 256},
        ),
        (  # facebook/deit-base-distilled-patch16-224.
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224},
            {"crop": "huggingface", "crop_side": (256, 256)},
        ),
        (  # Positions for 224 pixels; the file resizes to 256 and crops 192: scaled.
            {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": 192},
            {"crop": "huggingface", "crop_side": 299},
        ),
        ({"do_center_crop": False, "crop_size": {"height": 224}}, {"crop": "resize"}),
        ({"image_mean": IMAGENET[0], "image_std": IMAGENET[1]}, {"pixel_stats": "imagenet"}),
        ({"image_mean": CLIP[0], "image_std": CLIP[1]}, {"pixel_stats": "clip"}),
        ({"image_mean": 0.5, "image_std": 0.5}, {"pixel_stats": "half"}),
    ],
    ids=str,
)
def test_from_huggingface_translates_preprocessing(changes, expected):
    fields = from_huggingface({}, PROCESSOR | changes).known_fields()
    assert {name: fields[name] for name in expected} == expected


def test_from_huggingface_leaves_statistics_that_are_null_unknown():
    fields = from_huggingface({}, PROCESSOR | {"image_mean": None, "image_std": None})
    assert fields.pixel_stats is None


def test_from_huggingface_takes_a_resnets_image_size_from_its_preprocessing():
    crop = {"do_center_crop": True, "crop_size": {"height": 448, "width": 320}, "size": 448}
    fields = config_huggingface.from_huggingface({"model_type": "bit"}, PROCESSOR | crop, "folder")
    assert (fields.image_size, fields.norm_eps, fields.gelu) == ((448, 320), None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_mean": [0.4, 0.5, 0.5]},
        {"image_mean": [0.5, 0.5]},
        {"image_std": [0, 0, 0]},
        {"image_mean": [float("nan")] * 3},
        {"image_mean": None},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"do_center_crop": True, "size": {"shortest_edge": 10**30}, "crop_size": 224},
        {"do_center_crop": True, "size": {"shortest_edge": 192}, "crop_size": 224},
        {"size": {"shortest_edge": 224}},
        {"size": {"shortest_edge": 224, "longest_edge": 448}, "do_center_crop": True},
        {"size": {"max_height": 224, "max_width": 224}},
        {"do_resize": False},
        {"resample": 1},
        {"image_processor_type": "ConvNextImageProcessor"},
    ],
    ids=str,
)
def test_config_with_unsupported_pixel_statistics_is_rejected(changes):
    error_of(from_huggingface, {}, PROCESSOR | changes)
    if changes.get("image_mean"):
        error_of(from_timm, mean=changes["image_mean"])


# timm.


@pytest.mark.parametrize(
    "name",
    [
        *(
            "vit_small_patch16_rope_ape_224",
            "vit_small_patch16_rope_224",
            "vit_base_patch16_rpn_224",
        ),
        *(
            "vit_pe_core_base_patch16_224",
            "eva02_enormous_patch14_clip_224",
            "beitv2_base_patch16_224",
        ),
    ],
)
def test_from_timm_rejects_models_that_tensors_do_not_tell_apart(name):
    message = error_of(config_timm.from_timm, TIMM | {"architecture": name}, "folder")
    assert name in message


@pytest.mark.parametrize(
    ("name", "gelu"),
    [
        ("vit_base_patch16_siglip_224", "erf"),
        ("vit_so400m_patch14_siglip_gap_224", "erf"),
        ("vit_so400m_patch16_siglip_gap_256", "tanh"),
        ("vit_base_patch32_siglip_256", "tanh"),
        ("vit_large_patch16_siglip_512", "tanh"),
        ("vit_large_patch16_siglip_384", "erf"),
        ("vit_giantopt_patch16_siglip_384", "tanh"),
        ("vit_base_patch16_224", None),
    ],
)
def test_from_timm_gives_the_gelu_of_siglip_by_its_name(name, gelu):
    assert config_timm.from_timm(TIMM | {"architecture": name}, "folder").gelu == gelu
    other = TIMM | {"architecture": name, "model_args": {"act_layer": "quick_gelu"}}
    assert config_timm.from_timm(other, "folder").gelu == "quick"


def test_from_timm_reports_another_size_and_crop_for_tests():
    assumed = from_timm(test_input_size=[3, 288, 288], test_crop_pct=1.0).assumed
    assert assumed == (
        "input_size=3x224x224 (test_input_size is 3x288x288)",
        "crop_pct=0.9 (test_crop_pct is 1)",
    )
    assert from_timm(test_input_size=[3, 224, 224], test_crop_pct=0.9).assumed is None


def test_from_timm_reads_pixels_crop_and_resampling():
    fields = from_timm()
    assert fields == WeightsMetadata(
        image_size=(224, 224),
        pool="token",
        pixel_stats="half",
        crop="timm",
        crop_fraction=0.9,
        resample="bicubic",
    )
    assert from_timm(mean=IMAGENET[0], std=IMAGENET[1]).pixel_stats == "imagenet"
    assert from_timm(crop_mode="squash").crop == "timm_squash"
    assert from_timm(interpolation="bilinear").resample == "antialias"
    assert from_timm(input_size=[3, 112, 224]).image_size == (112, 224)
    assert from_timm(label_names=["cat", "dog"]).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_heads": 5}, {"num_heads": 5}),
        ({"act_layer": "gelu_tanh"}, {"gelu": "tanh"}),
        ({"act_layer": "gelu"}, {"gelu": "erf"}),
    ],
)
def test_from_timm_reads_model_arguments(arguments, expected):
    fields = config_timm.from_timm(TIMM | {"model_args": arguments}, "folder").known_fields()
    assert {name: fields[name] for name in expected} == expected


@pytest.mark.parametrize(
    "config",
    [
        {"model_args": {"act_layer": "relu"}},
        {"global_pool": "avgmax"},
        {"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}},
        {"pretrained_cfg": {"crop_pct": 1e-9}},
        {"pretrained_cfg": {"crop_pct": "0.9"}},
        {"pretrained_cfg": {"crop_mode": "border"}},
        {"pretrained_cfg": {"interpolation": "lanczos"}},
    ],
    ids=str,
)
def test_from_timm_rejects_unsupported_models(config):
    error_of(config_timm.from_timm, TIMM | config, "folder")


def test_load_keeps_a_class_token_beside_gap_pooling(tmp_path):
    config = peer_weights.TIMM_CONFIG | {"global_pool": "avg"}
    path = peer_weights.save(tmp_path / "model.safetensors", peer_weights.timm_weights(), config)
    config = load.load(path).model.config
    assert (config.pool, config.class_token) == ("gap", True)


# Config files with arbitrary values.

ANYTHING = [None, 5, "x", ["x"], {"x": 1}, True, [], 1e400]


SIZES = {"image_size": [8, 12], "num_attention_heads": 2}


def folder_of(path, kind):
    """Weights with a valid config; the folder, the config and the preprocessor config."""
    if kind == "timm":
        inner = TIMM["pretrained_cfg"] | {"input_size": [3, 8, 12], "label_names": ["a", "b", "c"]}
        config = TIMM | {"pretrained_cfg": inner, "model_args": {"num_heads": 2}, "num_classes": 3}
        config |= {"label_names": []}
        return (
            peer_weights.save(path, peer_weights.timm_weights(), config).parent,
            config,
            None,
        )
    config = VIT | SIZES | {"model_type": kind, "hidden_act": "gelu", "architectures": []}
    config |= {"id2label": {"0": "a", "1": "b", "2": "c"}, "pooler_act": "tanh"}
    processor = PROCESSOR | {"do_center_crop": True, "crop_size": 8}
    arrays = peer_weights.as_huggingface(peer_weights.timm_weights())
    return peer_weights.save(path, arrays, config, processor).parent, config, processor


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_arbitrary_config_values_are_read_or_rejected_in_one_line(tmp_path, kind):
    folder, config, processor = folder_of(tmp_path / "model.safetensors", kind)
    assert load.load(folder).model.image_size == (8, 12)

    def variants(values):
        for name, value in values.items():
            yield from (values | {name: other} for other in ANYTHING)
            if isinstance(value, dict):
                yield from (values | {name: inner} for inner in variants(value))

    num_read = num_rejected = 0
    for file, values in (("config", config), ("preprocessor_config", processor)):
        for changed in variants(values or {}):
            (tmp_path / f"{file}.json").write_text(json.dumps(changed))
            try:
                infer_model_options(open_weights_file(folder))
                num_read += 1
            except VitJaxError as error:
                num_rejected += 1
                assert error.exit_code in (2, 4)
                assert "\n" not in str(error)
        if values:
            (tmp_path / f"{file}.json").write_text(json.dumps(values))
    assert min(num_read, num_rejected) > 20


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\ufeff{}", "{}"])
def test_load_rejects_an_invalid_config_file(tmp_path, text):
    path = peer_weights.save(tmp_path / "model.safetensors", peer_weights.timm_weights())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load.load(path.parent)
