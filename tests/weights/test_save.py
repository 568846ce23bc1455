"""Parameters of a program, saved so that every command computes the same outputs."""

import dataclasses

import jax
import numpy as np
import pytest

import vit_jax
from tests.support.tiny import assert_same_model, some_params, tiny_encoder
from tests.support.tiny import tiny as tiny_model
from vit_jax.config.schema import Data
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import trees
from vit_jax.models.encoders import ENCODERS
from vit_jax.models.registry import param_shapes
from vit_jax.weights import load, save, writer

NAMES = ("cat", "dog", "Österreich")
SIZE = {"num_layers": 1, "hidden_size": 8, "mlp_size": 16, "num_heads": 2}


def tiny(**options):
    return vit_jax.create_model(
        "vit_b4", **SIZE | {"num_classes": 3, "image_size": (8, 12)} | options
    )


def params_of(model) -> dict:
    random = np.random.default_rng(0)
    return {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in param_shapes(model).items()
    }


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "options",
    [
        {"gelu": "erf", "pixel_stats": "imagenet", "norm_eps": 1e-5},
        {"layer_scale": 0.1, "registers": 2, "pool": "gap"},
        {"pos_embed": "none", "num_classes": 0},
    ],
)
def test_saved_file_is_read_without_assumptions(tmp_path, capsys, suffix, options):
    model = tiny(**options)
    arrays = params_of(model)
    path = tmp_path / f"own{suffix}"
    names = NAMES if model.num_classes else None
    save.save_params(path, model, trees.unflatten(arrays), names)
    loaded = vit_jax.load(path)
    assert capsys.readouterr().err == ""
    for field in ("gelu", "pixel_stats", "norm_eps", "registers", "pool", "pos_embed"):
        assert getattr(loaded.model.config, field) == getattr(model.config, field), field
    assert loaded.model.image_size == (8, 12)
    assert loaded.classes == (names or ())
    images = np.random.default_rng(1).integers(0, 256, (2, 30, 20, 3), np.uint8)
    np.testing.assert_array_equal(loaded.preprocess(images), vit_jax.preprocess(images, model))
    for name, array in trees.flatten(loaded.params).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_saved_bit_model_is_read_without_assumptions(tmp_path, capsys, suffix):
    model = vit_jax.create_model("bit_r26x1", num_classes=2, image_size=16)
    save.save_params(tmp_path / f"bit{suffix}", model, trees.unflatten(params_of(model)))
    assert vit_jax.load(tmp_path / f"bit{suffix}").model.image_size == (16, 16)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_of_a_short_dtype_are_saved_as_float32(tmp_path, dtype):
    model, path = tiny(), tmp_path / "own.npz"
    arrays = {name: jax.numpy.asarray(a, dtype) for name, a in params_of(model).items()}
    save.save_params(path, model, trees.unflatten(arrays))
    for name, array in trees.flatten(load.load(path).params()).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[name].astype(np.float32))


def test_preprocessing_of_a_recipe_is_saved(tmp_path):
    model = tiny(image_size=8)
    recipe = EvalRecipe.from_data(
        Data(eval_crop="timm", resample="bicubic", crop_fraction=0.9), (8, 8)
    )
    params = jax.tree.map(jax.numpy.asarray, trees.unflatten(params_of(model)))
    save.save_params(str(tmp_path / "own.npz"), model, params, recipe=recipe)
    loaded = load.load(tmp_path / "own.npz")
    assert loaded.recipe == recipe
    assert not loaded.has_class_names


