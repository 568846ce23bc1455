"""The config.json of Hugging Face's encoders: options of the model, and what is refused."""

import pytest

from vit_jax.errors import CheckpointError
from vit_jax.weights import config_huggingface as config_lib

SIZES = {"num_attention_heads": 3, "image_size": 56}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def metadata_of(config, processor=None):
    config = config_lib.tower_config(config)
    return config_lib.from_huggingface(config, processor or {}, "folder")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # The defaults of transformers' configuration classes.
        ({"model_type": "dinov2"}, {"num_heads": 12, "norm_eps": 1e-6, "gelu": "erf"}),
        (
            {"model_type": "dinov3_vit"},
            {"num_heads": 6, "norm_eps": 1e-5, "pos_embed": "rope", "rope": "dinov3"},
        ),
        ({"model_type": "siglip_vision_model"}, {"norm_eps": 1e-6, "gelu": "tanh"}),
        ({"model_type": "clip_vision_model"}, {"norm_eps": 1e-5, "gelu": "quick"}),
        ({"model_type": "vit_mae"}, {"norm_eps": 1e-12, "gelu": "erf"}),
        ({"model_type": "ijepa"}, {"norm_eps": 1e-12, "gelu": "erf"}),
        ({"model_type": "deit"}, {"norm_eps": 1e-12, "gelu": "erf"}),
        ({"model_type": "vit_msn"}, {"norm_eps": 1e-6, "gelu": "erf"}),
        # Gated MLPs.
        ({"model_type": "dinov2", "use_swiglu_ffn": True}, {"mlp": "swiglu"}),
        (
            {"model_type": "dinov3_vit", "use_gated_mlp": True, "hidden_act": "silu"},
            {"mlp": "swiglu"},
        ),
        (
            {"model_type": "dinov3_vit", "use_gated_mlp": True, "hidden_act": "gelu_pytorch_tanh"},
            {"mlp": "glu", "gelu": "tanh"},
        ),
        (
            {"model_type": "dinov2", "architectures": ["MyDinov2ForImageClassification"]},
            {"pool": "token_gap"},
        ),
        # Models of images and texts have the options under vision_config, or nothing but defaults.
        (
            {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}},
            {"num_heads": 12, "image_size": (224, 224), "gelu": "tanh"},
        ),
        ({"model_type": "clip"}, {"num_heads": 12, "image_size": (224, 224), "gelu": "quick"}),
        (
            {
                "model_type": "clip",
                "hidden_act": "relu",  # Of neither tower.
                "text_config": {"num_attention_heads": 8},
                "vision_config": {"hidden_act": "gelu", "architectures": None, **SIZES},
            },
            {"num_heads": 3, "image_size": (56, 56), "gelu": "erf"},
        ),
        (
            {
                "model_type": "siglip",
                "architectures": ["SiglipForImageClassification"],
                "id2label": {"0": "ant", "1": "bee"},
                "vision_config": {"id2label": {"0": "LABEL_0"}, "architectures": None},
            },
            {"pool": "gap", "classes": ("ant", "bee")},
        ),
    ],
    ids=str,
)
def test_options_are_those_of_the_config(config, expected):
    fields = vars(metadata_of(config))
    assert {name: fields[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"model_type": "beit"},
            "'beit' in config.json is not supported: it has relative position",
        ),
        ({"model_type": "siglip2"}, "a variable number of patches; SigLIP 2 of a fixed size is"),
        ({"model_type": "siglip2_vision_model"}, "a variable number of patches"),
        ({"model_type": "dinov3_convnext"}, "it is a convolutional network"),
        (
            {"model_type": "dinov3_vit", "rope_theta": 10000.0},
            "rope_theta 10000.0 is not supported",
        ),
        ({"model_type": "dinov3_vit", "mlp_bias": False}, "mlp_bias False is not supported"),
        ({"model_type": "dinov3_vit", "proj_bias": False}, "proj_bias False is not supported"),
        ({"model_type": "dinov3_vit", "apply_layernorm": False}, "apply_layernorm False is not"),
        ({"model_type": "dinov3_vit", "hidden_act": "silu"}, "hidden_act 'silu' is not supported"),
        (
            {"model_type": "dinov3_vit", "use_gated_mlp": True, "hidden_act": "relu"},
            "hidden_act 'relu' is not supported; expected one of gelu, gelu_python, gelu_new, "
            "gelu_fast, gelu_pytorch_tanh, quick_gelu, silu.",
        ),
        ({"model_type": "clip_vision_model", "hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"model_type": "clip", "vision_config": {"hidden_act": "relu"}}, "hidden_act 'relu'"),
        (
            {"model_type": "clip", "vision_config": {"layer_norm_eps": None}},
            "layer_norm_eps is null",
        ),
        (
            {"model_type": "clip", "architectures": ["CLIPForImageClassification"]},
            "the head of 'CLIPForImageClassification', in architectures of config.json, is not "
            "supported; expected CLIPVisionModel.",
        ),
        (
            {"model_type": "deit", "architectures": ["DeiTForImageClassification"]},
            "expected DeiTForImageClassificationWithTeacher or DeiTModel.",
        ),
        ({"model_type": "ijepa", "pooler_act": "relu", "image_size": 0}, "image_size is [0, 0]"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_in_one_line_with_its_key(config, text):
    with pytest.raises(CheckpointError, match=r"^folder: ") as caught:
        metadata_of(config)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


SIGLIP = {"image_processor_type": "SiglipImageProcessor", "do_convert_rgb": None}


@pytest.mark.parametrize(
    ("model_type", "processor", "expected"),
    [
        # google/siglip2-base-patch16-224.
        (
            "siglip",
            SIGLIP | {"resample": 2, "size": {"height": 224, "width": 224}},
            {"crop": "resize", "resample": "antialias"},
        ),
        (
            "siglip",
            SIGLIP | {"image_processor_type": "SiglipImageProcessorFast"},
            {"crop": "resize"},
        ),
        # openai/clip-vit-base-patch32: the names and numbers of old versions.
        (
            "clip",
            {
                "feature_extractor_type": "CLIPFeatureExtractor",
                "crop_size": 224,
                "do_center_crop": True,
                "resample": 3,
                "size": 224,
            },
            {"crop": "huggingface", "crop_side": 224, "resample": "bicubic"},
        ),
        (
            "clip",
            {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 256}},
            {"crop": "huggingface", "crop_side": 256, "resample": "bicubic"},
        ),
        # facebook/dinov2-base.
        (
            "dinov2",
            {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}
            | IMAGENET,
            {"crop": "huggingface", "crop_side": 256, "pixel_stats": "imagenet"},
        ),
        (
            "dinov3_vit",
            {"image_processor_type": "DINOv3ViTImageProcessorFast", "resample": 2} | IMAGENET,
            {"crop": "resize", "resample": "antialias", "pixel_stats": "imagenet"},
        ),
        (
            "vit_mae",
            {"feature_extractor_type": "ViTFeatureExtractor", "size": 224} | IMAGENET,
            {"crop": "resize", "resample": "antialias"},
        ),
        # Without a file: the image processor of the model_type.
        ("siglip", {}, {"crop": "resize", "resample": "bicubic"}),
        ("clip", {}, {"crop": "huggingface", "crop_side": 224, "resample": "bicubic"}),
        ("dinov3_vit", {}, {"crop": "resize", "resample": "antialias"}),
        ("ijepa", {}, {"crop": "resize", "resample": "antialias"}),
    ],
    ids=str,
)
def test_preprocessing_is_that_of_the_image_processor(model_type, processor, expected):
    fields = vars(metadata_of({"model_type": model_type}, processor))
    assert {name: fields[name] for name in expected} == expected


def test_a_siglip_processor_without_a_square_size_is_refused():
    with pytest.raises(CheckpointError, match="expected a height and a width"):
        metadata_of({"model_type": "siglip"}, SIGLIP | {"size": 224})
