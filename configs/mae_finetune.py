"""Fine-tuning of masked autoencoders on ImageNet (arXiv:2111.06377).

  python -m vit_jax.main --config=configs/mae_finetune.py:model=vit_b16 --workdir=RUN

`init` is their pre-trained encoder: timm's copy, which `pip install '.[hub]'` downloads, or a file
of yours. `batch` scales the learning rate; `dir` is TFDS's folder. The class token, which theirs
keeps without pooling it, is dropped.

Hardware and hours (FINETUNE.md of facebookresearch/mae): 32 V100, B 7.2, L 8.9; 64 V100, H
13.2. Expected: B 83.66 (deviation 0.08 over 4 seeds), L 85.95, H 86.93.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

ROWS = {  # FINETUNE.md: epochs, rate for each 256 examples, layer decay, stochastic depth.
    "vit_b16": (100.0, 5e-4, 0.65, 0.1, "hf://timm/vit_base_patch16_224.mae"),
    "vit_l16": (50.0, 1e-3, 0.75, 0.2, "hf://timm/vit_large_patch16_224.mae"),
    "vit_h14": (50.0, 1e-3, 0.75, 0.3, "hf://timm/vit_huge_patch14_224.mae"),
}
EXAMPLES = 1_281_167  # Of ImageNet.


def get_config(arg: str | None = None):
    arg = parse_arg(arg, model="vit_b16", init="", batch=1024, dir="", smoke=False)
    if arg.model not in ROWS:
        raise ConfigError(f"model is {arg.model!r}; choose from {', '.join(ROWS)}.")
    epochs, lr, layer_decay, drop_path, init = ROWS[arg.model]
    config = base_config()
    config.model.update(name=arg.model, pool="gap", drop_path=drop_path)
    config.model.update(gelu="erf", pixel_stats="imagenet")
    config.task.label_smoothing = 0.1
    config.data.update(source="tfds", dataset="imagenet2012", dir=arg.dir)
    config.data.update(val_split="validation", eval_crop="timm", resample="bicubic")
    config.data.update(mixup=0.8, cutmix=1.0)
    randaug = "randaug_increasing(2,9,std=0.5,prob=0.5)"  # timm's rand-m9-mstd0.5-inc1.
    config.data.augment = f"random_resized_crop|flip|{randaug}|erase(0.25)"
    config.optimizer.update(lr=lr * arg.batch / 256, end_lr=1e-6, weight_decay=0.05)
    config.optimizer.update(warmup_steps=5 * EXAMPLES // arg.batch, clip_norm=None)
    config.optimizer.update(layer_decay=layer_decay)
    config.optimizer.decay_factors = ((".*kernel", 1.0), (".*", 0.0))
    config.update(batch_size=arg.batch, epochs=epochs, eval_every=5_000)
    config.init.update(path=arg.init or init, new_head=True, drop_token=True)
    return smoke(config) if arg.smoke else config
