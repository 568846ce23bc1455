"""Masked autoencoders (arXiv:2111.06377): masking, targets, loss and scores.

Most patches of an image are removed, the encoder sees the rest, and a small decoder predicts the
pixels of those removed. Shapes use the letters of `models/vit.py`, with V visible patches.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from vit_jax.config.schema import Config, Task
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.pixel_stats import denormalize, normalize
from vit_jax.models.vit import ViT, patchify
from vit_jax.tasks import losses
from vit_jax.tasks.masked_patches import Reconstruction, keys_of_numbers, unpatchify
from vit_jax.tasks.unlabeled import Rules, build_encoder, encoder_rules, rules_without_labels

VARIANCE_EPS = 1e-6  # Added to the variance of a patch.


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoder:
    """Reconstruction of removed patches (an `Objective`)."""

    section: Task
    model: MaeViT
    evaluator: ClassVar[str] = "masked_patches"
    has_classes: ClassVar[bool] = False

    @staticmethod
    def rules(config: Config) -> Rules:
        task = config.task
        yield from rules_without_labels(config)
        yield (
            task.decoder_size % task.decoder_heads == 0 and task.decoder_size % 4 == 0,
            f"task.decoder_size is {task.decoder_size}; it must be divisible by 4 and by "
            f"task.decoder_heads {task.decoder_heads}",
        )

    @staticmethod
    def build_model(config: Config, num_classes: int) -> MaeViT:
        """Returns the model; `num_classes` has no effect.

        Raises ConfigError in one line for a model or an image size that cannot be used.
        """
        task, vit = config.task, build_encoder(config, _model_rules)
        return MaeViT.of(
            vit,
            num_kept(vit.grid[0] * vit.grid[1], task.mask_ratio),
            num_layers=task.decoder_layers,
            hidden_size=task.decoder_size,
            num_heads=task.decoder_heads,
        )

    def loss(self, params, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        """Returns the mean loss of a batch with dropout.

        batch: image B H W 3, mask B.
        """
        masking_key, dropout_key = jax.random.split(key)
        keys = jax.random.split(masking_key, len(batch["image"]))
        options = {"train": True, "rngs": {"dropout": dropout_key}}
        loss = self.image_losses(params, batch["image"], keys, **options)
        return losses.masked_mean(loss, batch["mask"]), {}

    def score(self, params, batch: dict) -> dict:
        """Returns loss B and mask B, without dropout.

        batch: image B H W 3, mask B, number B int32. The removed patches of an example depend on
        its number only, so scores are the same at every step and for every batch size.
        """
        keys = keys_of_numbers(batch["number"])
        return {
            "loss": self.image_losses(params, batch["image"], keys),
            "mask": batch["mask"],
        }

    def reconstruct(self, params, batch: dict) -> Reconstruction:
        """Returns the predictions for the patches that `score` removes, without dropout.

        batch: image B H W 3, number B int32. Predictions of normalised targets get the mean and
        the deviation of their patch in the image.
        """
        model, images = self.model, batch["image"]
        order = self._orders(keys_of_numbers(batch["number"]))
        patches = model.apply({"params": params}, images, order)  # B N PPC
        if self.section.normalize_targets:
            mean, deviation = _statistics(_pixels(images, model))
            patches = patches * deviation + mean
        is_predicted = jnp.argsort(order, axis=1) >= model.num_kept
        pixels = unpatchify(patches, model.grid)
        return Reconstruction(is_predicted, denormalize(pixels, model.config.pixel_stats))

    def _orders(self, keys: jax.Array) -> jax.Array:
        """Returns the order B N of the patches of images with these keys."""
        N = self.model.grid[0] * self.model.grid[1]
        return jax.vmap(lambda key: draw_order(key, N))(keys)

    def image_losses(self, params, images: jax.Array, keys: jax.Array, **apply) -> jax.Array:
        """Returns the mean squared error over the removed patches of each image, B.

        Args:
          keys: one per image, which draws its order of patches.
          **apply: options of `model.apply`.
        """
        return self.losses_of(params, images, self._orders(keys), **apply)

    def losses_of(self, params, images: jax.Array, order: jax.Array, **apply) -> jax.Array:
        """Returns the losses B of images whose patches have an order B N; the first V are kept."""
        predictions = self.model.apply({"params": params}, images, order, **apply)  # B N O
        wanted = targets(images, self.model, self.section.normalize_targets)
        errors = jnp.mean(jnp.square(predictions - wanted), axis=-1)  # B N
        return jnp.mean(jnp.take_along_axis(errors, order[:, self.model.num_kept :], 1), axis=1)


def _model_rules(config: Config, vit) -> Rules:
    yield from encoder_rules(
        config,
        vit,
        pos_embed_at=("stem",),
        pos_embed=("learned", "learned_2d", "sincos", "sincos_mae", "rope", "learned_rope"),
        pool=("token", "gap", "token_gap"),
        fc_norm=(False,),
    )
    N = vit.grid[0] * vit.grid[1]
    yield (
        0 < num_kept(N, config.task.mask_ratio) < N,
        f"task.mask_ratio is {config.task.mask_ratio}, which keeps "
        f"{num_kept(N, config.task.mask_ratio)} of {N} patches; at least 1 must be kept and 1 "
        "removed",
    )


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """Returns V, the number of patches that the encoder sees."""
    return int(num_patches * (1 - mask_ratio))


def draw_order(key: jax.Array, num_patches: int) -> jax.Array:
    """Returns the patches of an image in random order, N."""
    return jnp.argsort(jax.random.uniform(key, (num_patches,)))


def targets(images: jax.Array, model: ViT, is_normalized: bool) -> jax.Array:
    """Returns the pixels B N PPC that are predicted, of images B H W 3 in [-1, 1].

    Pixels have the statistics `model.pixel_stats`. Normalised, those of each patch have the mean 0
    and the unbiased variance 1.
    """
    patches = _pixels(images, model)
    if not is_normalized:
        return patches
    mean, deviation = _statistics(patches)
    return (patches - mean) / deviation


def _pixels(images: jax.Array, model: ViT) -> jax.Array:
    """Returns the patches B N PPC of images, with the statistics of the model."""
    return patchify(normalize(images, model.config.pixel_stats), model.patch_size)


def _statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the deviation of the pixels of each patch, B N 1."""
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + VARIANCE_EPS)
