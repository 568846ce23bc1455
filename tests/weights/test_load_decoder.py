"""Whole masked autoencoders in files: original names, Hugging Face, and fixed positions."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from tests.support.original_files import (
    BLOCK,
    POSITIONS,
    SQUARE,
    common,
    dense,
    flat_params,
    linear,
    norm,
    qkv,
    save,
    timm_like,
)
from tests.support.tiny import tiny
from vit_jax import load_params
from vit_jax.config.schema import Init
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.position import sincos
from vit_jax.weights import load
from vit_jax.weights.metadata import from_model
from vit_jax.weights.reader import open_weights_file

MLP = {"Dense_0": "mlp.fc1", "Dense_1": "mlp.fc2"}
GRID = (3, 3)  # Of SQUARE.


def autoencoder(width=16, heads=4, **options):
    options = {"gelu": "erf", "pixel_stats": "imagenet", "pos_embed": "sincos_mae"} | options
    vit = tiny(**SQUARE, **options)
    return MaeViT.of(vit, 3, num_layers=2, hidden_size=width, num_heads=heads)


def of_decoder(p) -> dict:
    """The decoder's parameters under the names of an encoder."""
    decoder = {n.replace("Decoder/", "Transformer/"): a for n, a in p.items() if "Decoder/" in n}
    return decoder | {"embedding/kernel": p["embedding/kernel"]}  # `common` asks for it.


def positions(width):
    return np.pad(sincos(GRID, width, "sincos_mae"), ((1, 0), (0, 0)))[None]


def original(p, width=16) -> dict:
    """The tensors of mae_visualize_vit_*.pth."""
    stored = timm_like(p, MLP) | norm(p, "Transformer/encoder_norm", "norm")
    decoder, names = of_decoder(p), {"norms": ("norm1", "norm2"), "mlp": MLP}
    layers = common(decoder, "attn.proj", "unused", names | {"layer": "decoder_blocks.{}"})
    stored |= {name: array for name, array in layers.items() if not name.startswith("unused")}
    for q, layer in ((p, "blocks.{}"), (decoder, "decoder_blocks.{}")):
        for i in (0, 1):
            for leaf, end in (("kernel", "weight"), ("bias", "bias")):
                array = np.concatenate(qkv(q, BLOCK.format(i), leaf))
                stored[f"{layer.format(i)}.attn.qkv.{end}"] = array
    stored |= norm(decoder, "Transformer/encoder_norm", "decoder_norm")
    for name in ("decoder_embed", "decoder_pred"):
        stored |= dense(p, name, name)
    stored |= {"mask_token": p["decoder_mask_token"], "pos_embed": positions(32)}
    return stored | {"decoder_pos_embed": positions(width)}


def huggingface(p, version: int, layers="decoder.decoder_layers") -> dict:
    """The tensors of ViTMAEForPreTraining, with the names of transformers 4 or 5."""
    q = ("attention.attention.query", "attention.q_proj")[version - 4]
    out = ("attention.output.dense", "attention.o_proj")[version - 4]
    mlp = [("intermediate.dense", "output.dense"), ("mlp.fc1", "mlp.fc2")][version - 4]
    layer = ("vit.encoder.layer.{}", "vit.layers.{}")[version - 4]
    names = {"norms": ("layernorm_before", "layernorm_after")}
    names["mlp"] = dict(zip(("Dense_0", "Dense_1"), mlp, strict=True))
    patches = "vit.embeddings.patch_embeddings.projection"
    stored = common(p, out, patches, names | {"layer": layer})
    names["layer"] = f"{layers}.{{}}"
    decoder = of_decoder(p)
    layers = common(decoder, out, "unused", names)
    stored |= {name: array for name, array in layers.items() if not name.startswith("unused")}
    for params, prefix in ((p, layer), (decoder, names["layer"])):
        for i in (0, 1):
            for name in ("query", "key", "value"):
                attention = f"{BLOCK.format(i)}/MultiHeadDotProductAttention_0/{name}"
                tensor = f"{prefix.format(i)}.{q}".replace("query", name)
                tensor = tensor.replace("q_proj", f"{name[0]}_proj")
                stored[f"{tensor}.weight"] = linear(params[f"{attention}/kernel"])
                stored[f"{tensor}.bias"] = params[f"{attention}/bias"].ravel()
    stored |= norm(p, "Transformer/encoder_norm", "vit.layernorm")
    stored |= norm(decoder, "Transformer/encoder_norm", "decoder.decoder_norm")
    for name in ("decoder_embed", "decoder_pred"):
        stored |= dense(p, name, f"decoder.{name}")
    stored |= {"vit.embeddings.cls_token": p["cls"], "decoder.mask_token": p["decoder_mask_token"]}
    stored["vit.embeddings.position_embeddings"] = positions(32)
    return stored | {"decoder.decoder_pos_embed": positions(16)}


HF_CONFIG = {
    "model_type": "vit_mae",
    "architectures": ["ViTMAEForPreTraining"],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 12,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,
    "decoder_num_attention_heads": 4,
}


