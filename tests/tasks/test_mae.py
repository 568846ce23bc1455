"""Masked autoencoders: masking, targets, and a loss over the removed patches only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import some_images, some_like, tiny
from vit_jax.config import base_config, check
from vit_jax.config.schema import Task
from vit_jax.errors import ConfigError
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.registry import make_init
from vit_jax.tasks import mae
from vit_jax.tasks.mae import MaskedAutoencoder

SECTION = Task(name="mae", mask_ratio=0.5)


def small_mae(**options):
    vit = tiny(num_classes=0, **options)
    return MaeViT.of(vit, 3, num_layers=1, hidden_size=16, num_heads=2)


def params_of(model):
    return some_like(jax.eval_shape(make_init(model), jax.random.key(0)), 1)


def test_the_visible_patches_are_rounded_down_and_their_order_depends_on_the_key():
    assert [mae.num_kept(n, 0.75) for n in (196, 256, 7, 4)] == [49, 64, 1, 1]
    orders = np.array([mae.draw_order(jax.random.key(i), 9) for i in range(200)])
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(9), (200, 1)))
    firsts = np.bincount(orders[:, 0], minlength=9)
    assert firsts.min() > 8  # Expected 22 each.


def test_targets_are_pixels_around_the_mean_of_their_patch_over_its_unbiased_deviation():
    model, images = small_mae(pixel_stats="imagenet"), some_images(2, 8, 12, 3)
    actual = np.array(mae.targets(jnp.array(images), model, is_normalized=True))
    pixels = (images * 0.5 + 0.5 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    patch = pixels[1, 4:8, 8:12].ravel()  # The last of 2x3 patches, as row, column, channel.
    expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(actual[1, 5], expected, rtol=1e-4, atol=1e-5)
    plain = np.array(mae.targets(jnp.array(images), model, is_normalized=False))
    np.testing.assert_allclose(plain[1, 5], patch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pos_embed", ["sincos_mae", "learned", "rope"])
def test_predictions_do_not_depend_on_removed_patches_nor_on_the_order_of_the_kept(pos_embed):
    model, images = small_mae(pos_embed=pos_embed, registers=1), some_images(1, 8, 12, 3)
    params = {"params": params_of(model)}
    order = jnp.array([[4, 1, 2, 0, 3, 5]])
    first = model.apply(params, images, order)
    other = images.copy()
    other[0, :4, :4] = 0.9  # Patch 0, which is removed.
    np.testing.assert_array_equal(model.apply(params, other, order), first)
    swapped = model.apply(params, images, jnp.array([[2, 4, 1, 5, 3, 0]]))
    np.testing.assert_allclose(swapped, first, rtol=1e-4, atol=1e-5)
    other[0, 4:, 4:8] = 0.9  # Patch 4, which is kept.
    assert np.abs(model.apply(params, other, order) - first).max() > 1e-3


def test_all_patches_in_their_order_are_encoded_as_without_an_order():
    model, images = small_mae(), some_images(2, 8, 12, 3)
    params = {"params": params_of(model)}
    order = jnp.tile(jnp.arange(6), (2, 1))
    whole = model.clone(num_kept=6)
    np.testing.assert_allclose(
        whole.apply(params, images, order), model.apply(params, images), rtol=1e-5, atol=1e-6
    )


def test_loss_is_the_mean_squared_error_of_the_removed_patches():
    model, images = small_mae(), some_images(2, 8, 12, 3)
    params, key = params_of(model), jax.random.key(5)
    loss, _ = MaskedAutoencoder(SECTION, model).loss(
        params, {"image": images, "mask": np.float32([1, 0])}, key
    )
    masking_key, _ = jax.random.split(key)
    order = mae.draw_order(jax.random.split(masking_key, 2)[0], 6)[None]
    predicted = np.float64(model.apply({"params": params}, images[:1], order)[0])
    wanted = np.float64(mae.targets(jnp.array(images), model, True)[0])
    errors = ((predicted - wanted) ** 2).mean(-1)
    np.testing.assert_allclose(loss, errors[np.array(order[0, 3:])].mean(), rtol=1e-5)


def test_the_score_of_an_example_depends_on_its_number_only():
    model, images = small_mae(), some_images(3, 8, 12, 3)
    params, task = params_of(model), MaskedAutoencoder(SECTION, small_mae())
    batch = {"image": images, "mask": np.ones(3, np.float32), "number": np.int32([0, 1, 2])}
    scores = task.score(params, batch)["loss"]
    alone = {"image": images[2:], "mask": np.ones(1, np.float32), "number": np.int32([2])}
    np.testing.assert_allclose(task.score(params, alone)["loss"], scores[2:], rtol=1e-5)
    alone["number"] = np.int32([7])
    assert abs(task.score(params, alone)["loss"][0] - scores[2]) > 1e-6


def checked(**fields):
    config = base_config()
    config.data.update(source="fake", num_classes=3, num_examples=8, image_size=32)
    config.task.name = "mae"
    config.update(steps=1)
    config.model.update(name="vit_ti16", patch=8)
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    return check(config)[""]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model__fc_norm": True}, "model.fc_norm is True; it must be False"),
        ({"model__pool": "map"}, "model.pool is 'map'; it must be 'token' or 'gap'"),
        ({"model__pos_embed": "none"}, "model.pos_embed is 'none'; it must be 'learned'"),
        ({"task__mask_ratio": 0.99}, "mask_ratio is 0.99, which keeps 0 of 16 patches"),
        ({"model__name": "r_ti16", "model__patch": None}, "needs a model that embeds patches"),
        ({"data__mixup": 0.5}, "data.mixup is 0.5; it must be 0.0"),
        ({"task__decoder_size": 20}, "decoder_size is 20; it must be divisible by 4 and by"),
    ],
)
def test_a_config_that_cannot_be_a_masked_autoencoder_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        MaskedAutoencoder.build_model(checked(**fields), 0)


class Perfect:
    """A masked autoencoder whose predictions are its targets."""

    def __init__(self, model, is_normalized):
        self.model, self.is_normalized = model, is_normalized

    def apply(self, variables, images, order):
        return mae.targets(images, self.model, self.is_normalized)

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.mark.parametrize("is_normalized", [True, False])
@pytest.mark.parametrize("pixel_stats", ["imagenet", "half"])
def test_a_perfect_prediction_reconstructs_the_image(pixel_stats, is_normalized):
    section = Task(name="mae", mask_ratio=0.5, normalize_targets=is_normalized)
    model, images = small_mae(pixel_stats=pixel_stats), jnp.array(some_images(3, 8, 12, 3))
    task = MaskedAutoencoder(section, Perfect(model, is_normalized))
    found = task.reconstruct({}, {"image": images, "number": jnp.arange(3)})
    np.testing.assert_allclose(found.images, images, atol=2e-6)
    assert found.is_predicted.sum(axis=1).tolist() == [3, 3, 3]


def test_the_patches_that_are_reconstructed_are_those_of_the_score():
    model, images = small_mae(), some_images(2, 8, 12, 3)
    params, task = params_of(model), MaskedAutoencoder(SECTION, small_mae())
    batch = {"image": images, "mask": np.ones(2, np.float32), "number": np.int32([4, 9])}
    found = task.reconstruct(params, batch)
    where = np.array(found.is_predicted).reshape(2, 2, 3, 1).repeat(4, 1).repeat(4, 2)
    patches = np.float64(images).reshape(2, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    variance = patches.reshape(2, 2, 3, 48).var(-1, ddof=1, keepdims=True)
    deviation = np.sqrt(variance + 1e-6)
    deviation = deviation.repeat(4, 1).repeat(4, 2)
    errors = ((np.float64(found.images) - images) / deviation) ** 2
    expected = (errors * where).sum((1, 2, 3)) / (3 * 48)
    np.testing.assert_allclose(task.score(params, batch)["loss"], expected, rtol=1e-4)
