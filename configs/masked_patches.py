"""Self-supervision by masked patch prediction, then fine-tuning on ImageNet (appendix B.1.2).

  python -m vit_jax.main --config=configs/masked_patches.py:dir=DIR --workdir=RUN

Stages: `pretrain`, `finetune`. Anything stands in for JFT-300M, as in configs/pretrain.py; no
label of it is used. `targets` is mean (3-bit mean colour), downsized (4x4 of them) or pixels;
`corrupted` 0.5 or 0.15; 100,000 `steps` gain most of it. `imagenet_dir` is TFDS's folder.

Hardware and time: B/16 for 1M steps of 4,096, as long as 14 epochs of JFT-300M: 450 exaFLOPs, 195
TPUv3-core-days at the rate of L/16. Expected: ImageNet 79.9, 2 points above training from
scratch and 4 below supervised pre-training.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

TARGETS = ("mean", "downsized", "pixels")


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        excludes={"source": "dataset"},
        targets="mean",
        corrupted=0.5,
        steps=1_000_000,
        source="prepared",
        dataset="",
        dir="",
        imagenet_dir="",
        smoke=False,
    )
    if arg.targets not in TARGETS:
        raise ConfigError(f"targets is {arg.targets!r}; choose from {', '.join(TARGETS)}.")
    config = base_config("pretrain", "finetune")
    pretrain, finetune = config.stages.pretrain, config.stages.finetune

    pretrain.model.name = "vit_b16"
    pretrain.task.update(name="masked_patches", targets=arg.targets, corrupted=arg.corrupted)
    pretrain.data.update(source="tfds" if arg.dataset else arg.source, dataset=arg.dataset)
    pretrain.data.update(dir=arg.dir, resample="tf_bilinear")
    if arg.dataset:
        pretrain.data.update(split="train[:99%]", val_split="train[99%:]")
    else:
        pretrain.data.val_fraction = 0.01
    # Appendix B.1.2; weight decay 0.1 as for all models of section 4.1.
    pretrain.optimizer.update(lr=2e-4, warmup_steps=10_000, weight_decay=0.1, clip_norm=None)
    pretrain.update(batch_size=4096, steps=arg.steps, eval_every=10_000)

    finetune.model.name = "vit_b16"
    finetune.data.update(source="tfds", dataset="imagenet2012", dir=arg.imagenet_dir)
    finetune.data.update(val_split="validation", image_size=384, resample="tf_bilinear")
    finetune.optimizer.update(name="sgd", lr=0.03, warmup_steps=500)  # Table 4.
    finetune.update(batch_size=512, steps=20_000)
    finetune.init.update(stage="pretrain", new_head=True, resize=True)
    return smoke(config) if arg.smoke else config
