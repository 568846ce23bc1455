"""Weights files under this package's parameter names: values, grids, and rejected files."""

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.support.peer_weights import as_huggingface, timm_weights
from tests.support.tiny import assert_same_model
from vit_jax import create_model
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.models.registry import param_shapes
from vit_jax.weights import writer
from vit_jax.weights.archive import write_npz, write_safetensors
from vit_jax.weights.infer_model import infer_model_options
from vit_jax.weights.metadata import from_model
from vit_jax.weights.reader import open_weights_file

TINY = {"image_size": 8, "patch": 4, "num_layers": 2, "hidden_size": 8, "mlp_size": 16}
TINY |= {"num_heads": 2, "num_classes": 3}


def tiny(**changes):
    return create_model("vit_ti16", **TINY | changes)


def read_npz(path):
    return dict(open_weights_file(path).read())


def some_arrays(model):
    random = np.random.default_rng(0)
    return {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in param_shapes(model).items()
    }


def published(name):
    """The name of a parameter in the published files."""
    for old, new in (
        ("/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/"),
        ("/LayerNorm_1/", "/LayerNorm_2/"),
        ("/MlpBlock_0/", "/MlpBlock_3/"),
    ):
        name = name.replace(old, new) if "encoderblock" in name else name
    return name


def save(path, arrays, rename=lambda name: name):
    np.savez(path, **{rename(name): array for name, array in arrays.items()})
    return path


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize("root", ["", "params/", "opt/target/"])
@pytest.mark.parametrize("spelling", [str, published], ids=["linen", "published"])
def test_read_accepts_all_prefixes_and_both_spellings(tmp_path, root, spelling):
    arrays = some_arrays(tiny(pre_logits=True))
    path = save(tmp_path / "vit.npz", arrays, lambda name: root + spelling(name))
    assert_same(read_npz(path), arrays)


@pytest.mark.parametrize("root", ["opt/target/", "params/"])
def test_read_ignores_and_lists_optimizer_state(tmp_path, root):
    arrays = some_arrays(tiny())
    moments = {f"opt/state/param_states/{name}/grad_ema": a for name, a in arrays.items()}
    moments |= {"opt/state/step": np.array(3), "chrono/accum_train_time": np.array(0.5)}
    stored = {root + name: a for name, a in arrays.items()} | moments
    path = save(tmp_path / "sam.npz", stored)
    assert_same(read_npz(path), arrays)
    assert set(open_weights_file(path).ignored) == set(moments)


def test_read_converts_bfloat16_exactly(tmp_path):
    arrays = {name: a.astype(ml_dtypes.bfloat16) for name, a in some_arrays(tiny()).items()}
    path = save(tmp_path / "half.npz", arrays, published)
    assert np.load(path)["cls"].dtype == np.dtype("V2")  # numpy stores bfloat16 as void.
    assert_same(read_npz(path), {name: a.astype(np.float32) for name, a in arrays.items()})


R_TI = {"patch": None, "image_size": 32, "num_layers": 1}


@pytest.mark.parametrize("rank", [1, 4])
def test_read_flattens_group_norms_of_old_files(tmp_path, rank):
    # Flax before 0.3.6 stored them as 1 1 1 C.
    model = create_model("r_ti16", **TINY | R_TI)
    arrays = some_arrays(model)
    norms = {f"gn_root/{leaf}": arrays[f"gn_root/{leaf}"] for leaf in ("scale", "bias")}
    stored = arrays | {n: a.reshape((1,) * (rank - 1) + (64,)) for n, a in norms.items()}
    path = save(tmp_path / "r.npz", stored, published)
    assert_same(read_npz(path), arrays)
    assert_same_model(create_model(**infer_model_options(open_weights_file(path))), model)


def test_read_renames_encoder_blocks_only(tmp_path):
    arrays = some_arrays(tiny(pool="map"))
    assert "MAPHead_0/MlpBlock_0/Dense_0/kernel" in arrays
    assert_same(read_npz(save(tmp_path / "map.npz", arrays, published)), arrays)


