"""Weights in the formats of timm, Hugging Face and Flax, and timm's forward pass in numpy."""

import json
import math

import jax
import numpy as np
import safetensors.numpy

import vit_jax
from vit_jax import create_model

D, H, M, P, K, L = 8, 2, 16, 4, 3, 2  # Width, heads, MLP, patch, classes, layers.


ROWS, COLUMNS = 2, 3


SIZE = {"image_size": (ROWS * P, COLUMNS * P), "num_heads": H}


MODEL = {"patch": P, "num_layers": L, "hidden_size": D, "mlp_size": M, "num_classes": K}


erf = np.vectorize(math.erf)


random = np.random.default_rng(0)


def some(*shape):
    return random.normal(0, 0.4, shape).astype(np.float32)


def timm_weights(*, positions=1 + ROWS * COLUMNS, registers=0, scales=False, head=D):
    """Random weights of a ViT with timm's names: linear layers out x in, convolution O I H W."""
    w = {
        "cls_token": some(1, 1, D),
        "pos_embed": some(1, positions, D),
        "patch_embed.proj.weight": some(D, 3, P, P),
        "patch_embed.proj.bias": some(D),
    }
    if registers:
        w["reg_token"] = some(1, registers, D)
    for i in range(L):
        sizes = {"attn.qkv": (3 * D, D), "attn.proj": (D, D), "mlp.fc1": (M, D), "mlp.fc2": (D, M)}
        for name, shape in sizes.items():
            w[f"blocks.{i}.{name}.weight"] = some(*shape)
            w[f"blocks.{i}.{name}.bias"] = some(shape[0])
        for n in (1, 2):
            w[f"blocks.{i}.norm{n}.weight"], w[f"blocks.{i}.norm{n}.bias"] = some(D), some(D)
            if scales:
                w[f"blocks.{i}.ls{n}.gamma"] = some(D)
    w |= {"norm.weight": some(D), "norm.bias": some(D)}
    return w | ({"head.weight": some(K, head), "head.bias": some(K)} if head else {})


