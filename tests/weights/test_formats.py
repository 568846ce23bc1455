"""timm, DINO, Hugging Face and official files of one model give the logits that numpy computes.

The weights are PyTorch's, under timm's names; the other ecosystems' files are made of them by
hand, and the forward pass is written in numpy after the ecosystems' own code.
"""

import numpy as np
import pytest

from tests.support.foreign_weights import (
    COLUMNS,
    HF_CONFIG,
    IMAGES,
    ROWS,
    TIMM_CONFIG,
    D,
    H,
    K,
    L,
    M,
    as_huggingface,
    as_official,
    assert_outputs,
    outputs,
    save,
    some,
    timm_weights,
)
from vit_jax import create_model
from vit_jax.weights.infer_model import model_options
from vit_jax.weights.metadata import of_model
from vit_jax.weights.reader import open_foreign


@pytest.mark.parametrize("root", ["", "module.", "backbone.", "model.", "teacher.backbone."])
def test_timms_files_and_dinos_give_numpys_logits(tmp_path, root):
    w = timm_weights()
    path = save(tmp_path / "timm.safetensors", {root + name: a for name, a in w.items()})
    assert_outputs(path, outputs(w, IMAGES))


def test_query_key_and_value_are_the_thirds_and_heads_are_rows_in_order(tmp_path):
    w = timm_weights()
    save(tmp_path / "model.safetensors", w, TIMM_CONFIG)
    arrays = dict(open_foreign(tmp_path).read())
    x = some(5, D)
    for i in range(L):
        rows = w[f"blocks.{i}.attn.qkv.weight"].reshape(3, H, D // H, D)
        biases = w[f"blocks.{i}.attn.qkv.bias"].reshape(3, H, D // H)
        for n, name in enumerate(("query", "key", "value")):
            module = f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0/{name}"
            kernel = arrays[f"{module}/kernel"]
            expected = np.einsum("tD,hdD->thd", x, rows[n])
            found = np.einsum("tD,Dhd->thd", x, kernel)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(arrays[f"{module}/bias"], biases[n])
            assert kernel.flags.c_contiguous


@pytest.mark.parametrize("pool", ["gap", "map"])
def test_timms_pooling_without_a_class_token_gives_numpys_logits(tmp_path, pool):
    w = timm_weights(positions=ROWS * COLUMNS)
    del w["cls_token"]
    if pool == "map":
        sizes = {"q": (D, D), "kv": (2 * D, D), "proj": (D, D), "norm": (D,)}
        for name, shape in (sizes | {"mlp.fc1": (M, D), "mlp.fc2": (D, M)}).items():
            w[f"attn_pool.{name}.weight"] = some(*shape)
            w[f"attn_pool.{name}.bias"] = some(shape[0])
        w["attn_pool.latent"] = some(1, 1, D)
    path = save(tmp_path / "timm.safetensors", w)
    assert_outputs(path, outputs(w, IMAGES, pool=pool), pool=pool)


def test_in_timms_files_with_registers_patches_alone_have_positions(tmp_path):
    w = timm_weights(registers=4, positions=ROWS * COLUMNS, scales=True)
    path = save(tmp_path / "reg4.safetensors", w)
    assert_outputs(path, outputs(w, IMAGES), registers=4, layer_scale=1.0)


def test_in_dinov2s_own_files_with_registers_the_class_token_has_one_too(tmp_path):
    w = timm_weights(registers=4, scales=True)
    theirs = {name.replace("reg_token", "register_tokens"): a for name, a in w.items()}
    path = save(tmp_path / "dino.safetensors", theirs | {"mask_token": some(1, D)})
    model, _ = assert_outputs(path, outputs(w, IMAGES), registers=4, layer_scale=1.0)
    assert open_foreign(path, of_model(model)).left_out == ("mask_token",)


def test_deit_3_gives_the_class_token_no_position(tmp_path):
    w = timm_weights(positions=ROWS * COLUMNS, scales=True)
    folder = save(tmp_path / "deit3" / "model.safetensors", w, TIMM_CONFIG).parent
    model, _ = assert_outputs(folder, outputs(w, IMAGES), layer_scale=1.0)
    assert create_model(**model_options(open_foreign(folder))) == model


def test_layer_scale_that_the_model_has_not_is_folded_without_a_trace(tmp_path, capsys):
    w = timm_weights(scales=True)
    path = save(tmp_path / "scaled.safetensors", w)
    _, params = assert_outputs(path, outputs(w, IMAGES))
    assert "LayerScale folded into the dense layers before it" in capsys.readouterr().out
    kernel = params["Transformer"]["encoderblock_0"]["MlpBlock_0"]["Dense_1"]["kernel"]
    expected = (w["blocks.0.mlp.fc2.weight"] * w["blocks.0.ls2.gamma"][:, None]).T
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


@pytest.mark.parametrize("head", [D, 0], ids=["with a head", "without"])
@pytest.mark.parametrize("root", ["vit.", ""])
@pytest.mark.parametrize("version", [4, 5])
def test_hugging_faces_vit_gives_numpys_logits(tmp_path, version, root, head):
    w = timm_weights(head=head)
    theirs = as_huggingface(w, version, root=root)
    folder = save(tmp_path / "vit" / "model.safetensors", theirs, HF_CONFIG).parent
    expected = outputs(w, IMAGES, eps=1e-12)
    options = {"norm_eps": 1e-12, "num_classes": K if head else 0}
    model, _ = assert_outputs(folder, expected, **options)
    assert create_model(**model_options(open_foreign(folder))) == model
    bare = save(tmp_path / "bare.safetensors", theirs)  # Without a config beside it.
    assert open_foreign(bare, of_model(model)).facts.norm_eps == 1e-12


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("version", [4, 5])
def test_hugging_faces_dinov2_gives_numpys_logits(tmp_path, version, registers):
    w = timm_weights(registers=registers, scales=True, head=2 * D)
    mask = {"dinov2.embeddings.mask_token": some(1, D)}
    kind = "dinov2_with_registers" if registers else "dinov2"
    config = HF_CONFIG | {"model_type": kind, "architectures": ["Dinov2ForImageClassification"]}
    theirs = as_huggingface(w, version, is_dino=True) | mask
    folder = save(tmp_path / "dino" / "model.safetensors", theirs, config).parent
    options = {"layer_scale": 1.0, "registers": registers, "pool": "token_gap"}
    model, params = assert_outputs(folder, outputs(w, IMAGES, pool="token_gap"), **options)
    found = open_foreign(folder)
    assert create_model(**model_options(found)) == model
    assert found.left_out == ("dinov2.embeddings.mask_token",)
    scale = params["Transformer"]["encoderblock_1"]["LayerScale_0"]["scale"]
    np.testing.assert_array_equal(scale, w["blocks.1.ls1.gamma"])


@pytest.mark.parametrize("is_scanned", [False, True], ids=["unrolled", "scanned"])
def test_official_and_big_vision_files_give_numpys_logits(tmp_path, is_scanned):
    w = timm_weights()
    np.savez(tmp_path / "official.npz", **as_official(w))
    assert_outputs(tmp_path / "official.npz", outputs(w, IMAGES))
    # big_vision: positions beside the encoder, and none for the class token.
    linen = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    theirs = as_official(w, linen)
    positions = theirs.pop("Transformer/posembed_input/pos_embedding")
    theirs["pos_embedding"] = positions[:, 1:]
    theirs["cls"] = theirs["cls"] + positions[:, :1]
    if is_scanned:
        for name in [name for name in theirs if "encoderblock_0" in name]:
            layers = [theirs.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(L)]
            theirs[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    np.savez(tmp_path / "bv.npz", **{f"params/{name}": a for name, a in theirs.items()})
    _, params = assert_outputs(tmp_path / "bv.npz", outputs(w, IMAGES))
    place = params["Transformer"]["posembed_input"]["pos_embedding"]
    assert place.shape == (1, 1 + ROWS * COLUMNS, D)
    assert not place[:, 0].any()
    assert place[:, 1:].all()
