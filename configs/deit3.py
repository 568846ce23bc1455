"""DeiT III: LAMB, 3-Augment, LayerScale, then a larger image (arXiv:2204.07118).

  python -m vit_jax.main --config=configs/deit3.py:model=vit_b16 --workdir=RUN
  python -m vit_jax.main --config=configs/deit3.py:model=vit_b16,data=imagenet21k,dir=DIR \\
    --workdir=RUN

Stages: `pretrain`, `finetune`, the latter on ImageNet through TFDS (`imagenet_dir`, its folder) at
224 px, S at 384 where it was pre-trained on ImageNet. DIR is a folder that `prepare` wrote.

Hardware: 8 V100-32G for S and B, 32 for L and H (README_revenge of facebookresearch/deit).
Expected: ImageNet, B 83.8, L 84.9, H 85.2, S 81.4 and at 384 px 83.4; ImageNet-21k, S 83.1,
B 85.7, L 87.0, H 87.2.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

ROWS = {  # README_revenge: pixels, rate, stochastic depth; then pixels, depth of fine-tuning.
    "imagenet": {
        "vit_s16": (224, 4e-3, 0.05, 384, 0.0),
        "vit_b16": (192, 3e-3, 0.2, 224, 0.2),
        "vit_l16": (192, 3e-3, 0.45, 224, 0.45),
        "vit_h14": (154, 3e-3, 0.6, 224, 0.55),  # Of 160 px, the patches of 14 that fit.
    },
    "imagenet21k": {
        "vit_s16": (224, 1e-3, 0.05, 224, 0.05),
        "vit_b16": (224, 1e-3, 0.1, 224, 0.15),
        "vit_l16": (224, 1e-3, 0.3, 224, 0.4),
        "vit_h14": (126, 1e-3, 0.5, 224, 0.45),  # Of 128 px; 90 epochs.
    },
}
THREE_AUGMENT = "three_augment|color_jitter(0.3)"
EXAMPLES = {"imagenet": 1_281_167, "imagenet21k": 14_197_122}


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        data="imagenet",
        model="vit_b16",
        epochs=0.0,
        source="",
        dir="",
        imagenet_dir="",
        smoke=False,
    )
    if arg.data not in ROWS:
        raise ConfigError(f"data is {arg.data!r}; choose from {', '.join(ROWS)}.")
    if arg.model not in ROWS[arg.data]:
        raise ConfigError(f"model is {arg.model!r}; choose from {', '.join(ROWS[arg.data])}.")
    pixels, lr, drop_path, tune_pixels, tune_drop_path = ROWS[arg.data][arg.model]
    is_imagenet = arg.data == "imagenet"
    if is_imagenet and (arg.source or arg.dir):
        raise ConfigError("source and dir are those of data=imagenet21k; give imagenet_dir.")
    config = base_config("pretrain", "finetune")
    for name in config.stages:
        stage = config.stages[name]
        stage.model.update(name=arg.model, layer_scale=1e-4, gelu="erf", pixel_stats="imagenet")
        stage.data.update(source="tfds", dataset="imagenet2012", dir=arg.imagenet_dir)
        stage.data.update(val_split="validation", eval_crop="timm", crop_fraction=1.0)
        stage.data.update(resample="bicubic", cutmix=1.0)
        stage.optimizer.update(name="lamb", end_lr=1e-5)
        stage.optimizer.decay_factors = ((".*kernel", 1.0), (".*", 0.0))
    pretrain, finetune = config.stages.pretrain, config.stages.finetune
    for stage, size, rate in (
        (pretrain, pixels, drop_path),
        (finetune, tune_pixels, tune_drop_path),
    ):
        stage.data.image_size = size
        stage.model.drop_path = rate
    finetune.init.update(stage="pretrain", resize=True, new_head=not is_imagenet)
    if is_imagenet:
        _set_imagenet(pretrain, finetune, lr)
    else:
        pretrain.data.update(source=arg.source or "prepared", dataset="", dir=arg.dir)
        pretrain.data.val_split = "val"
        pretrain.data.val_fraction = 0.002
        _set_imagenet21k(pretrain, finetune, lr, epochs=90.0 if arg.model == "vit_h14" else 240.0)
    pretrain.update(batch_size=2048, eval_every=10_000)
    pretrain.epochs = arg.epochs or pretrain.epochs
    for stage, data in ((pretrain, arg.data), (finetune, "imagenet")):
        stage.optimizer.warmup_steps = 5 * EXAMPLES[data] // stage.batch_size
    return smoke(config) if arg.smoke else config


def _set_imagenet(pretrain, finetune, lr: float) -> None:
    """800 epochs with binary cross-entropy, 20 with AdamW and RandAugment."""
    pretrain.task.loss = "binary"
    pretrain.data.augment = f"random_resized_crop|flip|{THREE_AUGMENT}"
    pretrain.data.update(mixup=0.8, repeats=3)
    pretrain.optimizer.update(lr=lr, weight_decay=0.05)
    pretrain.epochs = 800.0
    finetune.task.label_smoothing = 0.1
    randaug = "randaug_increasing(2,9,std=0.5,prob=0.5)"  # timm's rand-m9-mstd0.5-inc1.
    finetune.data.update(augment=f"random_resized_crop|flip|{randaug}", mixup=0.8)
    finetune.optimizer.update(name="adamw", lr=1e-5, weight_decay=0.1, clip_norm=None)
    finetune.update(batch_size=512, epochs=20.0)


def _set_imagenet21k(pretrain, finetune, lr: float, epochs: float) -> None:
    """Simple random crops, smoothed labels, no mixup; 50 epochs of fine-tuning."""
    for stage in (pretrain, finetune):
        stage.task.label_smoothing = 0.1
        stage.data.augment = f"pad_crop|flip|{THREE_AUGMENT}"
        stage.optimizer.weight_decay = 0.02
    pretrain.optimizer.lr = lr
    pretrain.epochs = epochs
    finetune.optimizer.lr = 3e-4
    finetune.update(batch_size=2048, epochs=50.0)
