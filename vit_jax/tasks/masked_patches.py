"""Masked patch prediction (appendix B.1.2): corruption, targets, loss and scores.

A fraction of the patches of an image is corrupted, and the model predicts their original content.
Shapes use the letters of `models/vit.py`, with O outputs and S colours per patch.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.config.schema import Config, Task
from vit_jax.models.masked_vit import MaskedViT
from vit_jax.models.vit import patchify
from vit_jax.tasks import losses
from vit_jax.tasks.unlabeled import Rules, build_encoder, encoder_rules, rules_without_labels

LEVELS = 8  # Per channel: 3 bits.
NUM_COLOURS = LEVELS**3
SIDES = {"mean": 1, "downsized": 4}  # Colours along the side of a patch.
ROUNDING = 3e-4  # Added to means in [0, 255]: the float32 error is 3e-5, and 32 must stay >= 32.


class Corruption(NamedTuple):
    """Corruption of the patches of an image (N) or of a batch (B N)."""

    is_corrupted: jax.Array
    is_masked: jax.Array  # Replaced by the mask token.
    source: jax.Array  # Index of the patch whose pixels are used; the patch's own if unchanged.


class Reconstruction(NamedTuple):
    """Images beside the content that a model predicts for some of their patches.

    Attributes:
      is_predicted: B N, True for the patches whose content is predicted.
      images: B H W 3 in about [-1, 1], the predictions of all patches.
    """

    is_predicted: jax.Array
    images: jax.Array


@dataclasses.dataclass(frozen=True)
class MaskedPatches:
    """Masked patch prediction (an `Objective`)."""

    section: Task
    model: MaskedViT
    evaluator: ClassVar[str] = "masked_patches"
    has_classes: ClassVar[bool] = False

    @staticmethod
    def rules(config: Config) -> Rules:
        task, data = config.task, config.data
        yield (
            task.mask_share + task.random_share <= 1,
            f"task.mask_share and random_share are {task.mask_share} and {task.random_share}; "
            "their sum must be at most 1",
        )
        yield from rules_without_labels(config)
        yield (
            "erase" not in data.augment,
            f"data.augment is {data.augment!r}; it must not have erase with "
            f"task.name={task.name!r}",
        )

    @staticmethod
    def build_model(config: Config, num_classes: int) -> MaskedViT:
        """Returns the model; `num_classes` has no effect.

        Raises ConfigError in one line for a model, image size or target that cannot be used.
        """
        vit = build_encoder(config, _model_rules)
        return MaskedViT.of(vit, num_outputs(config.task.targets, vit.patch_size))

    def loss(self, params, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        """Returns the mean loss of a batch with dropout, and top1 if targets are colours.

        batch: image B H W 3, mask B.
        """
        corruption_key, dropout_key = jax.random.split(key)
        keys = jax.random.split(corruption_key, len(batch["image"]))
        options = {"train": True, "rngs": {"dropout": dropout_key}}
        metrics = self.image_metrics(params, batch["image"], keys, **options)
        means = {name: losses.masked_mean(x, batch["mask"]) for name, x in metrics.items()}
        return means.pop("loss"), means

    def score(self, params, batch: dict) -> dict:
        """Returns loss B, mask B, and top1 B if targets are colours, without dropout.

        batch: image B H W 3, mask B, number B int32. The corruption of an example depends on its
        number only, so scores are the same at every step and for every batch size.
        """
        keys = keys_of_numbers(batch["number"])
        return self.image_metrics(params, batch["image"], keys) | {"mask": batch["mask"]}

    def reconstruct(self, params, batch: dict) -> Reconstruction:
        """Returns the predictions for the patches that `score` corrupts, without dropout.

        batch: image B H W 3, number B int32. A colour is shown by the middle of its three levels.
        """
        corruption, _, predictions = self._predict(
            params, batch["image"], keys_of_numbers(batch["number"])
        )
        model, targets = self.model, self.section.targets
        patches = predictions
        if targets != "pixels":
            logits = predictions.reshape(*predictions.shape[:2], -1, NUM_COLOURS)
            patches = patches_of_classes(jnp.argmax(logits, axis=-1), model.patch_size)
        return Reconstruction(corruption.is_corrupted, unpatchify(patches, model.grid))

    def image_metrics(self, params, images: jax.Array, keys: jax.Array, **apply) -> dict:
        """Returns loss and top1 of each image, B: means over its corrupted patches.

        Targets are computed from the images in [-1, 1], for any `model.pixel_stats`.

        Args:
          keys: one per image, which draws its corruption.
          **apply: options of `model.apply`.
        """
        (is_corrupted, *_), patches, predictions = self._predict(params, images, keys, **apply)
        metrics = patch_metrics(predictions, patches, self.section.targets)
        count = jnp.sum(is_corrupted, axis=1)
        return {name: jnp.sum(value * is_corrupted, 1) / count for name, value in metrics.items()}

    def _predict(self, params, images: jax.Array, keys: jax.Array, **apply) -> tuple:
        """Returns the corruption, the patches B N PPC of the images, and predictions B N O."""
        model, task = self.model, self.section
        N = model.grid[0] * model.grid[1]
        corruption = jax.vmap(lambda key: draw_corruption(key, N, task))(keys)
        patches = patchify(images, model.patch_size)
        # Replacing pixels equals replacing embeddings, and its gradient needs no scatter.
        replaced = jnp.take_along_axis(patches, corruption.source[..., None], axis=1)
        inputs = unpatchify(replaced, model.grid)
        predictions = model.apply({"params": params}, inputs, corruption.is_masked, **apply)
        return corruption, patches, predictions


def _model_rules(config: Config, vit) -> Rules:
    task = config.task
    yield from encoder_rules(config, vit, pool=("token", "gap", "token_gap"))
    N, P = vit.grid[0] * vit.grid[1], vit.patch_size
    yield N > 1, f"data.image_size gives {N} patch of {P}x{P}; masked patches need at least 2"
    yield (
        round(task.corrupted * N) > 0,
        f"task.corrupted is {task.corrupted}, which rounds to 0 of {N} patches; increase it",
    )
    side = SIDES.get(task.targets, 1)
    yield (
        P % side == 0,
        f"task.targets is {task.targets!r}; a patch of {P}x{P} pixels does not divide "
        f"into {side}x{side}",
    )


def keys_of_numbers(numbers: jax.Array) -> jax.Array:
    """Returns one key for each example number B, which draws what is hidden from evaluation."""
    key = jax.random.key(0, impl="threefry2x32")  # `rbg` has one noise under vmap.
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def num_outputs(targets: str, patch_size: int) -> int:
    """Returns O, the outputs per patch: logits of its colours, or the values of its pixels."""
    return 3 * patch_size**2 if targets == "pixels" else SIDES[targets] ** 2 * NUM_COLOURS


def draw_corruption(key: jax.Array, num_patches: int, task: Task) -> Corruption:
    """Draws the corruption of one image.

    Exactly round(task.corrupted * N) patches are corrupted. Each of them becomes the mask token
    with probability `task.mask_share`, another patch of the same image with probability
    `task.random_share`, and else stays as it is. (The paper does not define which image the other
    patch comes from. With the same image, corruption does not depend on batch or device.)
    """
    N = num_patches
    order, action, distance = jax.random.uniform(key, (3, N))
    is_corrupted = jnp.argsort(order) < round(task.corrupted * N)
    is_masked = is_corrupted & (action < task.mask_share)
    is_replaced = is_corrupted & ~is_masked & (action < task.mask_share + task.random_share)
    own = jnp.arange(N)
    other = (own + 1 + (distance * (N - 1)).astype(jnp.int32)) % N  # Never the patch itself.
    return Corruption(is_corrupted, is_masked, jnp.where(is_replaced, other, own))


def unpatchify(patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Returns the images B H W 3 of patches B N PPC: the inverse of `patchify`."""
    (rows, columns), P = grid, math.isqrt(patches.shape[-1] // 3)
    x = patches.reshape(-1, rows, columns, P, P, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * P, columns * P, 3)


def colour_classes(patches: jax.Array, side: int) -> jax.Array:
    """Returns classes of mean 3-bit colours: patches B N PPC in [-1, 1] -> B N S, S = side^2.

    A channel with mean m in [0, 255] has level floor(8 m / 256); the class is 64r + 8g + b.
    """
    B, N, width = patches.shape
    P = math.isqrt(width // 3)
    cells = patches.reshape(B, N, side, P // side, side, P // side, 3)
    means = (jnp.mean(cells, axis=(3, 5)) + 1) * 127.5 + ROUNDING
    levels = jnp.clip(jnp.floor(means * LEVELS / 256), 0, LEVELS - 1).astype(jnp.int32)
    r, g, b = jnp.moveaxis(levels, -1, 0)
    return (LEVELS**2 * r + LEVELS * g + b).reshape(B, N, side**2)


def patches_of_classes(classes: jax.Array, patch_size: int) -> jax.Array:
    """Returns patches of the colours of classes: B N S, S = side^2 -> B N PPC in [-1, 1].

    A level l of a channel becomes 32 l + 16 of 255. `colour_classes` of the result are the classes.
    """
    B, N, S = classes.shape
    P, side = patch_size, math.isqrt(S)
    levels = jnp.stack([classes // LEVELS**2, classes // LEVELS % LEVELS, classes % LEVELS], -1)
    cells = ((levels + 0.5) * (256 // LEVELS) / 127.5 - 1).reshape(B, N, side, 1, side, 1, 3)
    cells = jnp.broadcast_to(cells, (B, N, side, P // side, side, P // side, 3))
    return cells.reshape(B, N, 3 * P**2)


def patch_metrics(predictions: jax.Array, patches: jax.Array, targets: str) -> dict:
    """Returns loss, and top1 if targets are colours, of each patch: B N O, B N PPC -> B N.

    For several colours per patch, means over them; for pixels, mean squared error in [-1, 1].
    """
    if targets == "pixels":
        return {"loss": jnp.mean(jnp.square(predictions - patches), axis=-1)}
    labels = colour_classes(patches, SIDES[targets])  # B N S
    logits = predictions.reshape(*labels.shape, NUM_COLOURS)
    values = {
        "loss": losses.softmax_cross_entropy(logits, labels),
        "top1": (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32),
    }
    return {name: jnp.mean(value, axis=-1) for name, value in values.items()}
