"""Mixup and CutMix of a global batch, on the devices, inside the training step."""

import dataclasses

import jax
import jax.numpy as jnp

from vit_jax.config.schema import Data


@dataclasses.dataclass(frozen=True)
class Mixer:
    """Maps (batch, key) to a batch with mixed `image` and `targets`.

    Example i is mixed with example i + B/2 (mod B) of the global batch, because repeated
    augmentation puts copies of an image side by side; or with example i - shift. One lambda of
    Beta(alpha, alpha), and one box, apply to the whole batch.

    Args:
      mixup: alpha of mixup (arXiv:1710.09412); 0 for none.
      cutmix: alpha of CutMix (arXiv:1905.04899); with both, a fair coin chooses for each step.
      shift: distance to the partner; None for half of the batch.
    """

    mixup: float
    cutmix: float
    num_classes: int
    shift: int | None = None

    def __call__(self, batch: dict, key: jax.Array) -> dict:
        """Returns the mixed batch.

        Args:
          batch: image B H W 3, label B, and other columns, which are not changed.
          key: the same on all hosts.

        `targets` is B K float32: lambda at the label, 1 - lambda at the partner's label.
        """
        images, labels = batch["image"], batch["label"]
        _, H, W, _ = images.shape
        own = _own_weights(self.mixup, self.cutmix, (H, W), key)  # H W
        targets = jax.nn.one_hot(labels, self.num_classes)  # B K
        weights = own[None, :, :, None].astype(images.dtype)
        ratio = jnp.mean(own)  # For CutMix the exact area: boxes end at the border.
        return batch | {
            "image": weights * images + (1 - weights) * self._partners(images),
            "targets": ratio * targets + (1 - ratio) * self._partners(targets),
        }

    def _partners(self, x: jax.Array) -> jax.Array:
        return jnp.roll(x, self.shift or -(x.shape[0] // 2), axis=0)


def make_mixer(data: Data, num_classes: int) -> Mixer | None:
    """Returns the mixer of a config's data section; None if nothing is mixed."""
    if not (data.mixup or data.cutmix):
        return None
    return Mixer(data.mixup, data.cutmix, num_classes, data.mixup_shift)


def _own_weights(mixup: float, cutmix: float, size: tuple[int, int], key: jax.Array) -> jax.Array:
    """Returns the weight of each pixel of an image itself: H W, lambda or a box of zeros."""
    coin_key, ratio_key, box_key = jax.random.split(key, 3)
    is_cut = jax.random.bernoulli(coin_key, 0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = jnp.where(is_cut, cutmix, mixup)
    ratio = jax.random.beta(ratio_key, alpha, alpha)  # Lambda.
    return jnp.where(is_cut, 1 - _box(size, ratio, box_key), ratio)


def _box(size: tuple[int, int], ratio: jax.Array, key: jax.Array) -> jax.Array:
    """Returns H W: 1 in a box of area 1 - ratio about a uniform centre, cut at the border."""
    centres = jax.random.uniform(key, (2,))
    rows, columns = (
        jnp.abs(jnp.arange(length) + 0.5 - centre * length) < length * jnp.sqrt(1 - ratio) / 2
        for length, centre in zip(size, centres)
    )
    return (rows[:, None] & columns[None, :]).astype(jnp.float32)
