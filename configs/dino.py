"""Self-distillation without labels: DINO, iBOT, DINOv2 (arXiv:2104.14294, 2111.07832, 2304.07193).

  python -m vit_jax.main --config=configs/dino.py:recipe=dino,dir=DIR --workdir=RUN

`recipe` is dino, ibot or dinov2; `model` is vit_s16 or vit_b16, for dinov2 vit_l16. `dir` is a
folder that `prepare` wrote, or with `source=images` any folder of images; without it the run reads
TFDS's ImageNet in `imagenet_dir`. No label is used for training; those of ImageNet score the
features every ten epochs. `examples` is the number of images, which turns epochs into steps;
`batch` scales the learning rate. The teacher is what a run saves:
--config=configs/finetune.py:init=RUN fine-tunes it.

Hardware: dino S/16 8 V100 for 1.75 days, B/16 16; ibot S/16 16; dinov2 32 A100 for 1 day. Expected
on ImageNet, kNN and linear: dino S/16 69.3, 74.0, and 73.3, 76.0 with `epochs=300`, a teacher
temperature that ends at 0.07 and task.normalize_last_layer=False; ibot S/16 75.2, 77.9, B/16 77.1,
79.5; dinov2 L/16 81.6, 82.9. Stochastic depth is linear in depth; in dinov2's code it is uniform.
Gradients of query, key and value are clipped separately; in the code of dino and ibot they are one
tensor.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

EXAMPLES = 1_281_167  # Of ImageNet.
ROWS = {  # Batch and epochs: README of facebookresearch/dino; README of bytedance/ibot,
    # for its B/16 the paper; ssl_default_config.yaml of facebookresearch/dinov2.
    ("dino", "vit_s16"): (512, 100.0),
    ("dino", "vit_b16"): (1024, 100.0),
    ("ibot", "vit_s16"): (1024, 800.0),
    ("ibot", "vit_b16"): (1024, 400.0),
    ("dinov2", "vit_l16"): (2048, 100.0),
}
CROPS = {  # Number of local crops; area of an image that separates local from global crops.
    "dino": (8, 0.4),
    "ibot": (10, 0.25),
    "dinov2": (8, 0.32),
}
DINOV2_EPOCH = 1250  # Steps.
JITTER = "flip|color_jitter(0.4,0.4,0.2,0.1,prob=0.8)|grayscale(0.2)"
# Tensors with two or more dimensions decay, tokens and positions too.
DECAYED = "(kernel|cls|token|registers|embedding|last_layer/scale)$"


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        recipe="dino",
        model="",
        source="prepared",
        dir="",
        imagenet_dir="",
        batch=0,
        epochs=0.0,
        examples=EXAMPLES,
        smoke=False,
    )
    models = {recipe: [model for name, model in ROWS if name == recipe] for recipe, _ in ROWS}
    if arg.recipe not in models:
        raise ConfigError(f"recipe is {arg.recipe!r}; choose from {', '.join(models)}.")
    model = arg.model or models[arg.recipe][0]
    if model not in models[arg.recipe]:
        raise ConfigError(f"model is {model!r}; choose from {', '.join(models[arg.recipe])}.")
    batch, epochs = ROWS[arg.recipe, model]
    batch, epochs = arg.batch or batch, arg.epochs or epochs
    is_dinov2 = arg.recipe == "dinov2"
    epoch = DINOV2_EPOCH if is_dinov2 else max(arg.examples // batch, 1)
    steps = int(epochs * epoch)

    config = base_config()
    config.model.update(name=model, gelu="erf", pixel_stats="imagenet", drop_path=0.1)
    config.data.update(source="tfds", dataset="imagenet2012", dir=arg.imagenet_dir)
    config.data.update(val_split="validation", eval_crop="timm", resample="bicubic")
    if arg.dir:
        config.data.update(source=arg.source, dataset="", dir=arg.dir)
        config.data.update(val_split="val", val_fraction=0.01)
    else:  # Whose labels score the features.
        config.probe.update(every=10 * epoch, test_split="validation", count=25_000)
    _set_augmentation(config.data, *CROPS[arg.recipe])
    _set_optimizer(config.optimizer, batch, epoch)
    config.task.name = "dino"
    config.update(batch_size=batch, steps=steps, eval_every=10_000)
    if arg.recipe != "dino":
        # In iBOT and DINOv2 the teacher's temperature rises for 30 epochs.
        config.task.update(end_teacher_temperature=0.07, teacher_warmup_steps=30 * epoch)
        config.task.update(patch_weight=1.0, normalize_last_layer=False)
    if arg.recipe == "ibot":
        config.task.prototypes = 8192
    if is_dinov2:
        config.model.update(layer_scale=1e-5, drop_path=0.3)
        config.task.koleo_weight = 0.1
        config.optimizer.update(lr=4e-3 * (batch / 1024) ** 0.5, ema=0.992, clip_per="module")
        config.optimizer.update(layer_decay=0.9, lr_factors=(("^embedding/", 0.2),))
    return smoke(config) if arg.smoke else config


def _set_augmentation(data, local_crops: int, area: float) -> None:
    """Sets the crops of `DataAugmentationDINO`, the same in all three."""
    data.augment = f"random_resized_crop({area})|{JITTER}|gaussian_blur(1.0)"
    data.second_augment = f"random_resized_crop({area})|{JITTER}|gaussian_blur(0.1)|solarize(0.2)"
    data.local_augment = f"random_resized_crop(0.05,{area})|{JITTER}|gaussian_blur(0.5)"
    data.local_crops = local_crops


def _set_optimizer(optimizer, batch: int, epoch: int) -> None:
    """Sets the rule of DINO: AdamW; rate, weight decay and teacher change by half a cosine."""
    optimizer.update(lr=5e-4 * batch / 256, end_lr=1e-6, warmup_steps=10 * epoch)
    optimizer.update(weight_decay=0.04, end_weight_decay=0.4, ema=0.996, end_ema=1.0)
    optimizer.decay_factors = ((DECAYED, 1.0), (".*", 0.0))
    optimizer.update(clip_norm=3.0, clip_per="parameter")
    optimizer.freeze_steps = (("last_layer", epoch),)
