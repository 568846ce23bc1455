"""Masked patch prediction against numpy: corruption, targets, loss and scores."""

import collections
import functools

import jax
import numpy as np
import pytest

from vit_jax.config.schema import Config, Data, Task
from vit_jax.data.preprocess import to_unit_range
from vit_jax.errors import ConfigError
from vit_jax.models import trees
from vit_jax.models.registry import param_shapes, section
from vit_jax.models.vit import patchify
from vit_jax.tasks.masked_patches import (
    MaskedPatches,
    colour_classes,
    draw_corruption,
    patches_of_classes,
    unpatchify,
)

SHAPE = {"patch": 4, "num_layers": 1, "hidden_size": 8, "mlp_size": 8, "num_heads": 2}


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected_classes(pixels, patch, side):
    """Classes N S of an image H W 3 uint8, in integers only."""
    H, W, _ = pixels.shape
    cell, classes = patch // side, []
    for top in range(0, H, patch):
        for left in range(0, W, patch):
            cells = []
            for y in range(top, top + patch, cell):
                for x in range(left, left + patch, cell):
                    total = pixels[y : y + cell, x : x + cell].astype(int).sum((0, 1))
                    r, g, b = total * 8 // (256 * cell * cell)
                    cells.append(64 * r + 8 * g + b)
            classes.append(cells)
    return np.array(classes)


def classes_of(pixels, patch, side):
    return np.asarray(colour_classes(patchify(to_unit_range(pixels)[None], patch), side))[0]


# Targets.


def test_colour_classes_are_mean_colours_in_three_bits_per_channel():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, 4:] = 255
    pixels[4:, :4] = (32, 64, 96)
    pixels[4:, 4:6] = (250, 0, 31)
    pixels[4:, 6:] = (0, 0, 31)  # With its other half: (125, 0, 31).
    assert classes_of(pixels, 4, 1).tolist() == [[0], [511], [64 * 1 + 8 * 2 + 3], [64 * 3]]