def test_new_file_replaces_the_old_one_only_if_it_can_be_read(tmp_path):
    model, path = tiny(), tmp_path / "own.npz"
    arrays = params_of(model)
    save.save_params(path, model, trees.unflatten(arrays), NAMES)
    old = path.read_bytes()
    broken = arrays | {"head/bias": np.full(3, np.nan, np.float32)}
    with pytest.raises(CheckpointError, match="head/bias contains values that are not finite"):
        save.save_params(path, model, trees.unflatten(broken), NAMES)
    assert path.read_bytes() == old
    save.save_params(path, model, trees.unflatten(arrays | {"head/bias": np.ones(3, "f4")}))
    assert load.load(path).params()["head"]["bias"].tolist() == [1, 1, 1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["own.npz", "own.npz.md"]
    assert "Converted from" not in (tmp_path / "own.npz.md").read_text()


def test_errors_name_the_file_and_what_is_expected(tmp_path):
    model = tiny()
    arrays = params_of(model)
    params = trees.unflatten(arrays)
    with pytest.raises(ConfigError, match=r"own\.pth: unknown suffix; expected \.npz or"):
        save.save_params(tmp_path / "own.pth", model, params)
    with pytest.raises(ConfigError, match="found 2 class names for a head of 3 classes"):
        save.save_params(tmp_path / "own.npz", model, params, ["a", "b"])
    with pytest.raises(CheckpointError, match=r"model: params/\S+ is \(8,\), expected no such"):
        save.save_params(tmp_path / "own.npz", model, {"params": params})
    with pytest.raises(CheckpointError, match=r"head/bias is \(3,\), expected \(4,\); head/kernel"):
        save.save_params(tmp_path / "own.npz", tiny(num_classes=4), params)
    with pytest.raises(ConfigError, match=r"own\.safetensors: timm .*omits.*Save it as own\.npz\."):
        save.save_params(tmp_path / "own.safetensors", tiny(pre_logits=True), params)
    (tmp_path / "own.npz.md").write_text("My notes.")
    with pytest.raises(ConfigError, match=r"own\.npz\.md exists and would be overwritten"):
        save.save_params(tmp_path / "own.npz", model, params)
    assert [file.name for file in tmp_path.iterdir()] == ["own.npz.md"]


def test_file_that_reads_back_with_other_values_is_not_kept(tmp_path, monkeypatch):
    def export_tensors(plan, params):
        yield from ((name, array * 2) for name, array in original(plan, params))

    original, model = writer.export_tensors, tiny()
    monkeypatch.setattr(writer, "export_tensors", export_tensors)
    with pytest.raises(CheckpointError, match=r"own\.npz: \S+ has other values when it is read"):
        save.save_params(tmp_path / "own.npz", model, trees.unflatten(params_of(model)))
    assert list(tmp_path.iterdir()) == []


def test_class_names_of_an_older_file_are_refused(tmp_path):
    model, names = tiny(), tmp_path / "own.classes.txt"
    names.write_text("a\nb\nc\n")
    with pytest.raises(ConfigError, match=r"own\.classes\.txt exists: its lines would name"):
        save.save_params(tmp_path / "own.npz", model, trees.unflatten(params_of(model)))


OPTIONS = {
    "glu": {"mlp": "glu", "mlp_norm": True, "qkv_bias": "none"},
    "map": {"pool": "map", "class_token": True, "registers": 2},
    "clip": {"pre_norm": True, "patch_bias": False, "projection": 7, "gelu": "quick"},
    "rope": {"pos_embed": "rope", "rope": "eva02", "pool": "gap", "fc_norm": True},
}


@pytest.mark.parametrize("name", [*ENCODERS, *OPTIONS])
def test_npz_file_keeps_all_options_of_an_encoder(tmp_path, capsys, name):
    model = tiny_model(**OPTIONS[name]) if name in OPTIONS else tiny_encoder(name)
    params = some_params(model)
    save.save_params(tmp_path / "own.npz", model, params)
    loaded = load.load(tmp_path / "own.npz")
    assert "assumed" not in capsys.readouterr().err
    scale = {"layer_scale": model.config.layer_scale}  # Its initial value is not stored.
    config = dataclasses.replace(loaded.model.config, **scale)
    assert_same_model(loaded.model.clone(config=config), model)