def test_read_keeps_the_order_of_blocks(tmp_path):
    # Sorted as text, encoderblock_10 comes before encoderblock_2.
    arrays = some_arrays(tiny(num_layers=12))
    assert_same(read_npz(save(tmp_path / "deep.npz", arrays, published)), arrays)


@pytest.mark.parametrize(
    "options",
    [{}, {"pool": "gap"}, {"pool": "map", "num_heads": 4}, {"pre_logits": True, "num_classes": 0}],
    ids=str,
)
def test_infer_model_options_gives_the_model_of_the_file(tmp_path, options):
    model = tiny(**options)
    found = open_weights_file(save(tmp_path / "vit.npz", some_arrays(model), published))
    assert_same_model(create_model(**infer_model_options(found)), model)


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_loaded_model_gives_equal_logits(tmp_path, pool):
    model = tiny(pool=pool, pre_logits=True)
    params = trees.unflatten(some_arrays(model))
    path = save(tmp_path / "vit.npz", trees.flatten(params), published)
    loaded = vit_jax.load_params(path, model)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    logits = jax.jit(lambda params: model.apply({"params": params}, images))
    assert np.abs(logits(params)).min() > 0
    np.testing.assert_array_equal(logits(loaded), logits(params))


def test_load_params_needs_permission_for_grid_and_head_and_prints_them(tmp_path, capsys):
    path = save(tmp_path / "vit.npz", some_arrays(tiny(pre_logits=True)), published)
    larger = tiny(image_size=(12, 8), num_classes=7)
    with pytest.raises(CheckpointError, match=r"vit\.npz does not fit .*\(resize=True.*pre_logits"):
        vit_jax.load_params(path, larger)
    loaded = trees.flatten(vit_jax.load_params(path, larger, new_head=True, resize=True))
    assert {name: array.shape for name, array in loaded.items()} == param_shapes(larger)
    assert not np.any(loaded["head/kernel"])
    printed = capsys.readouterr().out
    assert "position embeddings resized from 2x2 to 3x2" in printed
    assert "head replaced by zeros" in printed
    assert "pre_logits/kernel" in printed


# Rejected files; the message is one line that starts with the file.


def read_error(path, read=read_npz, colon=":"):
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}{colon} ")
    assert "\n" not in message
    return message


def test_read_rejects_a_missing_file(tmp_path):
    assert read_error(tmp_path / "none.npz").endswith("no such file.")


def test_read_rejects_an_unknown_format(tmp_path):
    path = save(tmp_path / "mixer.npz", {"stem/kernel": np.zeros((4, 4, 3, 8))})
    assert "unknown format: not a Vision Transformer" in read_error(path)


# The grid of positions.

POSITIONS = "Transformer/posembed_input/pos_embedding"


def opened(path, arrays, image_size=None, defaults=None, **changes):
    arrays = {name: np.asarray(a, np.float32) for name, a in (arrays | changes).items()}
    write_npz(path, arrays.items(), {} if image_size is None else {"image_size": image_size})
    return open_weights_file(path, defaults)


def test_grid_that_is_not_square_needs_metadata_or_model(tmp_path):
    model = tiny(image_size=(8, 12))
    arrays, path = some_arrays(model), tmp_path / "x.npz"
    assert opened(path, arrays, [8, 12]).grid == (2, 3)
    assert opened(path, arrays, defaults=from_model(model)).grid == (2, 3)
    with pytest.raises(CheckpointError, match="cannot infer the grid of 6 position embeddings"):
        opened(path, arrays)
    assert_same(trees.flatten(vit_jax.load_params(path, model)), arrays)
    with pytest.raises(CheckpointError, match="cannot infer the grid of 6 position embeddings"):
        vit_jax.load_params(path, tiny(image_size=(16, 12)), resize=True)


