"""Every example is corrupted and scored once and alike, for any batch size and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.config.schema import Data, Task
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.data.sources import ArraySource
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import DataError
from vit_jax.evaluation import masked_accuracy
from vit_jax.tasks.masked_patches import MaskedPatches, draw_corruption

B, SIZE = 16, (8, 12)


def some_source(count: int) -> ArraySource:
    images = np.random.default_rng(count).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)
    return ArraySource(images, np.zeros(count, int), ("anything",))


class Written:
    """A model that predicts the same of every image."""

    patch_size, grid = 4, (2, 3)

    @staticmethod
    def apply(variables, images, is_masked):
        return jnp.broadcast_to(variables["params"], (len(images), *variables["params"].shape))


@functools.cache
def compiled_score(targets, devices):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    score = MaskedPatches(Task(targets=targets), Written).score
    return jax.jit(score, out_shardings=mesh_lib.replicated(mesh)), mesh


def evaluate(source, guesses, targets="pixels", devices=1, batch_size=B, **options):
    score, mesh = compiled_score(targets, devices)
    return masked_accuracy.score_examples(
        score,
        jax.device_put(guesses, mesh_lib.replicated(mesh)),
        source,
        EvalRecipe.from_data(Data(), SIZE),
        batch_size=batch_size,
        sharding=mesh_lib.batch_sharding(mesh),
        **options,
    )


def some_guesses(size=48):
    return np.random.default_rng(1).normal(size=(6, size)).astype(np.float32)


def expected_losses(source, guesses):
    """Of every example by itself, corrupted as its number tells."""
    key, losses = jax.random.key(0, impl="threefry2x32"), []
    draw = jax.jit(
        lambda number: draw_corruption(jax.random.fold_in(key, number), 6, Task()).is_corrupted
    )
    for number in range(len(source)):
        patches = source[number]["image"].reshape(2, 4, 3, 4, 3).swapaxes(1, 2).reshape(6, 48)
        errors = np.square(guesses - (patches / 127.5 - 1))
        losses.append(errors[np.asarray(draw(number))].mean())
    return losses


@pytest.mark.parametrize("count", [1, B - 1, B, B + 1])
def test_every_example_counts_once_on_one_device_and_on_eight(count):
    source, guesses = some_source(count), some_guesses()
    expected = expected_losses(source, guesses)
    for devices in (1, 8):
        done = []
        scores = evaluate(source, guesses, devices=devices, show=done.append)
        np.testing.assert_allclose(scores.loss, expected, rtol=1e-5)
        means = scores.means()
        assert set(means) == {"n", "loss"}  # Pixels are neither right nor wrong.
        assert means["n"] == done[-1] == count
        assert means["loss"] == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("batch_size", [8, 24])
def test_the_batch_size_changes_no_score(batch_size):
    source, guesses = some_source(25), some_guesses()
    one, other = evaluate(source, guesses), evaluate(source, guesses, batch_size=batch_size)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-6)


def test_colours_have_a_top1_which_is_the_share_of_corrupted_patches_that_are_right():
    source = ArraySource(np.zeros((5, *SIZE, 3), np.uint8), np.zeros(5, int), ("black",))
    guesses = np.zeros((6, 512), np.float32)
    guesses[:, 0] = 9.0
    means = evaluate(source, guesses, "mean").means()
    assert (means["n"], means["top1"]) == (5, 1.0)
    assert means["loss"] == pytest.approx(np.log(1 + 511 * np.exp(-9.0)), rel=1e-5)
    assert evaluate(source, -guesses, "mean").means()["top1"] == 0.0
    guesses[:3, 0] = -9.0
    scores = evaluate(source, guesses, "mean")
    assert set(np.round(scores.top1 * 3)) <= {0, 1, 2, 3}
    assert scores.means()["top1"] == pytest.approx(scores.top1.mean())
    assert 0 < scores.means()["top1"] < 1


def test_a_stopped_evaluation_returns_nothing():
    done = []
    options = {"show": done.append, "is_stopped": lambda: bool(done)}
    assert evaluate(some_source(6 * B), some_guesses(), **options) is None
    assert len(done) <= 3, "two batches are ahead"


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="empty"):
        evaluate(some_source(0), some_guesses())