def test_colour_classes_put_every_grey_level_into_its_bin():
    for level in range(256):
        grey = np.full((14, 14, 3), level, np.uint8)
        assert classes_of(grey, 14, 1) == 73 * (level // 32), level


@pytest.mark.parametrize(("patch", "side"), [(4, 1), (8, 1), (4, 4), (8, 4), (16, 4)])
def test_colour_classes_equal_those_of_integer_arithmetic(patch, side):
    pixels = random_pixels(2 * patch, 3 * patch, 3)
    expected = expected_classes(pixels, patch, side)
    assert expected.shape == (6, side * side)
    np.testing.assert_array_equal(classes_of(pixels, patch, side), expected)


@pytest.mark.parametrize("side", [1, 4])
def test_patches_of_classes_are_the_middle_of_the_levels_of_each_colour(side):
    classes = np.random.default_rng(0).integers(0, 512, (2, 6, side**2))
    patches = np.asarray(patches_of_classes(classes, 8))
    np.testing.assert_array_equal(colour_classes(patches, side), classes)
    first = patches[0, 0].reshape(8, 8, 3)[0, 0]  # Of the first cell: red, green, blue.
    levels = np.array([classes[0, 0, 0] // 64, classes[0, 0, 0] // 8 % 8, classes[0, 0, 0] % 8])
    np.testing.assert_allclose((first + 1) * 127.5, 32 * levels + 16, rtol=1e-6)


def test_unpatchify_is_the_inverse_of_patchify():
    images = random_pixels(2, 8, 12, 3)
    np.testing.assert_array_equal(unpatchify(patchify(images, 4), (2, 3)), images)


# Corruption.


COUNT = 4000


@functools.cache
def corruptions(N, **shares):
    """Returns is_corrupted, is_masked and source of COUNT images."""
    keys = jax.random.split(jax.random.key(0), COUNT)
    draw = jax.jit(jax.vmap(lambda key: draw_corruption(key, N, Task(**shares))))
    return [np.asarray(part) for part in draw(keys)]


@pytest.mark.parametrize(("N", "corrupted", "num"), [(2, 0.5, 1), (9, 0.4, 4), (196, 0.15, 29)])
def test_draw_corruption_corrupts_exactly_the_share_of_patches(N, corrupted, num):
    is_corrupted, is_masked, source = corruptions(N, corrupted=corrupted)
    assert set(is_corrupted.sum(1)) == {num}
    is_replaced = source != np.arange(N)
    assert not np.any((is_masked | is_replaced) & ~is_corrupted | is_masked & is_replaced)
    assert 0 <= source.min() <= source.max() < N


def test_draw_corruption_by_default_masks_80_and_replaces_10_percent_of_half_the_patches():
    is_corrupted, is_masked, source = corruptions(196)
    is_replaced = source != np.arange(196)
    assert set(is_corrupted.sum(1)) == {98}
    # Of 392,000 draws: five deviations are 0.0032 and 0.0024.
    assert is_masked.sum() / is_corrupted.sum() == pytest.approx(0.8, abs=0.0032)
    assert is_replaced.sum() / is_corrupted.sum() == pytest.approx(0.1, abs=0.0024)


def test_draw_corruption_is_uniform_over_patches_and_their_replacements():
    is_corrupted, _, source = corruptions(5, corrupted=0.4, mask_share=0.0, random_share=1.0)
    np.testing.assert_allclose(is_corrupted.mean(0), 0.4, atol=0.04)
    own = np.broadcast_to(np.arange(5), source.shape)
    pairs = collections.Counter(zip(own[is_corrupted], source[is_corrupted], strict=True))
    assert set(pairs) == {(a, b) for a in range(5) for b in range(5) if a != b}  # Never itself.
    np.testing.assert_allclose(list(pairs.values()), 2 * COUNT / 20, rtol=0.25)


def test_draw_corruption_differs_for_every_key():
    for part in corruptions(196):
        assert len({row.tobytes() for row in part}) == COUNT


# Loss.


def quick_key(seed):
    return jax.random.key(seed, impl="rbg")  # Quicker to compile than the default.


class Predictions:
    """A model whose predictions are its parameters; it records its last call."""

    patch_size, grid = 4, (2, 3)

    def apply(self, variables, images, is_masked, *, train, rngs):
        self.called = {"images": images, "is_masked": is_masked, "train": train, "rngs": rngs}
        return variables["params"]


ALL_MASKED = {"mask_share": 1.0, "random_share": 0.0}  # The mask is then what is corrupted.


def batch_of(pixels, **more):
    mask = np.ones(len(pixels), np.float32)
    return {"image": to_unit_range(pixels), "mask": mask, "number": np.arange(len(pixels))} | more


@functools.cache
def compiled_loss(targets, **shares):
    model = Predictions()
    task = MaskedPatches(Task(targets=targets, **shares), model)
    return jax.jit(lambda *inputs: (*task.loss(*inputs), model.called))


def loss_of(predictions, pixels, targets, make_key=quick_key, seed=0, mask=(1, 1, 1), **shares):
    """Returns loss, metrics, and the call of the model."""
    batch = batch_of(pixels, mask=np.float32(mask))
    return compiled_loss(targets, **shares)(predictions, batch, make_key(seed))


def cross_entropy(logits, labels):
    log_probabilities = logits - np.log(np.exp(np.float64(logits)).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probabilities, labels[..., None], -1)[..., 0]


def random_predictions(size):
    return np.random.default_rng(1).normal(size=(3, 6, size)).astype(np.float32)


def squared_errors(predictions, pixels):
    cut = pixels.reshape(3, 2, 4, 3, 4, 3).swapaxes(2, 3).reshape(3, 6, 48)
    return np.square(predictions - (cut / 127.5 - 1))


@pytest.mark.parametrize(("targets", "side"), [("mean", 1), ("downsized", 4)])
def test_loss_is_the_mean_cross_entropy_of_the_corrupted_patches(targets, side):
    pixels, S = random_pixels(3, 8, 12, 3), side * side
    labels = np.stack([expected_classes(image, 4, side) for image in pixels])
    rows = random_predictions(S * 512).reshape(3, 6, S, 512)
    rows[:, ::2, 0] += 20 * np.eye(512)[labels[:, ::2, 0]]  # Some predictions are right.
    loss, metrics, called = loss_of(rows.reshape(3, 6, -1), pixels, targets, **ALL_MASKED)
    is_masked = np.asarray(called["is_masked"])
    assert is_masked.sum(1).tolist() == [3, 3, 3]
    expected = cross_entropy(rows, labels)[is_masked].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    hits = (rows.argmax(-1) == labels)[is_masked].mean()
    assert 0 < hits < 1
    assert set(metrics) == {"top1"}
    np.testing.assert_allclose(metrics["top1"], hits, rtol=1e-6)


def test_loss_of_pixels_is_the_mean_squared_error_without_top1():
    pixels, predictions = random_pixels(3, 8, 12, 3), random_predictions(48)
    loss, metrics, called = loss_of(predictions, pixels, "pixels", **ALL_MASKED)
    expected = squared_errors(predictions, pixels)[np.asarray(called["is_masked"])].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics == {}


@pytest.mark.parametrize(("targets", "size"), [("mean", 512), ("pixels", 48)])
def test_loss_has_no_gradient_at_patches_that_are_not_corrupted(targets, size):
    pixels, predictions = random_pixels(3, 8, 12, 3), random_predictions(size)
    *_, called = loss_of(predictions, pixels, targets, **ALL_MASKED)
    task = MaskedPatches(Task(targets=targets), Predictions())
    gradient = jax.jit(jax.grad(task.loss, has_aux=True))
    grads, _ = gradient(predictions, batch_of(pixels), quick_key(0))
    np.testing.assert_array_equal(np.any(np.asarray(grads) != 0, axis=-1), called["is_masked"])


def test_loss_ignores_padded_examples():
    pixels, predictions = random_pixels(3, 8, 12, 3), random_predictions(48)
    loss, _, called = loss_of(predictions, pixels, "pixels", mask=(1, 1, 0), **ALL_MASKED)
    is_masked = np.asarray(called["is_masked"])
    expected = squared_errors(predictions, pixels)[:2][is_masked[:2]].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_loss_replaces_patches_of_the_input_but_not_of_the_targets():
    levels = np.arange(6, dtype=np.uint8) * 40
    pixels = np.tile(levels.reshape(2, 3).repeat(4, 0).repeat(4, 1)[None, :, :, None], (3, 1, 1, 3))
    target = to_unit_range(levels)
    predictions = np.broadcast_to(target[None, :, None], (3, 6, 48))
    shares = {"mask_share": 0.0, "random_share": 1.0}
    loss, _, called = loss_of(predictions, pixels, "pixels", **shares)
    assert loss < 1e-12  # Targets are those of the original images.
    assert not np.any(called["is_masked"])
    inputs = np.asarray(patchify(called["images"], 4))
    assert np.all(inputs == inputs[:, :, :1])  # Whole patches.
    assert set(np.round((inputs[:, :, 0] + 1) * 127.5).ravel()) <= set(levels)
    is_replaced = np.abs(inputs[:, :, 0] - target) > 0.1
    assert is_replaced.sum(1).tolist() == [3, 3, 3]


def test_loss_uses_dropout_and_a_corruption_per_key_and_image():
    pixels, predictions = np.repeat(random_pixels(1, 8, 12, 3), 3, axis=0), random_predictions(48)
    act = functools.partial(loss_of, predictions, pixels, "pixels", jax.random.key, **ALL_MASKED)
    calls = [act(seed=seed)[2] for seed in (0, 0, 1)]
    assert all(called["train"] and set(called["rngs"]) == {"dropout"} for called in calls)
    one, same, other = (called["rngs"]["dropout"] for called in calls)
    assert one == same != other
    one, same, other = (np.asarray(called["is_masked"]) for called in calls)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert len({row.tobytes() for row in one}) > 1


# Models.


def small(image_size=(8, 12), targets="mean", corrupted=0.5, name="vit_ti16", **changes):
    options = (SHAPE if name == "vit_ti16" else {}) | changes
    task = Task(name="masked_patches", targets=targets, corrupted=corrupted)
    config = Config(model=section(name, **options), data=Data(image_size=image_size), task=task)
    return MaskedPatches.build_model(config, num_classes=3)


def random_params(model, seed=0):
    random = np.random.default_rng(seed)
    return trees.unflatten(
        {
            name: random.normal(0, 0.3, shape).astype(np.float32)
            for name, shape in param_shapes(model).items()
        }
    )


def headless(model):
    """Returns parameters with which a model predicts zeros, as a new model does."""
    params = random_params(model)
    return params | {"patch_head": jax.tree.map(np.zeros_like, params["patch_head"])}


def test_loss_of_a_new_model_is_the_log_of_512():
    model, pixels = small(), random_pixels(3, 8, 12, 3)
    loss = jax.jit(MaskedPatches(Task(corrupted=1.0), model).loss)
    loss, _ = loss(headless(model), batch_of(pixels), quick_key(0))
    np.testing.assert_allclose(loss, np.log(512), rtol=1e-6)


@pytest.mark.parametrize(("targets", "size"), [("mean", 512), ("downsized", 8192), ("pixels", 48)])
def test_build_model_has_the_outputs_of_the_targets(targets, size):
    assert param_shapes(small(targets=targets))["patch_head/kernel"] == (8, size)


def test_targets_do_not_depend_on_pixel_stats():
    pixels, zeros = random_pixels(3, 8, 12, 3), np.zeros((3, 6, 48), np.float32)
    model = small(targets="pixels", pixel_stats="imagenet")
    loss = jax.jit(MaskedPatches(Task(targets="pixels"), model).loss)
    loss, _ = loss(headless(model), batch_of(pixels), quick_key(0))
    expected, *_ = loss_of(zeros, pixels, "pixels")
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_loss_has_a_gradient_for_every_parameter():
    model, pixels = small(registers=1), random_pixels(3, 8, 12, 3)
    task = MaskedPatches(Task(), model)
    grads = jax.jit(jax.grad(lambda p: task.loss(p, batch_of(pixels), quick_key(0))[0]))
    for name, grad in trees.flatten(grads(random_params(model))).items():
        assert np.all(np.isfinite(grad)), name
        assert np.any(grad != 0), name


def test_score_depends_on_the_number_of_an_example_only():
    model, pixels = small(dropout=0.5), random_pixels(5, 8, 12, 3)
    params, score = random_params(model), jax.jit(MaskedPatches(Task(), model).score)
    batch = batch_of(pixels, number=np.array([7, 0, 3, 2**31 - 1, -1], np.int32))
    scores = score(params, batch)
    assert set(scores) == {"loss", "top1", "mask"}
    assert {array.shape for array in scores.values()} == {(5,)}
    order = np.array([3, 1, 4, 0, 0])
    again = score(params, {name: rows[order] for name, rows in batch.items()})
    for name, values in scores.items():
        np.testing.assert_allclose(again[name], values[order], rtol=1e-5, err_msg=name)
    other = score(params, batch | {"number": batch["number"] + 1})
    assert np.all(np.abs(other["loss"] - scores["loss"]) > 1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"name": "r50_b32", "image_size": 64},
            "model.name is 'r50_b32'; task.name='masked_patches' needs a model",
        ),
        (
            {"name": "bit_r50x1"},
            "model.name is 'bit_r50x1'; task.name='masked_patches' needs a model",
        ),
        ({"pool": "map"}, "model.pool is 'map'; it must be 'token' or 'gap' or 'token_gap'"),
        ({"pre_logits": True}, "model.pre_logits is True; it must be False"),
        ({"projection": 7}, "model.projection is 7; it must be None"),
        ({"head_bias": -10.0}, "model.head_bias is -10.0; it must be 0.0"),
        ({"image_size": 4}, "data.image_size gives 1 patch of 4x4; .* at least 2"),
        ({"corrupted": 0.08}, "task.corrupted is 0.08, which rounds to 0 of 6 patches"),
        (
            {"patch": 2, "targets": "downsized"},
            "task.targets is 'downsized'; a patch of 2x2 pixels does not divide into 4x4",
        ),
        ({"name": "vit_s14", "image_size": 28, "targets": "downsized"}, "14x14 pixels does not"),
        ({"image_size": (8, 10)}, "data.image_size 8x10 does not divide into patches of 4x4"),
    ],
    ids=str,
)
def test_build_model_rejects_what_cannot_predict_patches(options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        small(**options)
    assert "\n" not in str(caught.value)


def test_build_model_accepts_the_smallest_possible_models():
    assert small(image_size=(4, 8), targets="downsized").num_outputs == 16 * 512
    assert small(image_size=28, name="vit_s14").num_outputs == 512
    assert small(corrupted=0.09).grid == (2, 3)
