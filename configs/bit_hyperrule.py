"""Fine-tuning of BiT by the BiT-HyperRule (arXiv:1912.11370): nothing to tune.

  python -m vit_jax.main --config=configs/bit_hyperrule.py:dataset=cifar10 --workdir=RUN

`dataset` is one below, or any of TFDS with its `regime` (small: fewer than 20,000 training images,
medium: fewer than 500,000, large) and `size`: 128 px for images below 96x96, 480 for others. The
rule's crops are out of 160 and 512 px; ours are out of 8/7 of the size.

Hardware and hours: not published. Expected: R50x1 of Table 6, from JFT-300M: CIFAR-10 97.67,
CIFAR-100 86.07, Pets 91.11, Flowers 94.26, ImageNet 77.54.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

REGIMES = {  # bit_hyperrule.py of google-research/big_transfer: steps, warm-up, stairs, mixup.
    "small": (500, 100, (0.4, 0.6, 0.8), 0.0),
    "medium": (10_000, 500, (0.3, 0.6, 0.9), 0.1),
    "large": (20_000, 500, (0.3, 0.6, 0.9), 0.1),
}
DATASETS = {
    "cifar10": ("medium", 128),
    "cifar100": ("medium", 128),
    "oxford_iiit_pet": ("small", 480),
    "oxford_flowers102": ("small", 480),
    "imagenet2012": ("large", 480),
}


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        dataset="cifar10",
        regime="",
        size=0,
        model="bit_r50x1",
        init="bit/BiT-M-R50x1",
        dir="",
        smoke=False,
    )
    regime, size = DATASETS.get(arg.dataset, ("", 480))
    regime, size = arg.regime or regime, arg.size or size
    if not regime:
        raise ConfigError(f"dataset is {arg.dataset!r}; give regime, or {', '.join(DATASETS)}.")
    if regime not in REGIMES:
        raise ConfigError(f"regime is {regime!r}; choose from {', '.join(REGIMES)}.")
    steps, warmup, stairs, mixup = REGIMES[regime]
    test = "validation" if arg.dataset == "imagenet2012" else "test"
    config = base_config()
    config.model.name = arg.model
    config.data.update(source="tfds", dataset=arg.dataset, dir=arg.dir, val_split=test)
    config.data.update(image_size=size, augment="random_crop|flip", mixup=mixup)
    config.data.resample = "tf_bilinear"
    config.optimizer.update(name="sgd", lr=0.003, warmup_steps=warmup, clip_norm=None)
    config.optimizer.update(schedule="stair", stair_at=stairs)
    config.update(batch_size=512, steps=steps)
    config.init.update(path=arg.init, new_head=True)
    return smoke(config) if arg.smoke else config
