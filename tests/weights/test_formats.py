"""timm, DINO, Hugging Face and official files of one model give the logits that numpy computes.

The weights are PyTorch's, under timm's names; the other ecosystems' files are made of them by
hand, and the forward pass is written in numpy after the ecosystems' own code.
"""

import dataclasses
import re

import numpy as np
import pytest

from tests.support.peer_weights import (
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
from tests.support.tiny import assert_same_model
from vit_jax import create_model
from vit_jax.errors import CheckpointError
from vit_jax.weights import formats
from vit_jax.weights.infer_model import infer_model_options
from vit_jax.weights.metadata import from_model
from vit_jax.weights.reader import open_weights_file

WIDE = create_model("vit_b4", image_size=(8, 12), hidden_size=D, num_heads=H)


def test_timm_and_dino_logits_equal_numpy(tmp_path):
    w = timm_weights()
    assert_outputs(save(tmp_path / "timm.safetensors", w), outputs(w, IMAGES))


@pytest.mark.parametrize(
    "root",
    [
        *("module.", "backbone.", "model.", "teacher.backbone.", "student.backbone.", "net."),
        *("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "net._orig_mod.encoder.vit."),
        *("_fsdp_wrapped_module.", "a_name.of_mine.", "stem.", "head."),
    ],
)
def test_prefix_of_a_users_module_is_removed(tmp_path, root):
    w = timm_weights(registers=4, positions=6)
    plain = open_weights_file(save(tmp_path / "plain.safetensors", w), from_model(WIDE))
    path = save(tmp_path / "x.safetensors", {root + name: a for name, a in w.items()})
    assert_same_arrays(open_weights_file(path, from_model(WIDE)), plain)
    stored = as_huggingface(w, is_dino=True, root=f"{root}dinov2_with_registers.")
    ((found, _),) = formats.detect_formats(stored)
    assert found.name == "Hugging Face DINOv2"


def test_wrappers_inside_of_names_are_removed(tmp_path):
    w = timm_weights()
    plain = open_weights_file(save(tmp_path / "plain.safetensors", w), from_model(WIDE))
    for wrapper in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"):
        renamed = {re.sub(r"^(blocks\.\d+)\.", rf"\1.{wrapper}.", name): a for name, a in w.items()}
        assert set(renamed) != set(w)
        path = save(tmp_path / "x.safetensors", renamed)
        assert_same_arrays(open_weights_file(path, from_model(WIDE)), plain)


def test_file_of_two_models_is_refused(tmp_path):
    w = timm_weights()
    both = {
        f"{root}.backbone.{name}": a for root in ("student", "teacher") for name, a in w.items()
    }
    path = save(tmp_path / "x.safetensors", both)
    with pytest.raises(
        CheckpointError, match=r"several models, (student|teacher)\.backbone\.\* and"
    ):
        open_weights_file(path)
    many = {f"m{i}.patch_embed.proj.weight": some(D, 3, 4, 4) for i in range(200)}
    with pytest.raises(CheckpointError, match=r"several models, m0\.\* and m1\.\* and"):
        open_weights_file(save(tmp_path / "many.safetensors", many))


def assert_same_arrays(file, expected):
    found = dict(file.read())
    for name, array in expected.read():
        assert found.pop(name).tobytes() == array.tobytes()
    assert not found


def test_qkv_is_split_into_thirds_and_heads(tmp_path):
    w = timm_weights()
    save(tmp_path / "model.safetensors", w, TIMM_CONFIG)
    arrays = dict(open_weights_file(tmp_path).read())
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
def test_timm_pooling_without_class_token_equals_numpy(tmp_path, pool):
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


def test_timm_registers_have_positions_of_patches_alone(tmp_path):
    w = timm_weights(registers=4, positions=ROWS * COLUMNS, scales=True)
    path = save(tmp_path / "reg4.safetensors", w)
    assert_outputs(path, outputs(w, IMAGES), registers=4, layer_scale=1.0)


def test_dinov2_registers_have_a_position_of_the_class_token(tmp_path):
    w = timm_weights(registers=4, scales=True)
    stored = {name.replace("reg_token", "register_tokens"): a for name, a in w.items()}
    path = save(tmp_path / "dino.safetensors", stored | {"mask_token": some(1, D)})
    model, _ = assert_outputs(path, outputs(w, IMAGES), registers=4, layer_scale=1.0)
    assert open_weights_file(path, from_model(model)).ignored == ("mask_token",)


def test_deit_3_has_no_position_of_the_class_token(tmp_path):
    w = timm_weights(positions=ROWS * COLUMNS, scales=True)
    folder = save(tmp_path / "deit3" / "model.safetensors", w, TIMM_CONFIG).parent
    model, _ = assert_outputs(folder, outputs(w, IMAGES), layer_scale=1.0)
    assert_same_model(create_model(**infer_model_options(open_weights_file(folder))), model)


def test_folded_layer_scale_gives_equal_logits(tmp_path, capsys):
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
def test_huggingface_vit_logits_equal_numpy(tmp_path, version, root, head):
    w = timm_weights(head=head)
    stored = as_huggingface(w, version, root=root)
    folder = save(tmp_path / "vit" / "model.safetensors", stored, HF_CONFIG).parent
    expected = outputs(w, IMAGES, eps=1e-12)
    options = {"norm_eps": 1e-12, "num_classes": K if head else 0}
    model, _ = assert_outputs(folder, expected, **options)
    assert_same_model(create_model(**infer_model_options(open_weights_file(folder))), model)
    bare = save(tmp_path / "bare.safetensors", stored)  # Without a config beside it.
    assert open_weights_file(bare, from_model(model)).metadata.norm_eps == 1e-12


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("version", [4, 5])
def test_huggingface_dinov2_logits_equal_numpy(tmp_path, version, registers):
    w = timm_weights(registers=registers, scales=True, head=2 * D)
    mask = {"dinov2.embeddings.mask_token": some(1, D)}
    kind = "dinov2_with_registers" if registers else "dinov2"
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    config = HF_CONFIG | {"model_type": kind, "architectures": [f"{name}ForImageClassification"]}
    stored = as_huggingface(w, version, is_dino=True) | mask
    folder = save(tmp_path / "dino" / "model.safetensors", stored, config).parent
    options = {"layer_scale": 1.0, "registers": registers, "pool": "token_gap"}
    model, params = assert_outputs(folder, outputs(w, IMAGES, pool="token_gap"), **options)
    found = open_weights_file(folder)
    pixels = dataclasses.replace(model.config, pixel_stats="imagenet")
    assert_same_model(create_model(**infer_model_options(found)), model.clone(config=pixels))
    assert found.ignored == ("dinov2.embeddings.mask_token",)
    scale = params["Transformer"]["encoderblock_1"]["LayerScale_0"]["scale"]
    np.testing.assert_array_equal(scale, w["blocks.1.ls1.gamma"])


@pytest.mark.parametrize("is_scanned", [False, True], ids=["unrolled", "scanned"])
def test_official_and_big_vision_logits_equal_numpy(tmp_path, is_scanned):
    w = timm_weights()
    np.savez(tmp_path / "official.npz", **as_official(w))
    assert_outputs(tmp_path / "official.npz", outputs(w, IMAGES))
    # big_vision: positions beside the encoder, and none for the class token.
    linen = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    stored = as_official(w, linen)
    positions = stored.pop("Transformer/posembed_input/pos_embedding")
    stored["pos_embedding"] = positions[:, 1:]
    stored["cls"] = stored["cls"] + positions[:, :1]
    if is_scanned:
        for name in [name for name in stored if "encoderblock_0" in name]:
            layers = [stored.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(L)]
            stored[name.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
    np.savez(tmp_path / "bv.npz", **{f"params/{name}": a for name, a in stored.items()})
    _, params = assert_outputs(tmp_path / "bv.npz", outputs(w, IMAGES))
    place = params["Transformer"]["posembed_input"]["pos_embedding"]
    assert place.shape == (1, 1 + ROWS * COLUMNS, D)
    assert not place[:, 0].any()
    assert place[:, 1:].all()
