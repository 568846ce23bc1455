"""Views of stored parameters: fixed positions left out, and written as learned ones."""

import numpy as np
import pytest

from tests.support.tiny import forward, some_images, some_params, tiny
from vit_jax import save_params
from vit_jax.models import trees
from vit_jax.models.position import sincos
from vit_jax.weights import load
from vit_jax.weights.convert import convert
from vit_jax.weights.lazy_weights import LazyWeights, with_fixed_positions, without_fixed_positions
from vit_jax.weights.metadata import from_model
from vit_jax.weights.tensor_layouts import POSITIONS

KINDS = ("sincos", "sincos_mae")


def lazy(model, params) -> LazyWeights:
    flat = trees.flatten(params)

    def read(names=None):
        yield from ((n, array) for n, array in flat.items() if names is None or n in names)

    shapes = {name: array.shape for name, array in flat.items()}
    return LazyWeights("here", shapes, model.grid, from_model(model), read, lambda: None)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_positions_become_learned_ones_with_the_same_outputs(kind):
    model, images = tiny(pos_embed=kind), some_images(2, 8, 12, 3)
    params = some_params(model)
    weights = with_fixed_positions(lazy(model, params), model, model.grid)
    learned = trees.unflatten(dict(weights.read(None)))
    assert weights.metadata.pos_embed == "learned"
    assert weights.shapes[POSITIONS] == (1, 7, 32)
    outputs = forward(tiny(), learned, images)
    np.testing.assert_array_equal(outputs, forward(model, params, images))


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_left_out_only_if_the_model_computes_their_values(kind):
    model = tiny()
    params = trees.flatten(some_params(model))
    fixed = tiny(pos_embed=kind)
    for stored, is_left_out in (
        (np.pad(sincos((2, 3), 32, kind), ((1, 0), (0, 0))), True),
        (np.pad(sincos((2, 3), 32, kind), ((1, 0), (0, 0))) + 0.01, False),
        (np.pad(sincos((3, 2), 32, kind), ((1, 0), (0, 0))), False),
        (np.pad(sincos((2, 3), 32, kind), ((0, 1), (0, 0))), False),
        (np.pad(sincos((2, 3), 32, {*KINDS}.difference({kind}).pop()), ((1, 0), (0, 0))), False),
    ):
        weights = lazy(model, trees.unflatten(params | {POSITIONS: stored[None]}))
        found = without_fixed_positions(weights, fixed)
        assert (POSITIONS not in found.shapes) == is_left_out
        assert POSITIONS in without_fixed_positions(weights, model).shapes


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["safetensors", "huggingface"])
def test_convert_writes_fixed_positions_for_timm_and_transformers(file_format, tmp_path, capsys):
    model = tiny(pos_embed="sincos_mae", gelu="erf", num_classes=0, image_size=(8, 8))
    source, destination = tmp_path / "own.npz", tmp_path / "new"
    save_params(source, model, some_params(model))
    suffix = ".safetensors" if file_format == "safetensors" else ""
    convert(str(source), f"{destination}{suffix}", file_format=file_format)
    assert "fixed positions" in capsys.readouterr().out
    loaded = load.load(f"{destination}{suffix}")
    assert loaded.model.config.pos_embed == "learned"
    stored = trees.flatten(loaded.params())[POSITIONS]
    np.testing.assert_array_equal(stored[0, 1:], sincos((2, 2), 32, "sincos_mae"))
