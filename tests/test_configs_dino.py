"""Configs of self-distillation: the numbers of their papers' code."""

import pytest

from tests.support.runs import ROOT
from vit_jax import config as config_lib

COLORS = "flip|color_jitter(0.4,0.4,0.2,0.1,0.8)|grayscale(0.2)"
NUMBERS = {  # Row -> fields and their values.
    "dino.py": {
        "batch_size": 512,
        "steps": 100 * 2502,
        "optimizer.lr": 1e-3,
        "optimizer.end_lr": 1e-6,
        "optimizer.warmup_steps": 25_020,
        "optimizer.weight_decay": 0.04,
        "optimizer.end_weight_decay": 0.4,
        "optimizer.ema": 0.996,
        "optimizer.end_ema": 1.0,
        "optimizer.clip_norm": 3.0,
        "optimizer.clip_per": "parameter",
        "optimizer.freeze_steps": (("last_layer", 2502),),
        "task.prototypes": 65_536,
        "task.patch_weight": 0.0,
        "task.normalize_last_layer": True,
        "task.end_teacher_temperature": None,
        "model.drop_path": 0.1,
        "data.local_crops": 8,
        "data.augment": f"random_resized_crop(0.4)|{COLORS}|gaussian_blur(1)",
    },
    "dino.py:recipe=ibot": {
        "batch_size": 1024,
        "steps": 800 * 1251,
        "optimizer.lr": 2e-3,
        "task.prototypes": 8192,
        "task.patch_weight": 1.0,
        "task.patch_prototypes": None,
        "task.masked_crops": 0.5,
        "task.mask_ratios": (0.1, 0.5),
        "task.normalize_last_layer": False,
        "task.end_teacher_temperature": 0.07,
        "task.teacher_warmup_steps": 30 * 1251,
        "data.local_crops": 10,
        "data.local_augment": (f"random_resized_crop(0.05,0.25)|{COLORS}|gaussian_blur(0.5)"),
    },
    "dino.py:recipe=dinov2": {
        "batch_size": 2048,
        "steps": 125_000,
        "optimizer.lr": pytest.approx(4e-3 * 2**0.5),
        "optimizer.layer_decay": 0.9,
        "optimizer.lr_factors": (("^embedding/", 0.2),),
        "optimizer.ema": 0.992,
        "optimizer.clip_per": "module",
        "task.prototypes": 65_536,
        "task.koleo_weight": 0.1,
        "task.centering": "mean",
        "task.teacher_warmup_steps": 37_500,
        "model.name": "vit_l16",
        "model.layer_scale": 1e-5,
        "model.drop_path": 0.3,
        "data.second_augment": (
            f"random_resized_crop(0.32)|{COLORS}|gaussian_blur(0.1)|solarize(0.2)"
        ),
    },
    "continue_dino.py:init=WHERE,dir=DIR": {
        "model.name": "auto",
        "init.new_head": True,
        "optimizer.layer_decay": 0.9,
        "optimizer.weight_decay": 0.04,
        "optimizer.end_weight_decay": None,
        "optimizer.ema": 0.999,
        "optimizer.freeze_steps": (("^(?!class_head/|patch_head/)", 250),),
    },
}


def value(config, name: str):
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("row", NUMBERS)
def test_a_recipe_has_its_published_numbers(row):
    config = config_lib.check(config_lib.load(f"{ROOT}/configs/{row}"))[""]
    numbers = NUMBERS[row]
    assert {field: value(config, field) for field in numbers} == numbers


def test_a_batch_scales_the_rate_and_examples_the_length():
    row = "dino.py:recipe=ibot,batch=256,examples=2560,epochs=50,dir=d,source=images"
    config = config_lib.check(config_lib.load(f"{ROOT}/configs/{row}"))[""]
    assert (config.optimizer.lr, config.steps, config.optimizer.warmup_steps) == (5e-4, 500, 100)
    assert (config.data.source, config.data.dir, config.data.val_split) == ("images", "d", "val")


def test_images_whose_colours_have_a_meaning_keep_them():
    row = "continue_dino.py:init=w.npz,dir=d,color=False,pixel_stats=half,patches"
    config = config_lib.check(config_lib.load(f"{ROOT}/configs/{row}"))[""]
    steps = f"{config.data.augment}|{config.data.second_augment}|{config.data.local_augment}"
    assert not any(name in steps for name in ("jitter", "grayscale", "solarize"))
    assert (config.model.pixel_stats, config.init.allow_numerics) == ("half", True)
    assert config.task.patch_weight == 1.0
