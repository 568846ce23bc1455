"""Small encoders, and the classes of transformers that compute the same."""

import pathlib

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface.json"
SIDE = 32  # Of the images of the golden outputs, in pixels.

DINO = {"gelu": "erf", "layer_scale": 1.0, "pixel_stats": "imagenet"}
GATED = {"mlp": "swiglu", "mlp_size": 88}  # Two thirds of 4 x 32, rounded up to a multiple of 8.
DINO_3 = DINO | {"pos_embed": "rope", "registers": 4, "qkv_bias": "qv", "num_classes": 0}
CLIP = {"pre_norm": True, "patch_bias": False, "gelu": "quick", "num_classes": 0}
DEIT = {"distill_token": True, "gelu": "erf"}
MODELS = {  # Title -> options of the model, and its class in transformers.
    "DINOv2, gated": (DINO | GATED | {"pool": "token_gap"}, "Dinov2ForImageClassification"),
    "DINOv2 with registers, gated": (
        DINO | GATED | {"registers": 2, "num_classes": 0},
        "Dinov2WithRegistersModel",
    ),
    "DINOv3": (DINO_3, "DINOv3ViTModel"),
    "DINOv3, gated": (DINO_3 | {"mlp": "swiglu", "qkv_bias": "none"}, "DINOv3ViTModel"),
    "DINOv3, GELU gate": (DINO_3 | {"mlp": "glu", "gelu": "tanh"}, "DINOv3ViTModel"),
    "SigLIP": ({"pool": "map", "num_classes": 0}, "SiglipVisionModel"),
    "CLIP": (CLIP, "CLIPVisionModel"),
    "CLIP with projection": (CLIP | {"projection": 6}, "CLIPVisionModelWithProjection"),
    "DeiT": (DEIT, "DeiTForImageClassificationWithTeacher"),
    "DeiT, features": (DEIT | {"num_classes": 0}, "DeiTModel"),
    "I-JEPA": ({"pool": "gap", "gelu": "erf"}, "IJepaForImageClassification"),
    "I-JEPA, features": ({"pool": "gap", "num_classes": 0, "qkv_bias": "none"}, "IJepaModel"),
}
