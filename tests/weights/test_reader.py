"""Files of weights under our names: what is read of them, and what is refused."""

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.support.foreign_weights import as_huggingface, timm_weights
from vit_jax import create_model, trees
from vit_jax.errors import CheckpointError
from vit_jax.models.registry import param_shapes
from vit_jax.weights import writer
from vit_jax.weights.archive import write_npz, write_safetensors
from vit_jax.weights.infer_model import model_options
from vit_jax.weights.metadata import Facts, of_model
from vit_jax.weights.reader import open_foreign

TINY = {"image_size": 8, "patch": 4, "num_layers": 2, "hidden_size": 8, "mlp_size": 16}
TINY |= {"num_heads": 2, "num_classes": 3}


def tiny(**changes):
    return create_model("vit_ti16", **TINY | changes)


def read_npz(path):
    return dict(open_foreign(path).read())


def some_arrays(model):
    random = np.random.default_rng(0)
    return {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in param_shapes(model).items()
    }


def published(name):
    """Our name as the published files spell it."""
    for ours, theirs in (
        ("/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/"),
        ("/LayerNorm_1/", "/LayerNorm_2/"),
        ("/MlpBlock_0/", "/MlpBlock_3/"),
    ):
        name = name.replace(ours, theirs) if "encoderblock" in name else name
    return name


def save(path, arrays, rename=lambda name: name):
    np.savez(path, **{rename(name): array for name, array in arrays.items()})
    return path


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize("root", ["", "params/", "opt/target/"])
@pytest.mark.parametrize("spelling", [str, published], ids=["ours", "published"])
def test_all_roots_and_both_spellings_are_read(tmp_path, root, spelling):
    arrays = some_arrays(tiny(pre_logits=True))
    path = save(tmp_path / "vit.npz", arrays, lambda name: root + spelling(name))
    assert_same(read_npz(path), arrays)


@pytest.mark.parametrize("root", ["opt/target/", "params/"])
def test_an_optimisers_state_is_left_behind_and_told(tmp_path, root):
    arrays = some_arrays(tiny())
    moments = {f"opt/state/param_states/{name}/grad_ema": a for name, a in arrays.items()}
    moments |= {"opt/state/step": np.array(3), "chrono/accum_train_time": np.array(0.5)}
    stored = {root + name: a for name, a in arrays.items()} | moments
    path = save(tmp_path / "sam.npz", stored)
    assert_same(read_npz(path), arrays)
    assert set(open_foreign(path).left_out) == set(moments)


def test_numbers_in_bfloat16_are_read_as_they_are(tmp_path):
    arrays = {name: a.astype(ml_dtypes.bfloat16) for name, a in some_arrays(tiny()).items()}
    path = save(tmp_path / "half.npz", arrays, published)
    assert np.load(path)["cls"].dtype == np.dtype("V2")  # numpy has no name for it.
    assert_same(read_npz(path), {name: a.astype(np.float32) for name, a in arrays.items()})


R_TI = {"patch": None, "image_size": 32, "num_layers": 1}


@pytest.mark.parametrize("rank", [1, 4])
def test_group_norms_are_vectors_however_old_the_file(tmp_path, rank):
    # Flax before 0.3.6 stored them as 1 1 1 C.
    model = create_model("r_ti16", **TINY | R_TI)
    arrays = some_arrays(model)
    norms = {f"gn_root/{leaf}": arrays[f"gn_root/{leaf}"] for leaf in ("scale", "bias")}
    stored = arrays | {n: a.reshape((1,) * (rank - 1) + (64,)) for n, a in norms.items()}
    path = save(tmp_path / "r.npz", stored, published)
    assert_same(read_npz(path), arrays)
    assert create_model(**model_options(open_foreign(path))) == model