def write_huggingface(folder, stored) -> str:
    folder.mkdir()
    save(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    stats = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(stats))
    return str(folder)


def assert_same_bits(params, expected):
    found = trees.flatten(params)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_original_file_gives_encoder_and_decoder(tmp_path):
    model = autoencoder()
    p = flat_params(model)
    path = save(tmp_path / "mae.safetensors", original(p))
    assert_same_bits(load_params(f"{path}:num_heads=2", model), p)


@pytest.mark.parametrize(
    ("version", "layers"),
    [
        (4, "decoder.decoder_layers"),
        (5, "decoder.decoder_layers"),
        (4, "decoder.decoder_encoder.layer"),  # As transformers 5 writes files.
    ],
)
def test_folder_of_hugging_face_gives_encoder_and_decoder(version, layers, tmp_path):
    model = autoencoder()
    p = flat_params(model)
    folder = write_huggingface(tmp_path / "hf", huggingface(p, version, layers))
    assert_same_bits(load_params(folder, model), p)


def test_every_tensor_of_a_whole_autoencoder_is_read(tmp_path):
    p = flat_params(autoencoder())
    path = save(tmp_path / "mae.safetensors", original(p) | {"decoder_extra": np.ones(3)})
    file = open_weights_file(path, from_model(autoencoder()), decoder_heads=4)
    assert file.ignored == ("decoder_extra",)
    stored = set(safetensors.numpy.load_file(path))
    assert set(file.rows) == stored - {"decoder_extra"}


def test_encoder_of_a_whole_autoencoder_is_read_for_a_classifier(tmp_path):
    p = flat_params(autoencoder())
    path = save(tmp_path / "mae.safetensors", original(p))
    model = tiny(**SQUARE | {"num_classes": 3}, gelu="erf", pixel_stats="imagenet")
    params = trees.flatten(load_params(f"{path}:num_heads=2", model, new_head=True))
    assert not [name for name in params if name.lower().startswith("decoder")]
    np.testing.assert_array_equal(params[POSITIONS], positions(32))


def test_decoder_of_another_size_is_drawn_with_permission(tmp_path, capsys):
    p = flat_params(autoencoder())
    path = save(tmp_path / "mae.safetensors", original(p))
    model = autoencoder(width=8, heads=2)
    with pytest.raises(CheckpointError, match="the decoder of the model has other shapes than"):
        load_params(f"{path}:num_heads=2", model)
    params = trees.flatten(load_params(f"{path}:num_heads=2", model, new_head=True))
    assert "a new decoder with random initial values" in capsys.readouterr().out
    assert params["decoder_embed/kernel"].shape == (32, 8)
    np.testing.assert_array_equal(params["embedding/kernel"], p["embedding/kernel"])


def test_decoder_with_other_positions_is_rejected(tmp_path):
    stored = original(flat_params(autoencoder())) | {"decoder_pos_embed": positions(16) + 0.1}
    path = save(tmp_path / "mae.safetensors", stored)
    with pytest.raises(CheckpointError, match=r"the positions of the decoder are not those of"):
        load_params(f"{path}:num_heads=2", autoencoder(), new_head=True)


def test_encoder_with_other_positions_needs_a_model_that_learns_them(tmp_path):
    p = flat_params(autoencoder())
    path = save(tmp_path / "mae.safetensors", original(p) | {"pos_embed": positions(32) + 0.1})
    with pytest.raises(CheckpointError, match=r"posembed_input/pos_embedding is not in the model"):
        load_params(f"{path}:num_heads=2", autoencoder())
    params = load_params(f"{path}:num_heads=2", autoencoder(pos_embed="learned"))
    np.testing.assert_allclose(trees.flatten(params)[POSITIONS], positions(32) + 0.1, rtol=1e-6)


def test_decoder_with_another_number_of_heads_than_its_config_is_rejected(tmp_path):
    folder = write_huggingface(tmp_path / "hf", huggingface(flat_params(autoencoder()), 4))
    with pytest.raises(CheckpointError, match=r"decoder_num_attention_heads is 4, the tensors"):
        load_params(folder, autoencoder(heads=2))


def test_decoder_without_a_place_in_the_model_is_reported_in_one_line(tmp_path):
    model = autoencoder()
    path = save(tmp_path / "mae.safetensors", original(flat_params(model)))
    weights = load.open_weights(f"{path}:num_heads=2", model)
    with pytest.raises(CheckpointError) as caught:
        load.plan_adaptation(weights, tiny(**SQUARE, pos_embed="sincos_mae"), Init())
    text = "the decoder of the weights is not in the model (init.new_head=True permits it)."
    assert str(caught.value).endswith(text)
    shallow = autoencoder()
    shallow = shallow.clone(decoder=dataclasses.replace(shallow.decoder, num_layers=1))
    plan = load.plan_adaptation(weights, shallow, Init(new_head=True))
    assert plan.notes == ["a new decoder with random initial values", "decoder dropped"]
