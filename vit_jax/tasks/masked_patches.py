"""Masked patch prediction (appendix B.1.2): corruption, targets, loss and scores.

A share of an image's patches is corrupted, and the model says what stood there. The alphabet
is that of `models/vit.py`, with O outputs for a patch and S colours of one.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.config.schema import Model, Task
from vit_jax.errors import ConfigError
from vit_jax.models import registry as model_registry
from vit_jax.models.masked_vit import MaskedViT
from vit_jax.models.vit import ViT, patchify
from vit_jax.tasks import losses

LEVELS = 8  # Of a channel: 3 bits.
COLOURS = LEVELS**3
SIDES = {"mean": 1, "downsized": 4}  # Colours along the side of a patch.
ROUNDING = 3e-4  # Of means in [0, 255]: float32 is 3e-5 off, and 32 must not fall below 32.


class Corruption(NamedTuple):
    """What happens to each patch of an image (N), or of a batch of them (B N)."""

    is_corrupted: jax.Array
    is_masked: jax.Array  # The mask token takes its place.
    source: jax.Array  # The patch whose pixels stand there; most often its own.


def build_model(section: Model, *, image_size: int | tuple[int, int], task: Task) -> MaskedViT:
    """The model of a `config.model` section that predicts masked patches.

    Raises ConfigError, in one line, for what cannot be built, and where targets would mean
    nothing.
    """
    vit = model_registry.build(section, num_classes=0, image_size=image_size)
    for holds, words in _rules(section, task, vit):
        if not holds:
            raise ConfigError(f"{words}.")
    return MaskedViT.of(vit, num_outputs(task.targets, vit.patch_size))


def _rules(section: Model, task: Task, vit) -> Iterator[tuple[bool, str]]:
    """What must hold for masked patches: whether it does, and the words if it does not."""
    # The features of a stem see beyond their patch: what is masked would show beside it.
    yield (
        isinstance(vit, ViT) and vit.stem is None,
        f"model.name is {section.name!r}; masked patches are cut out of the image itself, "
        "as by vit_*",
    )
    yield section.pool != "map", "model.pool is 'map'; masked patches are not pooled: take 'gap'"
    for name in ("pre_logits", "head_bias"):
        value = getattr(section, name)
        yield not value, f"model.{name} is {value}; masked patches have no classification head"
    N, P = vit.grid[0] * vit.grid[1], vit.patch_size
    yield N > 1, f"data.image_size gives {N} patch of {P}x{P}; masked patches need at least 2"
    yield (
        round(task.corrupted * N) > 0,
        f"task.corrupted is {task.corrupted}; of {N} patches that is none",
    )
    side = SIDES.get(task.targets, 1)
    yield (
        P % side == 0,
        f"task.targets is {task.targets!r}; a patch of {P}x{P} pixels does not divide "
        f"into {side}x{side}",
    )


def num_outputs(targets: str, patch_size: int) -> int:
    """O, what is predicted of one patch: logits of its colours, or the values of its pixels."""
    return 3 * patch_size**2 if targets == "pixels" else SIDES[targets] ** 2 * COLOURS


def draw_corruption(
    key: jax.Array,
    num_patches: int,
    *,
    corrupted: float = Task.corrupted,
    mask_share: float = Task.mask_share,
    random_share: float = Task.random_share,
) -> Corruption:
    """The corruption of one image.

    Exactly round(corrupted * N) patches are corrupted. Each of them by itself becomes the mask
    token with probability `mask_share`, another patch of the same image with probability
    `random_share`, and else stays. (The paper does not say of which image the other patch is;
    with the same, an image's corruption is its own affair, in any batch and on any device.)
    """
    N = num_patches
    order, fate, distance = jax.random.uniform(key, (3, N))
    is_corrupted = jnp.argsort(order) < round(corrupted * N)
    is_masked = is_corrupted & (fate < mask_share)
    is_moved = is_corrupted & ~is_masked & (fate < mask_share + random_share)
    own = jnp.arange(N)
    other = (own + 1 + (distance * (N - 1)).astype(jnp.int32)) % N  # Never its own place.
    return Corruption(is_corrupted, is_masked, jnp.where(is_moved, other, own))


def put_together(patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """The images B H W 3 of patches B N PPC: the inverse of `patchify`."""
    (rows, columns), P = grid, math.isqrt(patches.shape[-1] // 3)
    x = patches.reshape(-1, rows, columns, P, P, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * P, columns * P, 3)


def colours(patches: jax.Array, side: int) -> jax.Array:
    """Classes of the mean 3-bit colours of patches: B N PPC in [-1, 1] -> B N S, S = side^2.

    A channel's mean in [0, 255] has the level floor(8 mean / 256); class 64r + 8g + b.
    """
    B, N, width = patches.shape
    P = math.isqrt(width // 3)
    cells = patches.reshape(B, N, side, P // side, side, P // side, 3)
    means = (jnp.mean(cells, axis=(3, 5)) + 1) * 127.5 + ROUNDING
    levels = jnp.clip(jnp.floor(means * LEVELS / 256), 0, LEVELS - 1).astype(jnp.int32)
    r, g, b = jnp.moveaxis(levels, -1, 0)
    return (LEVELS**2 * r + LEVELS * g + b).reshape(B, N, side**2)


def measure_patches(predictions: jax.Array, patches: jax.Array, targets: str) -> dict:
    """Loss, and for colours top1, of every patch: B N O and B N PPC -> B N each.

    Of several colours of a patch, the mean; of pixels in [-1, 1], the mean squared error.
    """
    if targets == "pixels":
        return {"loss": jnp.mean(jnp.square(predictions - patches), axis=-1)}
    labels = colours(patches, SIDES[targets])  # B N S
    logits = predictions.reshape(*labels.shape, COLOURS)
    values = {
        "loss": losses.softmax_cross_entropy(logits, labels),
        "top1": (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32),
    }
    return {name: jnp.mean(value, axis=-1) for name, value in values.items()}


def make_measure(
    model: MaskedViT,
    *,
    targets: str = Task.targets,
    corrupted: float = Task.corrupted,
    mask_share: float = Task.mask_share,
    random_share: float = Task.random_share,
) -> Callable:
    """Returns `measure(params, images, keys, **apply) -> per-example arrays`, each B.

    Means over the corrupted patches of an image, each image corrupted by its own key. Targets
    are of the images in [-1, 1], whatever pixel statistics the model then gives them.
    """
    shares = {"corrupted": corrupted, "mask_share": mask_share, "random_share": random_share}
    N = model.grid[0] * model.grid[1]

    def measure(params, images: jax.Array, keys: jax.Array, **apply) -> dict:
        draw = jax.vmap(lambda key: draw_corruption(key, N, **shares))
        is_corrupted, is_masked, source = draw(keys)
        patches = patchify(images, model.patch_size)  # B N PPC
        # A patch's embedding is of its pixels alone: moving these moves the embedding, and
        # no gradient has to be scattered back.
        moved = jnp.take_along_axis(patches, source[..., None], axis=1)
        x = put_together(moved, model.grid)
        predictions = model.apply({"params": params}, x, is_masked, **apply)  # B N O
        values = measure_patches(predictions, patches, targets)
        num = jnp.sum(is_corrupted, axis=1)
        return {name: jnp.sum(value * is_corrupted, 1) / num for name, value in values.items()}

    return measure


def make_loss(model: MaskedViT, **options) -> Callable:
    """Returns `loss(params, batch, key) -> (mean loss, metrics)` with dropout on.

    batch: image B H W 3, mask B; `options` are those of `make_measure`. Metrics are top1, of
    the corrupted patches, where targets are colours.
    """
    measure = make_measure(model, **options)

    def loss_fn(params, batch: dict, key: jax.Array):
        corruption_key, dropout_key = jax.random.split(key)
        keys = jax.random.split(corruption_key, len(batch["image"]))
        values = measure(params, batch["image"], keys, train=True, rngs={"dropout": dropout_key})
        means = {name: losses.masked_mean(each, batch["mask"]) for name, each in values.items()}
        return means.pop("loss"), means

    return loss_fn


def make_scorer(model: MaskedViT, **options) -> Callable:
    """Returns `score(params, batch) -> per-example arrays`, each B: loss, mask, perhaps top1.

    batch: image B H W 3, mask B, and number B int32. Corruption follows the example's number
    alone, so that a split is scored alike at every step and in batches of any size. `options`
    are those of `make_measure`.
    """
    measure = make_measure(model, **options)

    def score(params, batch: dict) -> dict:
        key = jax.random.key(0, impl="threefry2x32")  # Others give a batch the noise of one key.
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(batch["number"])
        return measure(params, batch["image"], keys) | {"mask": batch["mask"]}

    return score
