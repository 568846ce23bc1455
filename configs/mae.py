"""Masked autoencoders (arXiv:2111.06377): pre-training without labels, then evaluation on ImageNet.

  python -m vit_jax.main --config=configs/mae.py:dir=DIR --workdir=RUN

Stages: `pretrain`, and after it `finetune`, or by `mode=linear` the linear probe `linear`, or both
by `mode=both`. `dir` is the folder of images that were prepared for pre-training, whose labels are
not used; without it, all stages read TFDS's ImageNet in `imagenet_dir`. `model` is vit_b16, vit_l16
or vit_h14; `init` are weights to continue from, with their decoder if they have one of the same
size. `batch`, `finetune_batch` and `linear_batch` scale the learning rates.

Hardware: 64 V100 (PRETRAIN.md of facebookresearch/mae), 8 nodes for pre-training; fine-tuning as
in configs/mae_finetune.py. Expected after `epochs=1600`: fine-tuned B 83.66, L 85.95, H 86.93;
linear B 67.8, L 76.0, H 77.2.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

ROWS = {  # FINETUNE.md: epochs, rate for each 256 examples, layer decay, stochastic depth.
    "vit_b16": (100.0, 5e-4, 0.65, 0.1),
    "vit_l16": (50.0, 1e-3, 0.75, 0.2),
    "vit_h14": (50.0, 1e-3, 0.75, 0.3),
}
LINEAR_EPOCHS = {"vit_b16": 90.0, "vit_l16": 50.0, "vit_h14": 50.0}  # FINETUNE.md.
EXAMPLES = 1_281_167  # Of ImageNet.
BATCHES = {"finetune": 1024, "linear": 16_384}  # FINETUNE.md.
MODES = {"finetune": ("finetune",), "linear": ("linear",), "both": ("finetune", "linear")}


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        model="vit_b16",
        mode="finetune",
        dir="",
        imagenet_dir="",
        init="",
        batch=4096,
        finetune_batch=BATCHES["finetune"],
        linear_batch=BATCHES["linear"],
        epochs=800.0,
        warmup_epochs=40.0,
        examples=EXAMPLES,
        smoke=False,
    )
    for name, value, choices in (("model", arg.model, ROWS), ("mode", arg.mode, MODES)):
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}; choose from {', '.join(choices)}.")
    for mode in ("finetune", "linear"):
        if mode not in MODES[arg.mode] and arg[f"{mode}_batch"] != BATCHES[mode]:
            raise ConfigError(f"{mode}_batch has no effect with mode={arg.mode}; give mode={mode}.")
    config = base_config("pretrain", *MODES[arg.mode])
    stages = config.stages
    for stage in stages.values():
        stage.model.update(name=arg.model, gelu="erf", pixel_stats="imagenet")
        stage.model.update(pos_embed="sincos_mae", class_token=True)
        stage.data.update(source="tfds", dataset="imagenet2012", dir=arg.imagenet_dir)
        stage.data.update(val_split="validation", eval_crop="timm", resample="bicubic")
        stage.optimizer.clip_norm = None
    _pretrain(stages.pretrain, arg)
    if "finetune" in stages:
        _finetune(stages.finetune, arg)
    if "linear" in stages:
        _linear(stages.linear, arg)
    return smoke(config) if arg.smoke else config


def _pretrain(stage, arg) -> None:
    if arg.dir:
        stage.data.update(source="prepared", dataset="", dir=arg.dir)
        stage.data.update(val_split="", val_fraction=0.01)
    stage.task.name = "mae"
    stage.data.augment = "random_resized_crop(0.2)|flip"
    stage.optimizer.update(lr=1.5e-4 * arg.batch / 256, kwargs={"b2": 0.95}, weight_decay=0.05)
    stage.optimizer.warmup_steps = int(arg.warmup_epochs * arg.examples) // arg.batch
    # Tokens are no vectors in the paper's code: they decay, biases and scales do not.
    stage.optimizer.decay_factors = ((".*(kernel|cls|token)", 1.0), (".*", 0.0))
    stage.update(batch_size=arg.batch, epochs=arg.epochs, eval_every=10_000)
    if arg.init:
        stage.init.update(path=arg.init, new_head=True, resize=True)


def _finetune(stage, arg) -> None:
    epochs, lr, layer_decay, drop_path = ROWS[arg.model]
    stage.model.update(pool="gap", drop_path=drop_path)
    stage.task.label_smoothing = 0.1
    stage.data.update(mixup=0.8, cutmix=1.0)
    randaug = "randaug_increasing(2,9,std=0.5,prob=0.5)"  # timm's rand-m9-mstd0.5-inc1.
    stage.data.augment = f"random_resized_crop|flip|{randaug}|erase(0.25)"
    stage.optimizer.update(lr=lr * arg.finetune_batch / 256, end_lr=1e-6, weight_decay=0.05)
    stage.optimizer.update(warmup_steps=5 * EXAMPLES // arg.finetune_batch)
    stage.optimizer.update(layer_decay=layer_decay)
    stage.optimizer.decay_factors = ((".*kernel", 1.0), (".*", 0.0))
    stage.update(batch_size=arg.finetune_batch, epochs=epochs, eval_every=5_000)
    stage.init.update(stage="pretrain", new_head=True)


def _linear(stage, arg) -> None:
    # The head is trained alone, on standardised class tokens.
    stage.model.update(head_norm=True, head_std=0.01)
    stage.data.augment = "random_resized_crop|flip"
    stage.optimizer.update(name="lars", lr=0.1 * arg.linear_batch / 256, freeze="all but head")
    stage.optimizer.warmup_steps = 10 * EXAMPLES // arg.linear_batch
    stage.update(batch_size=arg.linear_batch, epochs=LINEAR_EPOCHS[arg.model], eval_every=500)
    stage.init.update(stage="pretrain", new_head=True)
