"""Values without effect are refused, each with what would give it an effect."""

import dataclasses

import pytest

from vit_jax import config as config_lib
from vit_jax.config import base_config, check, conditions
from vit_jax.config.schema import Config
from vit_jax.errors import ConfigError

# Fields that are set -> one that has no effect beside the others, and what it needs.
DINO = {"task.name": "dino", "optimizer.ema": 0.99}
WITHOUT_EFFECT = [
    ({"optimizer.schedule": "stair"}, "optimizer.schedule", "optimizer.stair_at"),
    ({"optimizer.stair_at": (0.5,)}, "optimizer.stair_at", "optimizer.schedule='stair'"),
    ({"optimizer.schedule": "rsqrt", "optimizer.end_lr": 1e-5}, "optimizer.end_lr", "'cosine'"),
    ({"optimizer.timescale": 100}, "optimizer.timescale", "optimizer.schedule='rsqrt'"),
    ({"optimizer.decay_factors": (("kernel", 0.0),)}, "optimizer.decay_factors", "weight_decay"),
    (
        {"optimizer.schedule": "constant", "optimizer.sam_rho": 0.2, "optimizer.sam_rho_min": 0.1},
        "optimizer.sam_rho_min",
        "a learning rate that changes",
    ),
    ({"optimizer.end_weight_decay": 0.4}, "optimizer.end_weight_decay", "weight_decay above 0"),
    ({"optimizer.end_ema": 1.0}, "optimizer.end_ema", "optimizer.ema"),
    (
        {"optimizer.clip_norm": None, "optimizer.clip_per": "parameter"},
        "optimizer.clip_per",
        "optimizer.clip_norm",
    ),
    ({"optimizer.layer_decay": 0.7, "model.name": "bit_r50x1"}, "optimizer.layer_decay", "Vision"),
    ({"model.head_norm": True}, "model.head_norm", "optimizer.freeze='all but head'"),
    ({"task.temperature": 2.0}, "task.temperature", "task.teacher"),
    ({"task.teacher": "t.npz", "task.distill_weight": 0.0}, "task.teacher", "distill_weight above"),
    (
        {"task.teacher": "t.npz", "task.distill": "hard", "task.temperature": 2.0},
        "task.temperature",
        "task.distill='soft'",
    ),
    (
        {"task.teacher": "t.npz", "task.distill_weight": 1.0, "task.label_smoothing": 0.1},
        "task.label_smoothing",
        "task.distill_weight below 1",
    ),
    ({"task.corrupted": 0.3}, "task.corrupted", "task.name='masked_patches'"),
    (
        {"task.name": "masked_patches", "task.label_smoothing": 0.1},
        "task.label_smoothing",
        "task.name='classification'",
    ),
    ({"data.dir": "photos"}, "data.dir", "a data.source that reads it"),
    ({"data.source": "digits", "data.num_classes": 5}, "data.num_classes", "data.source='fake'"),
    ({"data.source": "folder", "data.dataset": "cifar10"}, "data.dataset", "a data.source"),
    ({"data.source": "tfds", "data.val_fraction": 0.2}, "data.val_fraction", "a data.source"),
    (
        {"data.source": "folder", "data.val_split": "", "data.val_fraction": 0.2},
        "data.val_fraction",
        "data.val_split='val'",
    ),
    (
        {
            "data.source": "folder",
            "data.mix": (("a", 1),),
            "data.dir": "photos",
            "data.val_split": "",
        },
        "data.dir",
        "beside data.mix, a data.val_split",
    ),
    ({"data.subset_seed": 3}, "data.subset_seed", "data.per_class, fraction, count or dev"),
    ({"data.max_bad": 0.5}, "data.max_bad", "data.on_bad_image='skip'"),
    ({"data.mixup_shift": 1}, "data.mixup_shift", "data.mixup or data.cutmix"),
    ({"data.crop_fraction": 0.9}, "data.crop_fraction", "data.eval_crop='center'"),
    ({"data.eval_side": 256}, "data.eval_side", "data.eval_crop='center' or 'huggingface'"),
    (
        {"data.eval_crop": "center", "data.eval_side": 256, "data.crop_fraction": 0.9},
        "data.crop_fraction",
        "data.eval_side=None",
    ),
    (
        {"model.pos_embed": "sincos", "model.pos_embed_std": None},
        "model.pos_embed_std",
        "model.pos_embed='learned'",
    ),
    ({"data.local_crops": 8}, "data.local_crops", "task.name='dino'"),
    ({"data.second_augment": "resize"}, "data.second_augment", "task.name='dino'"),
    ({"data.local_size": 48}, "data.local_size", "data.local_crops above 0"),
    ({"data.local_augment": "resize"}, "data.local_augment", "data.local_crops above 0"),
    ({"data.fast_crop": True}, "data.fast_crop", "a data.source with files"),
    ({"data.val_split": "", "eval_every": 5}, "eval_every", "data.val_split or data.dev"),
    ({"model.mlp": "swiglu", "model.gelu": "erf"}, "model.gelu", "model.mlp='mlp' or 'glu'"),
    ({"model.rope": "eva02"}, "model.rope", "model.pos_embed='rope' or 'learned_rope'"),
    ({"model.num_layers": 1, "model.drop_path": 0.1}, "model.drop_path", "two or more layers"),
    ({"init.new_head": True}, "init.new_head", "init.path or init.stage"),
    ({"init.path": "w", "init.resize_rule": "bicubic"}, "init.resize_rule", "init.resize"),
    (
        {"init.path": "w", "init.drop_token": True, "model.distill_token": True},
        "init.drop_token",
        "a model without class token (model.pool='gap' or 'map') or without distillation token",
    ),
    ({"task.mask_ratio": 0.5}, "task.mask_ratio", "task.name='mae'"),
    ({"task.prototypes": 64}, "task.prototypes", "task.name='dino'"),
    (DINO | {"task.mask_ratios": (0.2, 0.4)}, "task.mask_ratios", "task.patch_weight above 0"),
    (
        DINO | {"task.centering": "sinkhorn", "task.center_momentum": 0.8},
        "task.center_momentum",
        "task.centering='mean'",
    ),
    (
        DINO | {"task.teacher_warmup_steps": 5},
        "task.teacher_warmup_steps",
        "task.end_teacher_temperature",
    ),
    (
        DINO | {"task.end_teacher_temperature": 0.07},
        "task.end_teacher_temperature",
        "task.teacher_warmup_steps above 0",
    ),
    ({"fewshot.seeds": 5}, "fewshot.seeds", "fewshot.every"),
    ({"fewshot.every": 5, "fewshot.dir": "d"}, "fewshot.dir", "a fewshot.source"),
    ({"probe.k": 5}, "probe.k", "probe.every"),
    ({"probe.every": 5, "probe.dir": "d"}, "probe.dir", "a probe.source that reads it"),
    (
        {"probe.every": 5, "probe.source": "folder", "probe.dataset": "cifar10"},
        "probe.dataset",
        "a probe.source that reads it",
    ),
    ({"sweep.dev": 0.2}, "sweep.dev", "sweep.grid"),
]