def test_only_encoder_blocks_are_renamed(tmp_path):
    arrays = some_arrays(tiny(pool="map"))
    assert "MAPHead_0/MlpBlock_0/Dense_0/kernel" in arrays
    assert_same(read_npz(save(tmp_path / "map.npz", arrays, published)), arrays)


def test_blocks_keep_their_numbers(tmp_path):
    # Sorted as text, encoderblock_10 comes before encoderblock_2.
    arrays = some_arrays(tiny(num_layers=12))
    assert_same(read_npz(save(tmp_path / "deep.npz", arrays, published)), arrays)


@pytest.mark.parametrize(
    "options",
    [{}, {"pool": "gap"}, {"pool": "map", "num_heads": 4}, {"pre_logits": True, "num_classes": 0}],
    ids=str,
)
def test_a_file_tells_the_options_of_its_model(tmp_path, options):
    model = tiny(**options)
    found = open_foreign(save(tmp_path / "vit.npz", some_arrays(model), published))
    assert create_model(**model_options(found)) == model


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_a_model_saved_and_loaded_gives_equal_logits(tmp_path, pool):
    model = tiny(pool=pool, pre_logits=True)
    params = trees.unflatten(some_arrays(model))
    path = save(tmp_path / "vit.npz", trees.flatten(params), published)
    loaded = vit_jax.load_params(path, model)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    logits = jax.jit(lambda params: model.apply({"params": params}, images))
    assert np.abs(logits(params)).min() > 0
    np.testing.assert_array_equal(logits(loaded), logits(params))


def test_a_larger_grid_and_a_new_head_need_permission_and_are_told(tmp_path, capsys):
    path = save(tmp_path / "vit.npz", some_arrays(tiny(pre_logits=True)), published)
    larger = tiny(image_size=(12, 8), num_classes=7)
    with pytest.raises(CheckpointError, match=r"vit\.npz does not fit .*init\.resize.*pre_logits"):
        vit_jax.load_params(path, larger)
    loaded = trees.flatten(vit_jax.load_params(path, larger, new_head=True, resize=True))
    assert {name: array.shape for name, array in loaded.items()} == param_shapes(larger)
    assert not np.any(loaded["head/kernel"])
    printed = capsys.readouterr().out
    assert "position embeddings resized from 2x2 to 3x2" in printed
    assert "head replaced by zeros" in printed
    assert "pre_logits/kernel" in printed


# What is refused, in one line that names the file.


def refusal(path, read=read_npz, colon=":"):
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}{colon} ")
    assert "\n" not in message
    return message


def test_a_missing_file_is_refused(tmp_path):
    assert refusal(tmp_path / "none.npz").endswith("no such file.")


def test_arrays_of_something_else_are_refused(tmp_path):
    path = save(tmp_path / "mixer.npz", {"stem/kernel": np.zeros((4, 4, 3, 8))})
    assert "no Vision Transformer" in refusal(path)


# The grid of positions.

PLACE = "Transformer/posembed_input/pos_embedding"


def opened(path, arrays, image_size=None, like=Facts(), **changes):  # noqa: B008
    arrays = {name: np.asarray(a, np.float32) for name, a in (arrays | changes).items()}
    write_npz(path, arrays.items(), {} if image_size is None else {"image_size": image_size})
    return open_foreign(path, like)


def test_positions_of_no_square_are_refused_unless_metadata_or_model_tell_the_grid(tmp_path):
    model = tiny(image_size=(8, 12))
    arrays, path = some_arrays(model), tmp_path / "x.npz"
    assert opened(path, arrays, [8, 12]).grid == (2, 3)
    assert opened(path, arrays, like=of_model(model)).grid == (2, 3)
    with pytest.raises(CheckpointError, match="6 position embeddings are no square"):
        opened(path, arrays)
    assert_same(trees.flatten(vit_jax.load_params(path, model)), arrays)
    with pytest.raises(CheckpointError, match="6 position embeddings are no square"):
        vit_jax.load_params(path, tiny(image_size=(16, 12)), resize=True)


