"""Small encoders, and the class of timm that computes the same."""

import pathlib

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "timm.json"
SIDE = 32  # Of the images of the golden outputs, in pixels.

DINO = {"gelu": "erf", "layer_scale": 1.0}
MEAN = {"gelu": "erf", "pool": "gap", "class_token": True}
DINO_3 = DINO | MEAN | {"norm_eps": 1e-5, "pos_embed": "rope", "registers": 4}
CLIP = {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5}
EVA = MEAN | {"fc_norm": True, "qkv_bias": "qv"}
GATED = {"mlp": "swiglu"}
EVA_02 = EVA | GATED | {"pos_embed": "learned_rope", "rope": "eva02"}
MODELS = {  # Title -> options of the model, and its class in timm.
    "DINOv2": (DINO, "VisionTransformer"),
    "DINOv2 with registers, gated": (DINO | GATED | {"registers": 4}, "VisionTransformer"),
    "DINOv3": (DINO_3 | {"qkv_bias": "none"}, "Eva"),
    "DINOv3, gated": (DINO_3 | GATED | {"qkv_bias": "qv"}, "Eva"),
    "SigLIP": ({"pool": "map"}, "VisionTransformer"),
    "CLIP": (CLIP | {"gelu": "quick"}, "VisionTransformer"),
    "OpenCLIP": (CLIP | {"gelu": "erf"}, "VisionTransformer"),
    "MAE, fine-tuned": (MEAN | {"fc_norm": True}, "VisionTransformer"),
    "DeiT": ({"gelu": "erf", "distill_token": True}, "VisionTransformerDistilled"),
    "EVA": (EVA, "Eva"),
    "EVA-02": (EVA_02, "Eva"),
    "EVA-02, LayerNorm in the MLP": (EVA_02 | {"mlp_norm": True}, "Eva"),
    "I-JEPA": ({"gelu": "erf", "pool": "gap"}, "VisionTransformer"),
    "gate of GELU": ({"gelu": "tanh", "mlp": "glu", "mlp_norm": True}, "VisionTransformer"),
    "rotary positions, keys with bias": ({"gelu": "erf", "pos_embed": "rope"}, "Eva"),
}