def test_load_params_rejects_another_grid_with_as_many_positions(tmp_path):
    arrays, path = some_arrays(tiny(image_size=24)), tmp_path / "6x6.npz"
    assert opened(path, arrays).grid == (6, 6)
    wide = tiny(image_size=(16, 36))
    with pytest.raises(CheckpointError, match="grid is 6x6 in the weights and 4x9 in"):
        vit_jax.load_params(path, wide)
    resized = trees.flatten(vit_jax.load_params(path, wide, resize=True))[POSITIONS]
    assert resized.shape == arrays[POSITIONS].shape
    corners = np.ix_([0], [0, 1, 9, 28, 36])  # The class token and the corners of 4x9.
    np.testing.assert_allclose(
        resized[corners], arrays[POSITIONS][np.ix_([0], [0, 1, 6, 31, 36])], atol=1e-6
    )
    assert opened(path, arrays, [16, 36]).grid == (4, 9)
    assert_same(trees.flatten(vit_jax.load_params(path, wide)), arrays)


def test_class_token_is_detected_by_its_name_not_by_the_count(tmp_path):
    # 16 patches without a class token are as many positions as 15 with one.
    arrays = some_arrays(tiny(pool="gap", image_size=16))
    found = opened(tmp_path / "gap.npz", arrays)
    assert (found.grid, found.pads_cls) == ((4, 4), False)
    with pytest.raises(CheckpointError, match="image_size 12x20 contradicts 16 position"):
        opened(tmp_path / "gap.npz", arrays, [12, 20])
    big_vision = {n.removeprefix("Transformer/posembed_input/"): a for n, a in arrays.items()}
    found = opened(tmp_path / "bv.npz", big_vision, cls=np.ones((1, 1, 8)))
    assert (found.grid, found.pads_cls) == ((4, 4), True)
    # Evaluated by resize_small(256) and central_crop(224).
    assert (found.metadata.crop, found.metadata.resample) == ("center", "tf_area_uint8")


def test_metadata_determines_whether_timms_class_token_has_a_position(tmp_path):
    # 50 positions are 7x7 and the class token, or 5x10 without.
    plan = writer.plan_export("safetensors", tiny(), param_shapes(tiny()))
    stored = dict(writer.export_tensors(plan, some_arrays(tiny())))
    stored["pos_embed"] = np.ones((1, 50, 8), np.float32)
    path = tmp_path / "timm.safetensors"
    for image_size, grid in (([20, 40], (5, 10)), ([28, 28], (7, 7))):
        write_safetensors(path, stored, {"image_size": image_size, "num_heads": 2})
        found = open_weights_file(path)
        assert (found.grid, found.pads_cls) == (grid, grid == (5, 10))
        assert found.metadata.image_size == (4 * grid[0], 4 * grid[1])
    write_safetensors(path, stored, {"image_size": [8, 8], "num_heads": 2})
    assert "image_size 8x8 contradicts 49 position" in read_error(path, open_weights_file)


# Every tensor is accounted for.


def test_load_params_lists_all_differences(tmp_path):
    arrays = some_arrays(tiny()) | {
        "Transformer/posembed_7/pos_embedding": np.ones((1, 5, 8), "f4")
    }
    arrays["embedding/bias"] = np.ones(9, "f4")
    del arrays["cls"], arrays[POSITIONS]
    path = save(tmp_path / "bad.npz", arrays)
    message = read_error(path, lambda path: vit_jax.load_params(path, tiny()), "")
    for text in (
        "cls is missing in the weights",
        f"{POSITIONS} is missing in the weights",
        "embedding/bias is (9,) in the weights and (8,) in the model",
        "Transformer/posembed_7/pos_embedding is not in the model",
    ):
        assert text in message


@pytest.mark.parametrize(
    "name",
    ["blocks.0.attn.norm.bias", "patch_embed.norm.bias", "head.fc.bias"],
)
def test_open_weights_file_rejects_unknown_tensors_by_name(tmp_path, name):
    plan = writer.plan_export("safetensors", tiny(), param_shapes(tiny()))
    stored = dict(writer.export_tensors(plan, some_arrays(tiny()))) | {name: np.ones(8, np.float32)}
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(stored, path)
    assert f"{name} is not a tensor of the format timm" in read_error(path, open_weights_file)