def test_a_grid_of_as_many_places_is_another_grid(tmp_path):
    arrays, path = some_arrays(tiny(image_size=24)), tmp_path / "6x6.npz"
    assert opened(path, arrays).grid == (6, 6)
    wide = tiny(image_size=(16, 36))
    with pytest.raises(CheckpointError, match="position grid 6x6 there, 4x9 here"):
        vit_jax.load_params(path, wide)
    resized = trees.flatten(vit_jax.load_params(path, wide, resize=True))[PLACE]
    assert resized.shape == arrays[PLACE].shape
    corners = np.ix_([0], [0, 1, 9, 28, 36])  # The class token's, and of 4x9.
    np.testing.assert_allclose(
        resized[corners], arrays[PLACE][np.ix_([0], [0, 1, 6, 31, 36])], atol=1e-6
    )
    assert opened(path, arrays, [16, 36]).grid == (4, 9)
    assert_same(trees.flatten(vit_jax.load_params(path, wide)), arrays)


def test_whether_there_is_a_class_token_is_told_by_its_name_and_not_by_a_count(tmp_path):
    # 16 patches without a class token are as many places as 15 with one.
    arrays = some_arrays(tiny(pool="gap", image_size=16))
    found = opened(tmp_path / "gap.npz", arrays, [12, 20])
    assert (found.grid, found.pads_cls) == ((4, 4), False)
    big_vision = {n.removeprefix("Transformer/posembed_input/"): a for n, a in arrays.items()}
    found = opened(tmp_path / "bv.npz", big_vision, cls=np.ones((1, 1, 8)))
    assert (found.grid, found.pads_cls) == ((4, 4), True)


def test_metadata_tells_whether_timms_class_token_has_a_place(tmp_path):
    # 50 places are 7x7 and the class token's, or 5x10 without.
    plan = writer.plan_export("safetensors", tiny(), param_shapes(tiny()))
    stored = dict(writer.tensors(plan, some_arrays(tiny())))
    stored["pos_embed"] = np.ones((1, 50, 8), np.float32)
    for image_size, grid in (([20, 40], (5, 10)), ([28, 28], (7, 7)), ([8, 8], (7, 7))):
        path = tmp_path / "timm.safetensors"
        write_safetensors(path, stored, {"image_size": image_size, "num_heads": 2})
        found = open_foreign(path)
        assert (found.grid, found.pads_cls) == (grid, grid == (5, 10))
        assert found.facts.image_size == (4 * grid[0], 4 * grid[1])


# Nothing is skipped.


def test_all_that_does_not_fit_is_told_at_once(tmp_path):
    arrays = some_arrays(tiny()) | {
        "Transformer/posembed_7/pos_embedding": np.ones((1, 5, 8), "f4")
    }
    arrays["embedding/bias"] = np.ones(9, "f4")
    del arrays["cls"], arrays[PLACE]
    path = save(tmp_path / "bad.npz", arrays)
    message = refusal(path, lambda path: vit_jax.load_params(path, tiny()), "")
    for words in (
        "cls is missing there",
        f"{PLACE} is missing there",
        "embedding/bias is (9,) there, (8,) here",
        "Transformer/posembed_7/pos_embedding has no place here",
    ):
        assert words in message


@pytest.mark.parametrize(
    "name", ["dist_token", "fc_norm.weight", "head_dist.bias", "norm_pre.bias"]
)
def test_names_without_a_place_are_refused_by_name(tmp_path, name):
    plan = writer.plan_export("safetensors", tiny(), param_shapes(tiny()))
    stored = dict(writer.tensors(plan, some_arrays(tiny()))) | {name: np.ones(8, np.float32)}
    path = tmp_path / "deit.safetensors"
    safetensors.numpy.save_file(stored, path)
    assert f"{name} has no place in a model of timm" in refusal(path, open_foreign)


