"""The `.npz` of the official code: one float32 array per parameter, path joined by '/'."""

import math
import pathlib
import re

import numpy as np

from vit_jax.errors import CheckpointError

# The published spelling inside encoder blocks -> ours.
RENAMED = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
}
ROOTS = ("opt/target/", "params/")  # An old optimiser's, and big_vision's; else bare names.


def read_npz(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Parameters by slash name, in our spelling.

    Raises CheckpointError for a file that is missing, damaged, or holds no ViT's names.
    """
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except Exception as error:  # zipfile, zlib, tokenize and numpy each raise their own.
        words = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a readable .npz file ({words}).") from error
    for root in ROOTS:
        if f"{root}embedding/kernel" in arrays:
            arrays = {
                name.removeprefix(root): array
                for name, array in arrays.items()
                if name.startswith(root)
            }
    if "embedding/kernel" not in arrays:
        raise CheckpointError(f"{path}: no 'embedding/kernel' in it, so not a Vision Transformer.")
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise CheckpointError(f"{path}: {name} is {array.dtype}; parameters are float32.")
    return {_our_name(name): array for name, array in arrays.items()}


def _our_name(name: str) -> str:
    block = re.fullmatch(r"(Transformer/encoderblock_\d+/)([^/]+)(/.*)", name)
    return block[1] + RENAMED.get(block[2], block[2]) + block[3] if block else name


def grid_of(shapes: dict[str, tuple], path: str | pathlib.Path) -> tuple[int, int]:
    """The square grid of an npz, which does not say its own; by name, 'cls' is one token.

    Raises CheckpointError where the count of position embeddings is no square.
    """
    name = "Transformer/posembed_input/pos_embedding"
    if name not in shapes:
        raise CheckpointError(f"{path}: no {name!r} in it, so not a plain ViT.")
    if len(shapes[name]) != 3:
        raise CheckpointError(f"{path}: {name} is {shapes[name]}; it must be 1 T D.")
    num = shapes[name][1] - ("cls" in shapes)
    side = math.isqrt(num)
    if side * side != num:
        raise CheckpointError(f"{path}: {num} position embeddings are no square grid.")
    return side, side


def model_options(shapes: dict[str, tuple], path: str | pathlib.Path) -> dict:
    """The options of `create_model` that give a model of these shapes."""
    try:
        patch, _, _, hidden = shapes["embedding/kernel"]
        block = "Transformer/encoderblock_0"
        layers = {name.split("/")[1] for name in shapes if "/encoderblock_" in name}
        pool = "map" if "MAPHead_0/probe" in shapes else "token" if "cls" in shapes else "gap"
        return {
            "patch": patch,
            "image_size": grid_of(shapes, path)[0] * patch,
            "num_layers": len(layers),
            "hidden_size": hidden,
            "mlp_size": shapes[f"{block}/MlpBlock_0/Dense_0/kernel"][1],
            "num_heads": shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][1],
            "num_classes": shapes["head/bias"][0] if "head/bias" in shapes else 0,
            "pool": pool,
            "pre_logits": "pre_logits/kernel" in shapes,
        }
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: not a plain ViT's parameters ({error}).") from error
