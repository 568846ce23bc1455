"""Pre-training without labels on small images, then fine-tuning on few labels.

  python -m vit_jax.main --config=configs/few_labels.py:method=mae --workdir=RUN

Stages: `pretrain` sees no label; `finetune` continues from it on `per_class` labelled images of
each class. `method` is mae, dino or masked_patches; with none there is only `finetune`, from random
weights, on the same labelled images. `data` is mnist5k (4,000 images) or a folder of class folders
with splits train and val. `seed` draws the labelled images as well as the weights.
`benchmarks/few_labels.py` compares the methods over several seeds.

Hardware and time: one CPU core, one to eight minutes. Expected: docs/selfsupervised.md.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

METHODS = ("mae", "dino", "masked_patches", "none")


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg, method="mae", data="mnist5k", seed=0, per_class=10, epochs=0.0, smoke=False
    )
    if arg.method not in METHODS:
        raise ConfigError(f"method is {arg.method!r}; choose from {', '.join(METHODS)}.")
    stages = ("finetune",) if arg.method == "none" else ("pretrain", "finetune")
    config = base_config(*stages)
    config.seed = arg.seed
    for name in stages:
        stage = config.stages[name]
        stage.model.update(name="vit_ti16", patch=7, num_layers=3, hidden_size=64)
        stage.model.update(mlp_size=256, num_heads=4, pool="token_gap", pos_embed="sincos")
        stage.data.update(source="mnist5k", image_size=28)
        if arg.data != "mnist5k":
            stage.data.update(source="folder", dir=arg.data)
        stage.data.augment = "random_resized_crop(0.6)"  # No flip: mirrored digits are other signs.
        stage.optimizer.weight_decay = 0.05

    finetune = config.stages.finetune
    finetune.data.update(per_class=arg.per_class, subset_seed=arg.seed)
    finetune.update(batch_size=50, steps=400, log_every=200)
    finetune.optimizer.update(lr=3e-3, warmup_steps=50)
    if arg.method != "none":
        finetune.init.update(stage="pretrain", new_head=True)
        ROWS[arg.method](config.stages.pretrain)
        if arg.epochs:
            config.stages.pretrain.epochs = arg.epochs
    return smoke(config) if arg.smoke else config


def masked_patches(stage) -> None:
    """Appendix B.1.2, with pixels as targets."""
    stage.task.update(name="masked_patches", targets="pixels")
    stage.update(batch_size=64, epochs=30.0, log_every=250)
    stage.optimizer.update(lr=2e-3, warmup_steps=100, kwargs={"b2": 0.98})


def mae(stage) -> None:
    """Masked autoencoder with a decoder of two layers."""
    stage.task.update(name="mae", mask_ratio=0.6, normalize_targets=False)
    stage.task.update(decoder_layers=2, decoder_size=64, decoder_heads=4)
    stage.update(batch_size=128, epochs=40.0, log_every=250)
    stage.optimizer.update(lr=2e-3, warmup_steps=200, kwargs={"b2": 0.95})


def dino(stage) -> None:
    """DINO with the patch loss of iBOT and the KoLeo term and Sinkhorn-Knopp of DINOv2.

    Two global and four local crops that differ little: digits are small in the image already.
    """
    crop = "random_resized_crop({})|affine(8,0.05,0.1,8)"
    stage.data.update(augment=crop.format(0.85), local_augment=crop.format("0.5,0.85"))
    stage.data.update(local_crops=4, local_size=14)
    stage.task.update(name="dino", prototypes=512, head_hidden=256, bottleneck=64)
    stage.task.update(patch_weight=1.0, koleo_weight=0.1, centering="sinkhorn")
    stage.task.teacher_temperature = 0.025
    stage.update(batch_size=64, epochs=40.0, log_every=250)
    stage.optimizer.update(name="muon", lr=2e-2, warmup_steps=100, ema=0.97)


ROWS = {"masked_patches": masked_patches, "mae": mae, "dino": dino}
