"""Files of original releases, built by hand from parameters of this package."""

import numpy as np
import safetensors.numpy

from tests.support.tiny import some_params, tiny
from vit_jax.models import trees

BLOCK = "Transformer/encoderblock_{}"
POSITIONS = "Transformer/posembed_input/pos_embedding"
SQUARE = {"image_size": 12, "num_classes": 0}  # A grid of 3x3: files without a size are square.
GATED = {"mlp": "swiglu", "mlp_size": 48}


def flat_params(model) -> dict[str, np.ndarray]:
    return trees.flatten(some_params(model))


def linear(kernel) -> np.ndarray:
    """A kernel D M or D h d as out x in."""
    return kernel.reshape(kernel.shape[0], -1).T


def norm(p, param, tensor) -> dict:
    return {f"{tensor}.weight": p[f"{param}/scale"], f"{tensor}.bias": p[f"{param}/bias"]}


def dense(p, param, tensor) -> dict:
    return {f"{tensor}.weight": linear(p[f"{param}/kernel"]), f"{tensor}.bias": p[f"{param}/bias"]}


def qkv(p, block, leaf) -> list[np.ndarray]:
    """Queries, keys and values of a layer: weights out x in, or flat biases."""
    names = [f"{block}/MultiHeadDotProductAttention_0/{name}/{leaf}" for name in QKV]
    if leaf == "bias":
        return [p[name].ravel() for name in names if name in p]
    return [linear(p[name]) for name in names]


QKV = ("query", "key", "value")


def common(p, attention_out, patches, names) -> dict:
    """Returns the tensors that all releases store alike; `names` has those that differ."""
    stored = {f"{patches}.weight": p["embedding/kernel"].transpose(3, 2, 0, 1)}
    if "embedding/bias" in p:
        stored[f"{patches}.bias"] = p["embedding/bias"]
    for i in (0, 1):
        block, layer = BLOCK.format(i), names["layer"].format(i)
        for n in (0, 1):
            stored |= norm(p, f"{block}/LayerNorm_{n}", f"{layer}.{names['norms'][n]}")
        out = f"{block}/MultiHeadDotProductAttention_0/out"
        kernel = p[f"{out}/kernel"]
        stored[f"{layer}.{attention_out}.weight"] = kernel.reshape(-1, kernel.shape[-1]).T
        stored[f"{layer}.{attention_out}.bias"] = p[f"{out}/bias"]
        for param, name in names["mlp"].items():
            stored |= dense(p, f"{block}/MlpBlock_0/{param}", f"{layer}.{name}")
    return stored


def timm_like(p, mlp) -> dict:
    """Tensors with the names that DINOv2, DINOv3, EVA-02 and TIPS share with timm."""
    names = {"layer": "blocks.{}", "norms": ("norm1", "norm2"), "mlp": mlp}
    stored = common(p, "attn.proj", "patch_embed.proj", names)
    stored["cls_token"] = p["cls"]
    for i in (0, 1):
        for n in (0, 1):
            if (scale := f"{BLOCK.format(i)}/LayerScale_{n}/scale") in p:
                stored[f"blocks.{i}.ls{n + 1}.gamma"] = p[scale]
    return stored


def save(path, stored) -> str:
    contiguous = {name: np.ascontiguousarray(array) for name, array in stored.items()}
    if path.suffix == ".npz":
        np.savez(path, **contiguous)
    else:
        safetensors.numpy.save_file(contiguous, path)
    return str(path)


CLIP = {"gelu": "quick", "pre_norm": True, "patch_bias": False, "norm_eps": 1e-5}
CLIP |= {"pixel_stats": "clip"}
TEXT = {
    "transformer.resblocks.0.ln_1.weight": (16,),
    "transformer.resblocks.0.attn.in_proj_weight": (48, 16),
    "token_embedding.weight": (49, 16),
    "positional_embedding": (7, 16),
    "ln_final.weight": (16,),
    "text_projection": (16, 24),
    "logit_scale": (),
}


def open_clip(projection=24, root="visual."):
    model = tiny(**CLIP, **SQUARE, projection=projection)
    p = flat_params(model)
    names = {"layer": "transformer.resblocks.{}", "norms": ("ln_1", "ln_2")}
    names["mlp"] = {"Dense_0": "mlp.c_fc", "Dense_1": "mlp.c_proj"}
    stored = common(p, "attn.out_proj", "conv1", names)
    stored |= norm(p, "Transformer/pre_norm", "ln_pre")
    stored |= norm(p, "Transformer/encoder_norm", "ln_post")
    stored |= {"class_embedding": p["cls"][0, 0], "positional_embedding": p[POSITIONS][0]}
    if projection:
        stored["proj"] = p["projection/kernel"]
    for i in (0, 1):
        for leaf, end in (("kernel", "weight"), ("bias", "bias")):
            name = f"transformer.resblocks.{i}.attn.in_proj_{end}"
            stored[name] = np.concatenate(qkv(p, BLOCK.format(i), leaf))
    return model, p, {f"{root}{name}": array for name, array in stored.items()}


def text_tower(root="") -> dict:
    return {f"{root}{name}": np.ones(shape, np.float32) for name, shape in TEXT.items()}
