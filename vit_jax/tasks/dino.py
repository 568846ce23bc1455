"""Self-distillation without labels: DINO, iBOT and DINOv2, chosen by the options of `config.task`.

A student sees several views of an image, and a teacher, the averaged weights of the student, sees
the global ones. The student predicts how the teacher assigns the other views to prototypes (DINO),
and with `patch_weight` how it assigns patches that are masked for the student (iBOT). Shapes use
the letters of `models/vit.py`, with V views, of which G = 2 are global, and S masked patches.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from vit_jax.config.schema import Config, Task
from vit_jax.config.schema_data import NUM_GLOBAL
from vit_jax.data.block_masks import BlockMasks
from vit_jax.data.multi_crop import MultiCropRecipe
from vit_jax.models.dino_vit import DinoViT, HeadShape
from vit_jax.models.vit import ViT
from vit_jax.tasks import losses, prototypes
from vit_jax.tasks.unlabeled import Rules, build_encoder, encoder_rules, rules_without_labels


@dataclasses.dataclass(frozen=True)
class SelfDistillation:
    """Self-distillation with a teacher of averaged weights (an `Objective`)."""

    section: Task
    model: DinoViT
    evaluator: ClassVar[str] = "self_distillation"
    has_classes: ClassVar[bool] = False

    @staticmethod
    def rules(config: Config) -> Rules:
        task, optimizer = config.task, config.optimizer
        yield from rules_without_labels(config)
        yield (
            optimizer.ema is not None,
            "optimizer.ema is None; with task.name='dino' the averaged weights are the teacher: "
            "set their decay, such as 0.996",
        )
        yield (
            config.select == "last",
            f"select is {config.select!r}; it must be 'last' with task.name='dino', whose loss "
            "does not measure the features",
        )
        smallest, largest = task.mask_ratios
        yield (
            0 < smallest <= largest < 1,
            f"task.mask_ratios is {task.mask_ratios}; expected two increasing numbers between 0 "
            "and 1",
        )

    @staticmethod
    def build_model(config: Config, num_classes: int) -> DinoViT:
        """Returns the model; `num_classes` has no effect.

        Raises ConfigError in one line for a model or an image size that cannot be used.
        """
        task, vit = config.task, build_encoder(config, _model_rules)
        shape = HeadShape(
            num_prototypes=task.prototypes,
            num_layers=task.head_layers,
            hidden_size=task.head_hidden,
            bottleneck=task.bottleneck,
            has_scale=not task.normalize_last_layer,
        )
        return DinoViT.of(
            vit,
            shape,
            num_masked=masks_of(task, vit).most_masked if task.patch_weight else 0,
            patch_prototypes=task.patch_prototypes,
            local_crops=config.data.local_crops,
            local_size=config.data.local_sides,
        )

    @staticmethod
    def train_recipe(config: Config, model: DinoViT) -> MultiCropRecipe:
        """Returns the recipe of two global crops, local crops and, for iBOT, masks."""
        masks = masks_of(config.task, model) if config.task.patch_weight else None
        return MultiCropRecipe(config.data, model.image_size, masks)

    def init_task_state(self) -> dict[str, jax.Array]:
        """Returns the centres of the teacher's logits, zeros; none with Sinkhorn-Knopp."""
        if self.section.centering == "sinkhorn":
            return {}
        centres = {"class_centre": jnp.zeros(self.model.head_shape.num_prototypes)}
        if self.model.num_masked:
            centres["patch_centre"] = jnp.zeros(self.model.patch_head_shape.num_prototypes)
        return centres

    def teacher_targets(
        self, teacher_params, task_state: dict, batch: dict, step: jax.Array, key: jax.Array
    ) -> tuple[dict, dict, dict]:
        """Returns columns, the new task state, and measures of collapse.

        The columns are class_targets B G K, and with `patch_weight` patch_index, patch_weights
        B G S and patch_targets B G S K. The targets use the old centres. The centre of patches is
        that of the masked ones, as in DINOv2; in iBOT's own code it is that of all patches.
        """
        del key  # The teacher has no noise.
        temperature = teacher_temperature(self.section, step)
        z = self.encode(teacher_params, self.model, batch["image"])  # B G T D
        logits = self.apply(teacher_params, z[:, :, 0], method="class_logits")
        rows = jnp.broadcast_to(batch["mask"][:, None], logits.shape[:2])
        targets, state = self.assign(task_state, "class_centre", logits, rows, temperature)
        columns = {"class_targets": targets}
        metrics = prototypes.usage(_flat(targets, 1), rows.reshape(-1))
        if "class_centre" in state:
            metrics["center_norm"] = jnp.linalg.norm(state["class_centre"])
        if self.model.num_masked:
            index, weights = masked_places(batch["is_masked"], self.model.num_masked)
            tokens = take_patches(self.model.patches_of, z, index)
            logits = self.apply(teacher_params, tokens, method="patch_logits")  # B G S K
            rows = (weights > 0) * batch["mask"][:, None, None]
            targets, patch_state = self.assign(
                task_state, "patch_centre", logits, rows, temperature
            )
            columns |= {"patch_targets": targets, "patch_index": index, "patch_weights": weights}
            state |= patch_state
        return columns, state, metrics

    def assign(
        self, task_state: dict, name: str, logits: jax.Array, rows: jax.Array, temperature
    ) -> tuple[jax.Array, dict]:
        """Returns targets of teacher logits ... K, and the new centre by its name.

        rows: ..., 1 for logits that count and 0 for others.
        """
        task, flat, rows = self.section, _flat(logits, logits.ndim - 2), rows.reshape(-1)
        if task.centering == "sinkhorn":
            targets, state = prototypes.sinkhorn(flat, rows, temperature), {}
        else:
            centre = task_state[name]
            targets = prototypes.centred_softmax(flat, centre, temperature)
            state = {name: prototypes.update_centre(centre, flat, rows, task.center_momentum)}
        return targets.reshape(logits.shape), state

    def loss(self, params, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        """Returns the mean loss of a batch with dropout and stochastic depth, and its terms.

        batch: image B G H W 3, local B V-G h w 3 (if there are local crops), is_masked B G N (with
        `patch_weight`), mask B, and the columns of `teacher_targets`.

        KoLeo is over the rows that are given: with `accumulate`, over a micro-batch.
        """
        task, model, mask = self.section, self.model, batch["mask"]
        keys = jax.random.split(key)
        z = self.encode(params, model, batch["image"], batch.get("is_masked"), keys[0])
        class_tokens = views = z[:, :, 0]  # B G D
        if model.local_crops:
            local = self.encode(params, model.for_local_crops, batch["local"], None, keys[1])
            views = jnp.concatenate([views, local[:, :, 0]], axis=1)
        logits = self.apply(params, views, method="class_logits")  # B V K
        targets, temperature = batch["class_targets"], task.student_temperature
        of_images = prototypes.class_loss(logits, targets, temperature)
        loss = losses.masked_mean(of_images, mask)
        metrics = {"class_loss": loss, "kl": loss - _mean_entropy(targets, mask)}
        if task.patch_weight:
            tokens = take_patches(model.patches_of, z, batch["patch_index"])
            logits = self.apply(params, tokens, method="patch_logits")  # B G S K
            of_images = prototypes.patch_loss(
                logits, batch["patch_targets"], batch["patch_weights"], temperature
            )
            metrics["patch_loss"] = losses.masked_mean(of_images, mask)
            loss += task.patch_weight * metrics["patch_loss"]
        if task.koleo_weight:
            metrics["koleo"] = sum(
                prototypes.koleo(class_tokens[:, view], mask) for view in range(NUM_GLOBAL)
            )
            loss += task.koleo_weight * metrics["koleo"]
        return loss, metrics

    def score(self, params, batch: dict) -> dict:
        """Returns features B D, the class tokens; bottleneck B b; and mask B, without dropout.

        batch: image B H W 3, mask B. The bottleneck is that of the class head over the teacher's
        last temperature: its products with the prototypes, minus a centre, are the logits of the
        targets.
        """
        z = self.model.apply({"params": params}, batch["image"], method="tokens")[:, 0]
        bottleneck = self.apply(params, z, method="class_bottleneck")
        temperature = teacher_temperature(self.section, self.section.teacher_warmup_steps)
        return {
            "features": z.astype(jnp.float32),
            "bottleneck": bottleneck / temperature,
            "mask": batch["mask"],
        }

    def apply(self, params, *args, method: str) -> jax.Array:
        """Applies a method of the model without noise."""
        return self.model.apply({"params": params}, *args, method=method)

    def encode(self, params, model: DinoViT, images: jax.Array, is_masked=None, key=None):
        """Returns the tokens B V T D of images B V H W 3, with is_masked B V N, in one pass.

        A key of None switches dropout and stochastic depth off.
        """
        options = {} if key is None else {"train": True, "rngs": {"dropout": key}}
        is_masked = None if is_masked is None else _flat(is_masked, 1)
        z = model.apply({"params": params}, _flat(images, 1), is_masked, method="tokens", **options)
        return z.reshape(*images.shape[:2], *z.shape[1:])


def masks_of(task: Task, model: ViT) -> BlockMasks:
    """Returns the masks of the global crops."""
    return BlockMasks(model.grid, task.masked_crops, task.mask_ratios)


def _model_rules(config: Config, vit) -> Rules:
    yield from encoder_rules(
        config,
        vit,
        pos_embed=("learned", "learned_2d", "sincos", "sincos_mae", "none", "rope", "learned_rope"),
        pool=("token", "gap", "token_gap"),
        distill_token=(False,),
        fc_norm=(False,),
    )
    yield (
        vit.has_cls,
        f"model.pool is {config.model.pool!r}, without a class token; self-distillation needs one: "
        "set model.class_token=True",
    )
    yield from _crop_rules(config, vit)


def _crop_rules(config: Config, vit: ViT) -> Rules:
    data, task, patch = config.data, config.task, vit.patch_size
    yield (
        not task.patch_weight or masks_of(task, vit).most_masked > 0,
        f"task.mask_ratios is {task.mask_ratios}, which masks 0 of {vit.grid[0] * vit.grid[1]} "
        "patches; increase it",
    )
    yield (
        not data.local_crops or all(side % patch == 0 for side in data.local_sides),
        f"data.local_size is {data.local_size}; it must be divisible by the patch of {patch} "
        f"pixels, such as {4 * patch} or {6 * patch}",
    )


def teacher_temperature(task: Task, step) -> jax.Array | float:
    """Returns the temperature of the teacher at a step: linear from the first to the last."""
    start, end = task.teacher_temperature, task.end_teacher_temperature
    if end is None or not task.teacher_warmup_steps:
        return start
    return start + (end - start) * jnp.minimum(step / task.teacher_warmup_steps, 1.0)


def masked_places(is_masked: jax.Array, num_places: int) -> tuple[jax.Array, jax.Array]:
    """Returns the masked patches of each crop, ... S int32, and their weights ... S.

    A crop with fewer than S masked patches has other patches after them, with weight 0. The
    weights of a crop sum to 1, or to 0 if nothing is masked.

    Args:
      is_masked: ... N.
      num_places: S; further masked patches of a crop are left out.
    """
    index = jnp.argsort(~is_masked, axis=-1, stable=True)[..., :num_places].astype(jnp.int32)
    counts = jnp.take_along_axis(is_masked, index, axis=-1).astype(jnp.float32)
    return index, counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1)


def take_patches(patches_of, z: jax.Array, index: jax.Array) -> jax.Array:
    """Returns the tokens B G S D of patches `index` B G S among tokens z B G T D."""
    B, G, *_ = z.shape
    patches = patches_of(_flat(z, 1))
    tokens = jnp.take_along_axis(patches, _flat(index, 1)[..., None], axis=1)
    return tokens.reshape(B, G, *tokens.shape[1:])


def _mean_entropy(targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean entropy in nats of targets B G K."""
    nats = math.log(targets.shape[-1]) * prototypes.entropy(targets)
    return losses.masked_mean(jnp.mean(nats, axis=1), mask)


def _flat(x: jax.Array, axes: int) -> jax.Array:
    """Joins the first axis and `axes` axes after it."""
    return x.reshape(-1, *x.shape[axes + 1 :])