def test_hugging_faces_deit_is_refused_for_its_second_token(tmp_path):
    stored = as_huggingface(timm_weights(), root="deit.")
    stored["deit.embeddings.distillation_token"] = np.ones((1, 1, 8), np.float32)
    safetensors.numpy.save_file(stored, tmp_path / "deit.safetensors")
    message = refusal(tmp_path / "deit.safetensors", open_foreign)
    assert "deit.embeddings.distillation_token has no place" in message


def test_two_names_for_one_tensor_are_refused(tmp_path):
    arrays = some_arrays(tiny(num_layers=1))
    stacked = {n.replace("block_0", "block"): a[None] for n, a in arrays.items() if "block_0" in n}
    assert "encoderblock/LayerNorm_0/bias has no" in refusal(
        save(tmp_path / "scanned.npz", arrays | stacked)
    )
    both = arrays | {published(name): a for name, a in arrays.items()}
    assert "LayerNorm_1/scale has no place" in refusal(save(tmp_path / "both.npz", both))
    folder = tmp_path / "hf.safetensors"
    plan = writer.plan_export("huggingface", tiny(), param_shapes(tiny()))
    stored = dict(writer.tensors(plan, some_arrays(tiny())))
    stored |= {"layernorm.bias": stored["vit.layernorm.bias"]}
    safetensors.numpy.save_file(stored, folder)
    assert "(which layernorm.bias is already)" in refusal(folder, open_foreign)


def test_heads_that_do_not_divide_the_rows_are_refused(tmp_path):
    plan = writer.plan_export("safetensors", tiny(), param_shapes(tiny()))
    path = tmp_path / "timm.safetensors"
    safetensors.numpy.save_file(dict(writer.tensors(plan, some_arrays(tiny()))), path)
    model = tiny(hidden_size=9, num_heads=3, gelu="erf")
    message = refusal(path, lambda path: vit_jax.load_params(path, model))
    assert "blocks.1.attn.qkv.weight is (24, 8): 8 rows are not divisible by 3 heads" in message
    assert "blocks.0.attn.proj.weight is (8, 8)" in message
    assert "nothing says how many heads these layers of width 8" in refusal(path, open_foreign)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("embedding/kernel", np.zeros((0, 0, 3, 8)), "(0, 0, 3, 8), which no weights are"),
        ("embedding/kernel", np.zeros((2**40, 0, 3, 8)), "which no weights are"),
        ("embedding/kernel", np.zeros((9000, 1, 1, 1)), "more than 8192 pixels"),
        ("head/bias", np.zeros(3, np.int32), "head/bias is int32 (3,), which no weights are"),
        (PLACE, np.zeros((1, 200**2 + 1, 1)), "more than 16384 patches"),
        (PLACE, np.zeros((5, 8)), "must be 1 T D"),
        (PLACE, np.zeros((1, 1, 8)), "0 position embeddings"),
    ],
)
def test_what_would_take_memory_or_be_no_model_is_refused_at_the_door(tmp_path, name, array, words):
    array = array if array.dtype == np.int32 else array.astype(np.float16)
    path = save(tmp_path / "x.npz", some_arrays(tiny()) | {name: array})
    assert words in refusal(path, open_foreign)
    assert words in refusal(path, lambda path: vit_jax.load_params(path, tiny()))


@pytest.mark.parametrize(
    "lost", ["Transformer/posembed_input", "Transformer/encoderblock_0/MlpBlock_0", "embedding"]
)
def test_a_file_without_a_part_of_the_vit_is_refused(tmp_path, lost):
    rest = {name: a for name, a in some_arrays(tiny()).items() if not name.startswith(lost)}
    path = save(tmp_path / "part.npz", rest)
    with pytest.raises(CheckpointError, match=r"part\.npz"):
        vit_jax.load_params(path, tiny())
    with pytest.raises(CheckpointError, match=r"part\.npz"):
        model_options(open_foreign(path))
