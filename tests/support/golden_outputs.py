"""Cases whose outputs of timm and Hugging Face are stored in `tests/golden/peers.json`."""

import pathlib

import numpy as np
from PIL import Image

from vit_jax.models.registry import param_shapes

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "peers.json"
SIZE = 64

ERF = {"gelu": "erf", "num_classes": 5, "image_size": SIZE}
SHALLOW = ERF | {"num_layers": 2}
CASES = {  # Title -> (library, its name of the model, arguments of create_model).
    "Ti/16": ("timm", "vit_tiny_patch16_224", ("vit_ti16", SHALLOW)),
    "Ti/16, mean of patches": (
        "timm",
        "vit_tiny_patch16_224",
        ("vit_ti16", SHALLOW | {"pool": "gap"}),
    ),
    "Ti/16, attention pooling": (
        "timm",
        "vit_tiny_patch16_224",
        ("vit_ti16", SHALLOW | {"pool": "map"}),
    ),
    "Ti/16, tanh GELU": ("timm", "vit_tiny_patch16_224", ("vit_ti16", SHALLOW | {"gelu": "tanh"})),
    "R+Ti/16": ("timm", "vit_tiny_r_s16_p8_224", ("r_ti16", SHALLOW)),
    "R26+S/32": ("timm", "vit_small_r26_s32_224", ("r26_s32", SHALLOW)),
    "BiT-R50x1": (
        "timm",
        "resnetv2_50x1_bit",
        ("bit_r50x1", {"num_classes": 5, "image_size": SIZE}),
    ),
    "DINOv2 Ti/16": (
        "Hugging Face",
        "Dinov2",
        ("vit_ti16", SHALLOW | {"layer_scale": 1.0, "pool": "token_gap"}),
    ),
    "DINOv2 Ti/16, registers": (
        "timm",
        "vit_tiny_patch16_224",
        ("vit_ti16", SHALLOW | {"layer_scale": 1.0, "registers": 4}),
    ),
    "ViT Ti/16, epsilon 1e-12": (
        "Hugging Face",
        "ViT",
        ("vit_ti16", SHALLOW | {"norm_eps": 1e-12}),
    ),
}


def params_of(model) -> dict[str, np.ndarray]:
    """Weights from a formula, equal on every machine, scaled like initial weights."""
    params = {}
    for number, (name, shape) in enumerate(sorted(param_shapes(model).items())):
        size = int(np.prod(shape))
        # A pseudo-random sequence that no library version changes.
        waves = np.mod(np.sin(np.arange(size) * 12.9898 + number) * 43758.5453, 2) - 1
        fan_in = max(size // shape[-1], 1)
        scale = 3 / fan_in**0.5
        if name.endswith(("bias", "/scale")) or shape[0] == 1:  # Includes tokens and positions.
            scale = 0.3
        values = waves * scale + (1.0 if name.endswith("/scale") else 0.0)
        params[name] = values.reshape(shape).astype(np.float32)
    return params


def photo_pixels(photos, side: int = SIZE) -> np.ndarray:
    """Two real photos, 2 side side 3 in [-1, 1]."""
    resized = [Image.fromarray(photo).resize((side, side)) for photo in photos]
    return np.stack([np.asarray(image, np.float32) / 127.5 - 1 for image in resized])
