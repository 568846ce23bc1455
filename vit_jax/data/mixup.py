"""Mixup and CutMix of a global batch, on the devices, inside the training step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def make_mixer(mixup: float, cutmix: float, num_classes: int) -> Callable | None:
    """Returns `mix(batch, key) -> batch` with mixed `image` and `targets`; None for no mixing.

    Example i is mixed with example i + B/2 (mod B) of the global batch: repeated augmentation
    puts copies of an image side by side, and its neighbours would be no strangers. One lambda
    of Beta(alpha, alpha), and one box, serve the whole batch.

    Args:
      mixup: alpha of mixup (arXiv:1710.09412); 0 for none.
      cutmix: alpha of CutMix (arXiv:1905.04899); with both, a fair coin picks for the step.
      batch: image B H W 3, label B, and whatever else, which stays as it is.
      key: the same on all hosts.

    `targets` is B K float32: lambda at the label, 1 - lambda at the partner's label.
    """
    if not mixup and not cutmix:
        return None

    def mix(batch: dict, key: jax.Array) -> dict:
        images, labels = batch["image"], batch["label"]
        _, H, W, _ = images.shape
        own = _own_share(mixup, cutmix, (H, W), key)  # H W
        targets = jax.nn.one_hot(labels, num_classes)  # B K
        weights = own[None, :, :, None].astype(images.dtype)
        share = jnp.mean(own)  # Of CutMix, the exact area: boxes end at the border.
        return batch | {
            "image": weights * images + (1 - weights) * _partners(images),
            "targets": share * targets + (1 - share) * _partners(targets),
        }

    return mix


def _partners(x: jax.Array) -> jax.Array:
    return jnp.roll(x, -(x.shape[0] // 2), axis=0)


def _own_share(mixup: float, cutmix: float, size: tuple[int, int], key: jax.Array) -> jax.Array:
    """How much of each pixel remains an image's own: H W, lambda or a box of zeros."""
    coin_key, ratio_key, box_key = jax.random.split(key, 3)
    is_cut = jax.random.bernoulli(coin_key, 0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = jnp.where(is_cut, cutmix, mixup)
    ratio = jax.random.beta(ratio_key, alpha, alpha)  # Lambda.
    return jnp.where(is_cut, 1 - _box(size, ratio, box_key), ratio)


def _box(size: tuple[int, int], ratio: jax.Array, key: jax.Array) -> jax.Array:
    """H W: 1 in a box of area 1 - ratio about a uniform centre, but for what lies outside."""
    centres = jax.random.uniform(key, (2,))
    rows, columns = (
        jnp.abs(jnp.arange(length) + 0.5 - centre * length) < length * jnp.sqrt(1 - ratio) / 2
        for length, centre in zip(size, centres)
    )
    return (rows[:, None] & columns[None, :]).astype(jnp.float32)
