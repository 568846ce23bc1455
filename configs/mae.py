"""Masked autoencoders (arXiv:2111.06377): pre-training without labels, then fine-tuning.

  python -m vit_jax.main --config=configs/mae.py:dir=DIR --workdir=RUN

Stages: `pretrain`, `finetune`. `dir` is the folder of images that were prepared for pre-training,
whose labels are not used; without it, both stages read TFDS's ImageNet in `imagenet_dir`. `model`
is vit_b16, vit_l16 or vit_h14; `init` are weights to continue from. `batch` and `finetune_batch`
scale the learning rates.

Hardware: 64 V100 (PRETRAIN.md of facebookresearch/mae), 8 nodes for pre-training; fine-tuning as
in configs/mae_finetune.py. Expected after `epochs=1600`: B 83.66, L 85.95, H 86.93.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

ROWS = {  # FINETUNE.md: epochs, rate for each 256 examples, layer decay, stochastic depth.
    "vit_b16": (100.0, 5e-4, 0.65, 0.1),
    "vit_l16": (50.0, 1e-3, 0.75, 0.2),
    "vit_h14": (50.0, 1e-3, 0.75, 0.3),
}
EXAMPLES = 1_281_167  # Of ImageNet.


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        model="vit_b16",
        dir="",
        imagenet_dir="",
        init="",
        batch=4096,
        finetune_batch=1024,
        epochs=800.0,
        warmup_epochs=40.0,
        examples=EXAMPLES,
        smoke=False,
    )
    if arg.model not in ROWS:
        raise ConfigError(f"model is {arg.model!r}; choose from {', '.join(ROWS)}.")
    config = base_config("pretrain", "finetune")
    pretrain, finetune = config.stages.pretrain, config.stages.finetune
    for stage in (pretrain, finetune):
        stage.model.update(name=arg.model, gelu="erf", pixel_stats="imagenet")
        stage.model.update(pos_embed="sincos_mae", class_token=True)
        stage.data.update(source="tfds", dataset="imagenet2012", dir=arg.imagenet_dir)
        stage.data.update(val_split="validation", eval_crop="timm", resample="bicubic")
        stage.optimizer.update(weight_decay=0.05, clip_norm=None)
    if arg.dir:
        pretrain.data.update(source="prepared", dataset="", dir=arg.dir)
        pretrain.data.update(val_split="", val_fraction=0.01)

    pretrain.task.name = "mae"
    pretrain.data.augment = "random_resized_crop(0.2)|flip"
    pretrain.optimizer.update(lr=1.5e-4 * arg.batch / 256, kwargs={"b2": 0.95})
    pretrain.optimizer.warmup_steps = int(arg.warmup_epochs * arg.examples) // arg.batch
    # Tokens are no vectors in the paper's code: they decay, biases and scales do not.
    pretrain.optimizer.decay_factors = ((".*(kernel|cls|token)", 1.0), (".*", 0.0))
    pretrain.update(batch_size=arg.batch, epochs=arg.epochs, eval_every=10_000)
    if arg.init:
        pretrain.init.update(path=arg.init, new_head=True, resize=True)

    epochs, lr, layer_decay, drop_path = ROWS[arg.model]
    finetune.model.update(pool="gap", drop_path=drop_path)
    finetune.task.label_smoothing = 0.1
    finetune.data.update(mixup=0.8, cutmix=1.0)
    randaug = "randaug_increasing(2,9,std=0.5,prob=0.5)"  # timm's rand-m9-mstd0.5-inc1.
    finetune.data.augment = f"random_resized_crop|flip|{randaug}|erase(0.25)"
    finetune.optimizer.update(lr=lr * arg.finetune_batch / 256, end_lr=1e-6)
    finetune.optimizer.update(warmup_steps=5 * EXAMPLES // arg.finetune_batch)
    finetune.optimizer.update(layer_decay=layer_decay)
    finetune.optimizer.decay_factors = ((".*kernel", 1.0), (".*", 0.0))
    finetune.update(batch_size=arg.finetune_batch, epochs=epochs, eval_every=5_000)
    finetune.init.update(stage="pretrain", new_head=True)
    return smoke(config) if arg.smoke else config
