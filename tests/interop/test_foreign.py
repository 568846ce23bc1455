"""The official code's files: three roots, two spellings, and what is refused."""

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import create_model, trees
from vit_jax.errors import CheckpointError
from vit_jax.interop.foreign import open_foreign
from vit_jax.interop.options import model_options
from vit_jax.models import param_shapes

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


def test_an_old_optimisers_state_is_left_behind(tmp_path):
    arrays = some_arrays(tiny())
    moments = {f"opt/state/param_states/{name}/grad_ema": a for name, a in arrays.items()}
    stored = {f"opt/target/{name}": a for name, a in arrays.items()} | moments
    assert_same(read_npz(save(tmp_path / "sam.npz", stored | {"opt/state/step": 3})), arrays)


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


def refusal(path, read=read_npz):
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_a_missing_file_is_refused(tmp_path):
    assert refusal(tmp_path / "none.npz").endswith("no such file.")


def test_arrays_of_something_else_are_refused(tmp_path):
    path = save(tmp_path / "mixer.npz", {"stem/kernel": np.zeros((4, 4, 3, 8))})
    assert "no Vision Transformer" in refusal(path)


def test_positions_of_no_square_are_refused_unless_the_model_has_their_grid(tmp_path):
    model = tiny(image_size=(8, 12))
    path = save(tmp_path / "x.npz", some_arrays(model), published)
    assert "6 position embeddings are no square" in refusal(path)
    assert_same(trees.flatten(vit_jax.load_params(path, model)), some_arrays(model))
    with pytest.raises(CheckpointError, match="6 position embeddings are no square"):
        vit_jax.load_params(path, tiny(image_size=(16, 12)), resize=True)


@pytest.mark.parametrize(
    "lost", ["Transformer/posembed_input", "Transformer/encoderblock_0/MlpBlock_0"]
)
def test_a_file_without_a_part_of_the_vit_is_refused(tmp_path, lost):
    rest = {name: a for name, a in some_arrays(tiny()).items() if not name.startswith(lost)}
    path = save(tmp_path / "part.npz", rest)
    with pytest.raises(CheckpointError, match=r"part\.npz"):
        vit_jax.load_params(path, tiny())
    with pytest.raises(CheckpointError, match=r"part\.npz"):
        model_options(open_foreign(path))