def test_open_weights_file_rejects_a_head_of_one_of_deits_tokens(tmp_path):
    stored = as_huggingface(timm_weights(), root="deit.")
    stored["deit.embeddings.distillation_token"] = np.ones((1, 1, 8), np.float32)
    safetensors.numpy.save_file(stored, tmp_path / "deit.safetensors")
    message = read_error(tmp_path / "deit.safetensors", open_weights_file)
    assert "classifier.bias is not a tensor of the format Hugging Face DeiT" in message


def test_open_weights_file_rejects_two_tensors_for_one_parameter(tmp_path):
    arrays = some_arrays(tiny(num_layers=1))
    stacked = {n.replace("block_0", "block"): a[None] for n, a in arrays.items() if "block_0" in n}
    assert "encoderblock/LayerNorm_0/bias is not a tensor" in read_error(
        save(tmp_path / "scanned.npz", arrays | stacked)
    )
    both = arrays | {published(name): a for name, a in arrays.items()}
    assert "LayerNorm_1/scale is not a tensor" in read_error(save(tmp_path / "both.npz", both))
    folder = tmp_path / "hf.safetensors"
    plan = writer.plan_export("huggingface", tiny(), param_shapes(tiny()))
    stored = dict(writer.export_tensors(plan, some_arrays(tiny())))
    stored |= {"layernorm.bias": stored["vit.layernorm.bias"]}
    safetensors.numpy.save_file(stored, folder)
    assert "and layernorm.bias both map to" in read_error(folder, open_weights_file)


def test_open_weights_file_rejects_heads_that_do_not_divide_the_width(tmp_path):
    plan = writer.plan_export("safetensors", tiny(), param_shapes(tiny()))
    path = tmp_path / "timm.safetensors"
    safetensors.numpy.save_file(dict(writer.export_tensors(plan, some_arrays(tiny()))), path)
    model = tiny(hidden_size=9, num_heads=3, gelu="erf")
    message = read_error(path, lambda path: vit_jax.load_params(path, model))
    assert "blocks.1.attn.qkv.weight is (24, 8): 8 rows are not divisible by 3 heads" in message
    assert "blocks.0.attn.proj.weight is (8, 8)" in message
    assert "cannot infer num_heads for width 8" in read_error(path, open_weights_file)


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        ("embedding/kernel", np.zeros((0, 0, 3, 8)), "(0, 0, 3, 8), expected non-empty"),
        ("embedding/kernel", np.zeros((2**40, 0, 3, 8)), "expected non-empty"),
        ("embedding/kernel", np.zeros((9000, 1, 1, 1)), "at most 8192 pixels"),
        ("head/bias", np.zeros(3, np.int32), "head/bias is int32 (3,), expected"),
        (POSITIONS, np.zeros((1, 200**2 + 1, 1)), "16384 patches are supported"),
        (POSITIONS, np.zeros((5, 8)), "(5, 8), which has the wrong number of axes"),
        (POSITIONS, np.zeros((1, 1, 8)), "grid of 0 position embeddings"),
    ],
)
def test_open_weights_file_rejects_extreme_shapes_and_dtypes(tmp_path, name, array, text):
    array = array if array.dtype == np.int32 else array.astype(np.float16)
    path = save(tmp_path / "x.npz", some_arrays(tiny()) | {name: array})
    assert text in read_error(path, open_weights_file)
    assert text in read_error(path, lambda path: vit_jax.load_params(path, tiny()))


@pytest.mark.parametrize(
    "lost", ["Transformer/posembed_input", "Transformer/encoderblock_0/MlpBlock_0", "embedding"]
)
def test_infer_model_options_rejects_a_file_with_missing_tensors(tmp_path, lost):
    rest = {name: a for name, a in some_arrays(tiny()).items() if not name.startswith(lost)}
    path = save(tmp_path / "part.npz", rest)
    with pytest.raises(CheckpointError, match=r"part\.npz"):
        vit_jax.load_params(path, tiny())
    with pytest.raises(CheckpointError, match=r"part\.npz"):
        infer_model_options(open_weights_file(path))
