"""Options that have an effect only beside certain values of other options.

A value without effect is an error, because the user expects an effect.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from vit_jax.config import registry
from vit_jax.config.registry import is_user_defined
from vit_jax.config.schema import Config, Data, Probe
from vit_jax.errors import shown


class Condition(NamedTuple):
    """Row of `CONDITIONS`.

    Attributes:
      fields: dotted names, separated by spaces.
      has_effect: config -> True if these fields have an effect in it.
      remedy: what gives them an effect.
    """

    fields: str
    has_effect: Callable[[Config], bool]
    remedy: str


def _is(value: str, *names: str) -> bool:
    """Returns True for one of the names, and for a user-defined object, which may use any field."""
    return value in names or is_user_defined(value)


def _reads(data: Data, field: str) -> bool:
    """Returns True if the kind of data set reads a field.

    Names in `mix` take the place of one of them for training; the validation split still reads it.
    """
    (source,) = (each for each in dataclasses.fields(Data) if each.name == "source")
    kind = registry.chosen_by(source, data.source, "config.data.source")
    if kind is None:
        return True
    is_replaced = bool(data.mix) and field == kind.named_by
    reads_val = bool(data.val_split) and data.dev is None
    return field in kind.reads and (not is_replaced or reads_val)


def _probe_reads(probe: Probe, field: str) -> bool:
    """Returns True if the data set of `config.probe` is of its own kind, which reads a field."""
    kind = registry.chosen(probe, "source") if probe.source else None
    return bool(probe.source) and (kind is None or field in kind.reads)


def _changes_lr(config: Config) -> bool:
    optimizer = config.optimizer
    is_constant = optimizer.schedule == "constant"
    return not is_constant or bool(optimizer.warmup_steps or optimizer.cooldown_steps)


CONDITIONS = (
    Condition(
        "eval_every",
        lambda c: bool(c.data.val_split) or c.data.dev is not None,
        "data.val_split or data.dev",
    ),
    Condition("model.gelu", lambda c: _is(c.model.mlp, "mlp", "glu"), "model.mlp='mlp' or 'glu'"),
    Condition(
        "model.rope",
        lambda c: "rope" in c.model.pos_embed,
        "model.pos_embed='rope' or 'learned_rope'",
    ),
    Condition(
        "model.pos_embed_std",
        lambda c: c.model.pos_embed.startswith("learned"),
        "model.pos_embed='learned' or 'learned_2d'",
    ),
    Condition(  # The rate is linear in depth, from 0 at the first layer.
        "model.drop_path", lambda c: c.model.num_layers != 1, "two or more layers"
    ),
    Condition(  # Its statistics are those of frozen features.
        "model.head_norm",
        lambda c: c.optimizer.freeze == "all but head",
        "optimizer.freeze='all but head'",
    ),
    Condition(
        "data.dir",
        lambda c: _reads(c.data, "dir"),
        "a data.source that reads it and, beside data.mix, a data.val_split",
    ),
    Condition(
        "data.dataset",
        lambda c: _reads(c.data, "dataset"),
        "a data.source that reads it and, beside data.mix, a data.val_split",
    ),
    Condition(
        "data.val_fraction",
        lambda c: _reads(c.data, "val_fraction") and c.data.val_split == "val",
        "a data.source that reads it and data.val_split='val'",
    ),
    Condition(
        "data.subset_seed",
        lambda c: (
            any(x is not None for x in (c.data.per_class, c.data.fraction, c.data.count))
            or c.data.dev is not None
            or bool(c.sweep.grid)
        ),
        "data.per_class, fraction, count or dev",
    ),
    Condition(
        "data.num_classes data.num_examples",
        lambda c: _reads(c.data, "num_classes"),
        "data.source='fake'",
    ),
    Condition("data.max_bad", lambda c: c.data.on_bad_image == "skip", "data.on_bad_image='skip'"),
    Condition(
        "data.fast_crop", lambda c: _reads(c.data, "dir") or c.data.mix, "a data.source with files"
    ),
    Condition(
        "data.second_augment data.local_crops",
        lambda c: _is(c.task.name, "dino"),
        "task.name='dino'",
    ),
    Condition(
        "data.local_size data.local_augment",
        lambda c: bool(c.data.local_crops),
        "data.local_crops above 0",
    ),
    Condition(
        "data.mixup_shift",
        lambda c: bool(c.data.mixup or c.data.cutmix),
        "data.mixup or data.cutmix",
    ),
    Condition(
        "data.crop_fraction",
        lambda c: c.data.eval_crop != "resize" and c.data.eval_side is None,
        "data.eval_crop='center' or another centre crop, and data.eval_side=None",
    ),
    Condition(
        "data.eval_side",
        lambda c: c.data.eval_crop in ("center", "huggingface"),
        "data.eval_crop='center' or 'huggingface'",
    ),
    Condition(
        "task.loss task.label_smoothing task.distill task.distill_weight task.temperature",
        lambda c: _is(c.task.name, "classification"),
        "task.name='classification'",
    ),
    Condition(
        "task.targets task.corrupted task.mask_share task.random_share",
        lambda c: _is(c.task.name, "masked_patches"),
        "task.name='masked_patches'",
    ),
    Condition(
        "task.mask_ratio task.normalize_targets task.decoder_layers task.decoder_size "
        "task.decoder_heads",
        lambda c: _is(c.task.name, "mae"),
        "task.name='mae'",
    ),
    Condition(
        "task.prototypes task.head_layers task.head_hidden task.bottleneck "
        "task.normalize_last_layer task.student_temperature task.teacher_temperature "
        "task.end_teacher_temperature task.teacher_warmup_steps task.centering "
        "task.center_momentum task.patch_weight task.patch_prototypes task.masked_crops "
        "task.mask_ratios task.koleo_weight",
        lambda c: _is(c.task.name, "dino"),
        "task.name='dino'",
    ),
    Condition(
        "task.patch_prototypes task.masked_crops task.mask_ratios",
        lambda c: c.task.patch_weight > 0,
        "task.patch_weight above 0",
    ),
    Condition(
        "task.center_momentum", lambda c: c.task.centering == "mean", "task.centering='mean'"
    ),
    Condition(
        "task.teacher_warmup_steps",
        lambda c: c.task.end_teacher_temperature is not None,
        "task.end_teacher_temperature",
    ),
    Condition(
        "task.end_teacher_temperature",
        lambda c: c.task.teacher_warmup_steps > 0,
        "task.teacher_warmup_steps above 0",
    ),
    Condition(
        "task.distill task.distill_weight task.temperature",
        lambda c: bool(c.task.teacher) or is_user_defined(c.task.name),
        "task.teacher",
    ),
    Condition("task.temperature", lambda c: _is(c.task.distill, "soft"), "task.distill='soft'"),
    Condition("task.teacher", lambda c: c.task.distill_weight != 0, "task.distill_weight above 0"),
    Condition(
        "task.label_smoothing",
        lambda c: not c.task.teacher or c.task.distill_weight != 1,
        "task.distill_weight below 1",
    ),
    Condition(
        "optimizer.end_lr",
        lambda c: (
            _is(c.optimizer.schedule, "linear", "cosine") or c.optimizer.sam_rho_min is not None
        ),
        "optimizer.schedule='linear' or 'cosine'",
    ),
    Condition(
        "optimizer.timescale",
        lambda c: _is(c.optimizer.schedule, "rsqrt"),
        "optimizer.schedule='rsqrt'",
    ),
    Condition(
        "optimizer.stair_at",
        lambda c: _is(c.optimizer.schedule, "stair"),
        "optimizer.schedule='stair'",
    ),
    Condition(
        "optimizer.schedule",
        lambda c: c.optimizer.schedule != "stair" or bool(c.optimizer.stair_at),
        "optimizer.stair_at, such as (0.3, 0.6, 0.9)",
    ),
    Condition(
        "optimizer.decay_factors",
        lambda c: bool(c.optimizer.weight_decay),
        "optimizer.weight_decay above 0",
    ),
    Condition(
        "optimizer.end_weight_decay",
        lambda c: bool(c.optimizer.weight_decay),
        "optimizer.weight_decay above 0",
    ),
    Condition("optimizer.end_ema", lambda c: c.optimizer.ema is not None, "optimizer.ema"),
    Condition(
        "optimizer.clip_per", lambda c: c.optimizer.clip_norm is not None, "optimizer.clip_norm"
    ),
    Condition(
        "optimizer.layer_decay",
        lambda c: not str(c.model.name).startswith("bit_"),
        "a Vision Transformer",
    ),
    Condition("optimizer.sam_rho_min", _changes_lr, "a learning rate that changes"),
    Condition(
        "init.new_head init.resize init.drop_token init.allow_numerics",
        lambda c: bool(c.init.path or c.init.stage),
        "init.path or init.stage",
    ),
    Condition("init.resize_rule", lambda c: c.init.resize, "init.resize"),
    Condition(
        "init.drop_token",
        lambda c: c.model.pool in ("gap", "map") or not c.model.distill_token,
        "a model without class token (model.pool='gap' or 'map') or without distillation token",
    ),
    Condition(
        "fewshot.source fewshot.sets fewshot.dir fewshot.split fewshot.test_split fewshot.shots "
        "fewshot.seeds",
        lambda c: c.fewshot.every is not None,
        "fewshot.every",
    ),
    Condition(
        "fewshot.dir",
        lambda c: c.fewshot.source not in ("", c.data.source),
        "a fewshot.source that is not data.source",
    ),
    Condition(
        "probe.source probe.dir probe.dataset probe.split probe.test_split probe.count probe.k "
        "probe.linear",
        lambda c: c.probe.every is not None,
        "probe.every",
    ),
    Condition(
        "probe.dir",
        lambda c: _probe_reads(c.probe, "dir"),
        "a probe.source that reads it",
    ),
    Condition(
        "probe.dataset",
        lambda c: _probe_reads(c.probe, "dataset"),
        "a probe.source that reads it",
    ),
    Condition("sweep.dev", lambda c: bool(c.sweep.grid), "sweep.grid"),
)


def without_effect(config: Config) -> Iterator[tuple[str, str]]:
    """Yields each field that differs from its default and has no effect, and the error message.

    In a sweep, a field has an effect if it has one for a value of the grid.
    """
    configs, default = [config, *_variations(config)], Config()
    for fields, has_effect, remedy in CONDITIONS:
        for field in fields.split():
            usual = value_of(default, field)
            values = (value_of(each, field) for each in configs)
            unusual = next((value for value in values if value != usual), usual)
            # The condition may import a table, so it comes last.
            if unusual != usual and not any(map(has_effect, configs)):
                yield (
                    field,
                    f"{field} is {shown(unusual)}, which has no effect without {remedy}; set this, "
                    f"or leave {field} at {usual!r}",
                )


def value_of(config: Config, field: str) -> object:
    """Returns the value of a dotted field."""
    for name in field.split("."):
        config = getattr(config, name)
    return config


def with_values(config: Config, values: Mapping[str, object]) -> Config:
    """Returns the config with other values of some dotted fields, which are not checked."""
    for field, value in values.items():
        first, _, rest = field.partition(".")
        value = with_values(getattr(config, first), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{first: value})
    return config


def _variations(config: Config) -> Iterator[Config]:
    """Yields the config with each value of `sweep.grid` alone; the grid is not checked yet."""
    for field, values in config.sweep.grid:
        with contextlib.suppress(AttributeError, TypeError):  # An unknown field, or an option.
            value_of(config, field)
            yield from [with_values(config, {field: value}) for value in values]
