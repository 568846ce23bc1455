"""DeiT: data-efficient training on ImageNet alone (arXiv:2012.12877).

  python -m vit_jax.main --config=configs/deit.py:model=vit_s16 --workdir=RUN

`batch` scales the learning rate, `dir` is TFDS's folder, `teacher=WHERE` adds hard distillation
(theirs has a token and a head of its own for it, ours learns both from one).

Hardware and time: 8 V100, two to three days for B. Expected (README of facebookresearch/deit):
Ti 72.2, S 79.9, B 81.8.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

MODELS = ("vit_ti16", "vit_s16", "vit_b16")
EXAMPLES = 1_281_167  # Of ImageNet.


def get_config(arg: str | None = None):
    arg = parse_arg(arg, model="vit_s16", batch=1024, teacher="", dir="", smoke=False)
    if arg.model not in MODELS:
        raise ConfigError(f"model is {arg.model!r}; choose from {', '.join(MODELS)}.")
    config = base_config()
    config.model.update(name=arg.model, drop_path=0.1, gelu="erf", pixel_stats="imagenet")
    config.task.label_smoothing = 0.1
    if arg.teacher:
        config.task.update(teacher=arg.teacher, distill="hard")
    config.data.update(source="tfds", dataset="imagenet2012", dir=arg.dir)
    config.data.update(val_split="validation", eval_crop="timm", resample="bicubic")
    config.data.update(mixup=0.8, cutmix=1.0, repeats=3)
    randaug = "randaug_increasing(2,9,std=0.5,prob=0.5)"  # timm's rand-m9-mstd0.5-inc1.
    config.data.augment = f"random_resized_crop|flip|{randaug}|erase(0.25)"
    config.optimizer.update(lr=5e-4 * arg.batch / 512, end_lr=1e-5, weight_decay=0.05)
    config.optimizer.update(warmup_steps=5 * EXAMPLES // arg.batch, clip_norm=None)
    config.optimizer.decay_factors = ((".*kernel", 1.0), (".*", 0.0))
    config.update(batch_size=arg.batch, epochs=300.0, eval_every=5_000)
    return smoke(config) if arg.smoke else config