def norm(x, w, name, eps):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attention(q, k, v):  # B T D; heads are concatenated along D.
    q, k, v = (x.reshape(*x.shape[:2], H, D // H) for x in (q, k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D // H)
    A = np.exp(scores - scores.max(-1, keepdims=True))
    A = A / A.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", A, v).reshape(*q.shape[:2], D)


def mlp(x, w, name):
    y = linear(x, w, f"{name}.fc1")
    return linear(y * (1 + erf(y / math.sqrt(2))) / 2, w, f"{name}.fc2")


def outputs(w, images, *, eps=1e-6, pool="token"):
    """Outputs of timm's VisionTransformer with the exact GELU, computed in numpy."""
    w = {name: array.astype(np.float64) for name, array in w.items()}
    B, none = len(images), np.zeros((1, 0, D))
    patches = images.reshape(B, ROWS, P, COLUMNS, P, 3).transpose(0, 1, 3, 5, 2, 4)
    x = patches.reshape(B, ROWS * COLUMNS, -1) @ w["patch_embed.proj.weight"].reshape(D, -1).T
    x = x + w["patch_embed.proj.bias"]
    cls, registers = (
        np.repeat(w.get(name, none), B, axis=0) for name in ("cls_token", "reg_token")
    )
    if w["pos_embed"].shape[1] == ROWS * COLUMNS:  # timm's no_embed_class: patches alone.
        x = np.concatenate([cls, registers, x + w["pos_embed"]], 1)
    else:
        first, rest = w["pos_embed"][:, :1], w["pos_embed"][:, 1:]
        x = np.concatenate([cls + first, registers, x + rest], 1)
    for i in range(L):
        b = f"blocks.{i}"
        qkv = linear(norm(x, w, f"{b}.norm1", eps), w, f"{b}.attn.qkv")
        y = linear(attention(*np.split(qkv, 3, axis=-1)), w, f"{b}.attn.proj")
        x = x + y * w.get(f"{b}.ls1.gamma", 1)
        y = mlp(norm(x, w, f"{b}.norm2", eps), w, f"{b}.mlp")
        x = x + y * w.get(f"{b}.ls2.gamma", 1)
    x = norm(x, w, "norm", eps)
    y, mean = x[:, 0], x[:, -ROWS * COLUMNS :].mean(1)
    if pool == "gap":
        y = mean
    if pool == "token_gap":
        y = np.concatenate([y, mean], -1)
    if pool == "map":  # timm's AttentionPoolLatent.
        q = np.repeat(linear(w["attn_pool.latent"], w, "attn_pool.q"), B, axis=0)
        k, v = np.split(linear(x, w, "attn_pool.kv"), 2, axis=-1)
        y = linear(attention(q, k, v), w, "attn_pool.proj")
        y = (y + mlp(norm(y, w, "attn_pool.norm", eps), w, "attn_pool.mlp"))[:, 0]
    return linear(y, w, "head") if "head.weight" in w else y


IMAGES = random.uniform(-1, 1, (2, ROWS * P, COLUMNS * P, 3)).astype(np.float32)


def save(path, w, config=None, processor=None):
    path.parent.mkdir(exist_ok=True)
    safetensors.numpy.save_file({n: np.ascontiguousarray(a) for n, a in w.items()}, path)
    for name, values in (("config", config), ("preprocessor_config", processor)):
        if values is not None:
            (path.parent / f"{name}.json").write_text(json.dumps(values))
    return path


def assert_outputs(path, expected, **options):
    """Compares the outputs of a model with those weights; returns it and its parameters."""
    model = create_model("vit_b16", **MODEL | SIZE | {"gelu": "erf"} | options)
    # The pixels are normalised already, whatever the statistics of the family.
    params = vit_jax.load_params(path, model, allow_numerics=True)
    actual = np.asarray(jax.jit(model.apply)({"params": params}, IMAGES))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    return model, params


TIMM_CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "global_pool": "token",
    "model_args": {"num_heads": H},
    "pretrained_cfg": {"input_size": [3, *SIZE["image_size"]]},
}


def as_huggingface(w, version=4, is_dino=False, root=None):
    """timm weights with Hugging Face's names: separate query, key and value."""
    kind = "dinov2." if is_dino else "vit."
    root = kind if root is None else root
    block = "encoder.layer.{}" if version == 4 or is_dino else "layers.{}"
    heads = "attention.attention.{}" if version == 4 else "attention.{}_proj"
    norms, mlp = ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")
    if not is_dino:
        norms = ("layernorm_before", "layernorm_after")
        mlp = ("intermediate.dense", "output.dense") if version == 4 else mlp
    new = {}
    for end in ("weight", "bias"):
        for i in range(L):
            to, old = root + block.format(i), f"blocks.{i}"
            parts = np.split(w[f"{old}.attn.qkv.{end}"], 3)
            for name, part in zip(("query", "key", "value"), parts):
                new[f"{to}.{heads.format(name if version == 4 else name[0])}.{end}"] = part
            out = "attention.output.dense" if version == 4 else "attention.o_proj"
            new[f"{to}.{out}.{end}"] = w[f"{old}.attn.proj.{end}"]
            for n in (0, 1):
                new[f"{to}.{norms[n]}.{end}"] = w[f"{old}.norm{n + 1}.{end}"]
                new[f"{to}.{mlp[n]}.{end}"] = w[f"{old}.mlp.fc{n + 1}.{end}"]
        patches = f"{root}embeddings.patch_embeddings.projection.{end}"
        new[patches] = w[f"patch_embed.proj.{end}"]
        new[f"{root}layernorm.{end}"] = w[f"norm.{end}"]
        if "head.weight" in w:
            new[f"classifier.{end}"] = w[f"head.{end}"]
    for old, name in (
        ("cls_token", "cls_token"),
        ("pos_embed", "position_embeddings"),
        ("reg_token", "register_tokens"),
    ):
        if old in w:
            new[f"{root}embeddings.{name}"] = w[old]
    for name in w:
        if ".ls" in name:
            _, i, scale, _ = name.split(".")
            new[f"{root}encoder.layer.{i}.layer_scale{scale[-1]}.lambda1"] = w[name]
    return new


HF_CONFIG = {"model_type": "vit", "num_attention_heads": H, "image_size": list(SIZE["image_size"])}


def as_official(w, block=("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")):
    """timm weights with the official names: dense in x out, separate heads, conv H W I O."""
    new = {
        "cls": w["cls_token"],
        "Transformer/posembed_input/pos_embedding": w["pos_embed"],
        "embedding/kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": w["patch_embed.proj.bias"],
    }
    for old, name in (("norm", "Transformer/encoder_norm"), ("head", "head")):
        scale = "scale" if old == "norm" else "kernel"
        new[f"{name}/{scale}"] = w[f"{old}.weight"].T
        new[f"{name}/bias"] = w[f"{old}.bias"]
    attention, norm2, mlp = block
    for i in range(L):
        to, old = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        for name, place in (("norm1", "LayerNorm_0"), ("norm2", norm2)):
            new[f"{to}/{place}/scale"] = w[f"{old}.{name}.weight"]
            new[f"{to}/{place}/bias"] = w[f"{old}.{name}.bias"]
        for n in (0, 1):
            new[f"{to}/{mlp}/Dense_{n}/kernel"] = w[f"{old}.mlp.fc{n + 1}.weight"].T
            new[f"{to}/{mlp}/Dense_{n}/bias"] = w[f"{old}.mlp.fc{n + 1}.bias"]
        for n, name in enumerate(("query", "key", "value")):
            rows = w[f"{old}.attn.qkv.weight"][n * D : (n + 1) * D]
            bias = w[f"{old}.attn.qkv.bias"][n * D : (n + 1) * D]
            new[f"{to}/{attention}/{name}/kernel"] = rows.T.reshape(D, H, D // H)
            new[f"{to}/{attention}/{name}/bias"] = bias.reshape(H, D // H)
        out = w[f"{old}.attn.proj.weight"].T.reshape(H, D // H, D)
        new[f"{to}/{attention}/out/kernel"] = out
        new[f"{to}/{attention}/out/bias"] = w[f"{old}.attn.proj.bias"]
    return new