def config_of(fields) -> config_lib.ConfigDict:
    config = base_config()
    for field, value in {"steps": 10, **fields}.items():
        config_lib.override(config, field, value)
    return config


@pytest.mark.parametrize(("fields", "field", "remedy"), WITHOUT_EFFECT)
def test_value_without_effect_is_refused_with_what_it_needs(fields, field, remedy):
    with pytest.raises(ConfigError) as caught:
        check(config_of(fields))
    assert str(caught.value).startswith(f"config.{field} is {fields[field]!r}, which has no effect")
    assert remedy in str(caught.value)


def test_each_condition_is_met_or_not_by_the_tested_configs():
    tested = {field for _, field, _ in WITHOUT_EFFECT}
    assert all(tested & set(row.fields.split()) for row in conditions.CONDITIONS)


def test_config_of_a_started_run_may_have_values_without_effect():
    values = config_lib.to_dict(check(config_of({})))
    values["optimizer"]["stair_at"] = [0.5]
    assert config_lib.from_dict(values)[""].optimizer.stair_at == (0.5,)


def test_override_resets_what_it_leaves_without_effect_and_refuses_what_it_sets_itself():
    base = config_of({"data.source": "tfds", "data.dataset": "cifar10", "data.dir": "d"})
    run = config_lib.resolve(base, {"data.source": "folder"})[""]
    assert (run.data.source, run.data.dataset, run.data.dir) == ("folder", "", "d")
    with pytest.raises(ConfigError, match=r"config\.data\.dataset is 'mnist'"):
        config_lib.resolve(base, {"data.source": "folder", "data.dataset": "mnist"})
    wrong = config_of({"optimizer.stair_at": (0.5,)})
    with pytest.raises(ConfigError, match=r"config\.optimizer\.stair_at"):
        config_lib.resolve(wrong, {"seed": 1})
    assert config_lib.resolve(wrong, {"optimizer.schedule": "stair"})


def test_field_of_a_stage_without_effect_is_refused():
    config = base_config("a", "b")
    for name in config.stages:
        config.stages[name].steps = 5
    with pytest.raises(ConfigError, match=r"^config\.stages\.b\.task\.temperature is 3\.0"):
        config_lib.resolve(config, {"stages.b.task.temperature": "3"})


def test_field_has_an_effect_if_it_has_one_for_a_value_of_the_grid():
    grid = (("optimizer.schedule", ("constant", "cosine")),)
    fields = {"optimizer.schedule": "constant", "optimizer.end_lr": 1e-5}
    assert check(config_of(fields | {"sweep.grid": grid}))
    with pytest.raises(ConfigError, match=r"optimizer\.timescale is 5"):
        check(config_of({"sweep.grid": (("optimizer.timescale", (5, 50)),)}))
    with pytest.raises(ConfigError, match=r"optimizer\.timescale is 5"):
        config_lib.resolve(config_of({}), {"sweep.grid": "(('optimizer.timescale', (5, 50)),)"})


def test_replaced_changes_the_given_fields_only():
    config = conditions.with_values(Config(), {"optimizer.lr": 0.5, "seed": 3})
    assert (config.optimizer.lr, config.seed) == (0.5, 3)
    assert dataclasses.replace(config, optimizer=Config().optimizer, seed=0) == Config()
