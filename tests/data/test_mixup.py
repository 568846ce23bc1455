"""Mixup and CutMix against numpy, on batches whose pixels say where they come from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.config.schema import Data
from vit_jax.data.mixup import make_mixer
from vit_jax.distributed import mesh as mesh_lib

MIXUP, CUTMIX, BOTH = Data(mixup=0.8), Data(cutmix=1.0), Data(mixup=0.8, cutmix=1.0)


def numbered_batch(size: int = 8, side: int = 6, num_classes: int = 5) -> dict:
    """Image i is filled with i, its label is i mod K."""
    numbers = np.arange(size, dtype=np.float32)
    return {
        "image": np.broadcast_to(numbers[:, None, None, None], (size, side, side, 3)).copy(),
        "label": (np.arange(size) % num_classes).astype(np.int32),
        "mask": np.ones(size, np.float32),
    }


def own_shares(targets, labels) -> np.ndarray:
    """Lambda of each example, where its partner has another label."""
    return np.asarray(targets)[np.arange(len(labels)), labels]


def test_make_mixer_returns_none_without_mixing():
    assert make_mixer(Data(), num_classes=5) is None


def test_mixup_blends_an_image_and_its_partner_by_lambda():
    batch = numbered_batch()
    mixed = make_mixer(MIXUP, num_classes=5)(batch, jax.random.key(0))
    ratio = own_shares(mixed["targets"], batch["label"])
    assert ratio.max() - ratio.min() < 1e-6  # One lambda for the batch.
    assert 0.01 < ratio[0] < 0.99
    partner = (np.arange(8) + 4) % 8
    one_hot = np.eye(5)[batch["label"]]
    expected = ratio[0] * batch["image"] + (1 - ratio[0]) * batch["image"][partner]
    np.testing.assert_allclose(mixed["image"], expected, atol=2e-6)
    np.testing.assert_allclose(
        mixed["targets"], ratio[0] * one_hot + (1 - ratio[0]) * one_hot[partner], atol=1e-6
    )


@pytest.mark.parametrize("shift", [1, 3])
def test_mixup_shift_is_the_distance_to_the_partner(shift):
    batch, data = numbered_batch(num_classes=8), Data(mixup=0.8, mixup_shift=shift)
    mixed = make_mixer(data, num_classes=8)(batch, jax.random.key(0))
    (ratio, *_) = own_shares(mixed["targets"], batch["label"])
    for name, values in (("image", batch["image"]), ("targets", np.eye(8))):
        expected = ratio * values + (1 - ratio) * np.roll(values, shift, axis=0)
        np.testing.assert_allclose(mixed[name], expected, atol=2e-6)


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_pastes_a_box_of_the_partner_and_counts_its_pixels(seed):
    batch = numbered_batch(side=12)
    mixed = make_mixer(CUTMIX, num_classes=5)(batch, jax.random.key(seed))
    partner = (np.arange(8) + 4) % 8
    pasted = np.asarray(mixed["image"]) == partner[:, None, None, None]
    kept = np.asarray(mixed["image"]) == np.arange(8)[:, None, None, None]
    assert (pasted ^ kept).all()  # Nothing in between.
    assert (pasted == pasted[:1, :, :, :1]).all()  # The same box for all, in all channels.
    box = pasted[0, :, :, 0]
    rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    assert box.sum() == len(rows) * len(columns)  # A full rectangle ...
    assert (np.diff(rows) == 1).all()
    assert (np.diff(columns) == 1).all()  # ... in one piece.
    one_hot = np.eye(5)[batch["label"]]
    share = 1 - box.mean()
    np.testing.assert_allclose(
        mixed["targets"], share * one_hot + (1 - share) * one_hot[partner], atol=1e-6
    )


def test_mixer_returns_targets_of_sum_one_and_keeps_labels_and_mask():
    batch = numbered_batch() | {"mask": np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32)}
    mixed = make_mixer(BOTH, num_classes=5)(batch, jax.random.key(3))
    assert set(mixed) == {"image", "label", "mask", "targets"}
    assert mixed["targets"].shape == (8, 5)
    assert mixed["targets"].dtype == jnp.float32
    np.testing.assert_allclose(np.sum(mixed["targets"], -1), np.ones(8), atol=1e-6)
    np.testing.assert_array_equal(mixed["label"], batch["label"])
    np.testing.assert_array_equal(mixed["mask"], batch["mask"])


def test_mixer_does_not_mix_adjacent_copies():
    repeats, batch = 3, numbered_batch(12)
    batch["image"] = np.repeat(batch["image"][: 12 // repeats], repeats, axis=0)
    batch["label"] = np.repeat(np.arange(4, dtype=np.int32), repeats)
    mixed = make_mixer(MIXUP, num_classes=4)(batch, jax.random.key(0))
    assert (np.count_nonzero(mixed["targets"], axis=-1) == 2).all()


def test_mixer_keeps_a_batch_of_one_image():
    batch = numbered_batch(1) | {"image": np.full((1, 6, 6, 3), 0.5, np.float32)}
    mixed = make_mixer(BOTH, num_classes=5)(batch, jax.random.key(0))
    np.testing.assert_allclose(mixed["image"], batch["image"], atol=1e-6)
    np.testing.assert_allclose(mixed["targets"], [[1, 0, 0, 0, 0]], atol=1e-6)


def was_cut(images: np.ndarray) -> np.ndarray:
    return np.isin(images, (0, 1)).all((-1, -2))


@functools.cache
def many_steps():
    """Of steps with BOTH: lambda, an image of ones (steps H W) mixed with zeros, was it cut."""
    mix, side = make_mixer(BOTH, num_classes=2), 16
    images = jnp.stack([jnp.ones((side, side, 3)), jnp.zeros((side, side, 3))])
    batch = {"image": images, "label": jnp.array([0, 1])}

    @jax.jit
    @jax.vmap
    def steps(key):
        mixed = mix(batch, key)
        return mixed["targets"][0, 0], mixed["image"][0, :, :, 0]

    shares, images = jax.device_get(steps(jax.random.split(jax.random.key(1), 6000)))
    return shares, images, was_cut(images)


def steps_of(is_cut: bool):
    shares, images, cuts = many_steps()
    return shares[cuts == is_cut], images[cuts == is_cut]


def test_lambda_of_mixup_is_beta_of_alpha():
    shares, images = steps_of(is_cut=False)
    assert abs(shares.mean() - 0.5) < 0.025
    np.testing.assert_allclose(shares.var(), 1 / (4 * (2 * 0.8 + 1)), rtol=0.08)
    np.testing.assert_allclose(images.mean((1, 2)), shares, atol=1e-6)


def test_cutmix_box_has_the_area_of_lambda_cut_at_the_border():
    shares, images = steps_of(is_cut=True)
    np.testing.assert_allclose(images.mean((1, 2)), shares, atol=1e-6)
    # Of a side s about a uniform centre, s - s^2 / 4 lies inside on average, on each axis; over a
    # uniform lambda (alpha 1), with s = sqrt(1 - lambda), the mean of that squared is
    # integral of (s - s^2 / 4)^2 2s ds = 1/2 - 1/5 + 1/48.
    assert abs((1 - shares).mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 0.015


def test_cutmix_boxes_are_anywhere_in_the_image():
    shares, images = steps_of(is_cut=True)
    small = images[(shares > 0.8) & (shares < 1)] == 0
    tops, lefts = small.any(2).argmax(1), small.any(1).argmax(1)
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.1
    edges = small[:, [0, -1]].any((0, 2)), small[:, :, [0, -1]].any((0, 1))
    assert np.all(edges)  # Every border is touched.


def test_mixer_chooses_mixup_or_cutmix_with_equal_probability():
    _, _, cuts = many_steps()
    assert abs(cuts.mean() - 0.5) < 0.02


@pytest.mark.parametrize(("alphas", "is_cut"), [(MIXUP, False), (CUTMIX, True)])
def test_mixer_with_one_alpha_uses_one_kind_of_mixing(alphas, is_cut):
    mix = make_mixer(alphas, num_classes=2)
    batch = {"image": jnp.ones((2, 5, 5, 3)).at[1].set(0), "label": jnp.array([0, 1])}
    for seed in range(10):
        assert was_cut(mix(batch, jax.random.key(seed))["image"][0, :, :, 0]) == is_cut


def test_mixup_with_a_small_alpha_hardly_mixes():
    mix, batch = make_mixer(Data(mixup=1e-3), num_classes=5), numbered_batch()
    for seed in range(10):
        largest = np.max(mix(batch, jax.random.key(seed))["targets"], axis=-1)
        np.testing.assert_allclose(largest, np.ones(8), atol=1e-3)


def test_mixer_depends_on_the_key_alone():
    mix, batch = make_mixer(BOTH, num_classes=5), numbered_batch()
    for name in ("image", "targets"):
        a, b, c = (mix(batch, jax.random.key(seed))[name] for seed in (7, 7, 8))
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != np.asarray(c)).any()


@functools.cache
def compiled_for(num_devices: int):
    """A mixer of 16 numbered images compiled for so many devices, and where its batch lies."""
    mesh = mesh_lib.make_mesh(-1, min(2, num_devices), devices=jax.devices()[:num_devices])
    place = mesh_lib.batch_sharding(mesh)
    shapes = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=place)
        for name, value in numbered_batch(16).items()
    }
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=mesh_lib.replicated(mesh))
    return jax.jit(make_mixer(BOTH, num_classes=5)).lower(shapes, key).compile()


def mixed_on(num_devices: int, seed: int) -> dict:
    compiled = compiled_for(num_devices)
    arguments = (numbered_batch(16), jax.random.key(seed))
    mixed = compiled(*jax.device_put(arguments, compiled.input_shardings[0]))
    assert mixed["image"].addressable_shards[0].data.shape[0] == 16 // num_devices
    return jax.device_get(mixed)


def test_mixer_gives_equal_batches_on_one_and_eight_devices():
    for seed in range(4):  # Three of them mixup, one CutMix.
        one, eight = mixed_on(1, seed), mixed_on(8, seed)
        for name in one:
            # One program multiplies and adds at once, the other in turn: a last bit of float32.
            np.testing.assert_allclose(one[name], eight[name], rtol=2.4e-7)


def test_mixer_permutes_images_between_devices_without_gathering():
    program = compiled_for(8).as_text()
    assert program.count(" collective-permute(") == 2  # Images and targets.
    assert " all-gather(" not in program
    assert " all-to-all(" not in program


def test_mixer_keeps_bfloat16():
    batch = numbered_batch() | {"image": jnp.ones((8, 6, 6, 3), jnp.bfloat16)}
    assert make_mixer(BOTH, num_classes=5)(batch, jax.random.key(0))["image"].dtype == jnp.bfloat16
