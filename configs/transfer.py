"""Fine-tuning on the paper's data sets (section 4.1, Table 4; Table 2's runs with `polyak`).

  python -m vit_jax.main --config=configs/transfer.py:dataset=cifar10,grid --workdir=GRID
  python -m vit_jax.main --config=configs/transfer.py:dataset=cifar10,lr=0.03 --workdir=RUN

The first trains once for each learning rate of Table 4 on a part of the training split and
scores the rest of it; the second trains on all of it, with the best of them, and scores the test
split. `model` is one with published weights, or any with `init=WHERE`; `steps`, a short schedule.

Hardware and hours (README of google-research/vision_transformer; A100, B/16 from ImageNet-21k):
CIFAR 2.2, ImageNet 6.5. Expected: CIFAR-10 99.02, CIFAR-100 92.06, ImageNet 84.53; Table 5
for others; two runs differ by 0.1 to 0.2 points, CIFAR-100's by 0.4.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

SMALL = (0.001, 0.003, 0.01, 0.03)
ROWS = {  # Table 4: steps, per cent trained on in the grid, learning rates. Warm-up: big_vision.
    "imagenet2012": (20_000, 99, (0.003, 0.01, 0.03, 0.06), 500, "validation"),
    "cifar100": (10_000, 98, SMALL, 500, "test"),
    "cifar10": (10_000, 98, SMALL, 500, "test"),
    "oxford_iiit_pet": (500, 90, SMALL, 100, "test"),
    "oxford_flowers102": (500, 90, SMALL, 100, "test"),
}
INIT = {  # What is published of Table 5's ImageNet-21k rows.
    "vit_b16": "imagenet21k/ViT-B_16",
    "vit_b32": "imagenet21k/ViT-B_32",
    "vit_l16": "imagenet21k/ViT-L_16",
    "vit_l32": "imagenet21k/ViT-L_32",
    "vit_h14": "imagenet21k/ViT-H_14",
    "r50_b16": "imagenet21k/R50+ViT-B_16",
    "r50_l32": "imagenet21k/R50+ViT-L_32",
}
# Pixels of Table 4 and, with `polyak`, of Table 2. 384 is no multiple of 14: a VALID
# convolution leaves the grid of 378.
PIXELS = {"vit_h14": (378, 518)}


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        dataset="cifar10",
        model="vit_b16",
        init="",
        dir="",
        lr=0.03,
        steps=0,
        grid=False,
        polyak=False,
        smoke=False,
    )
    if arg.dataset not in ROWS:
        raise ConfigError(f"dataset is {arg.dataset!r}; choose from {', '.join(ROWS)}.")
    if not arg.init and arg.model not in INIT:
        raise ConfigError(f"model is {arg.model!r}; give init=WHERE, or one of {', '.join(INIT)}.")
    steps, percent, rates, warmup, test = ROWS[arg.dataset]
    if arg.steps:  # As in the README of google-research/vision_transformer.
        steps, warmup = arg.steps, arg.steps // 10
    config = base_config(*(f"lr_{lr:g}".replace(".", "_") for lr in rates if arg.grid))
    if arg.grid:
        runs = [config.stages[name] for name in config.stages]
        split, val_split = f"train[:{percent}%]", f"train[{percent}%:]"
    else:
        runs, rates, split, val_split = [config], (arg.lr,), "train", test
    for run, lr in zip(runs, rates, strict=True):
        run.model.name = arg.model
        run.data.update(source="tfds", dataset=arg.dataset, dir=arg.dir)
        run.data.update(split=split, val_split=val_split)
        run.data.image_size = PIXELS.get(arg.model, (384, 512))[arg.polyak]
        run.data.resample = "tf_bilinear"  # As the published numbers were made.
        # Table 4: SGD with momentum 0.9 (in bfloat16, as in the official code), cosine, no weight
        # decay, global norm 1.
        run.optimizer.update(name="sgd", lr=lr, warmup_steps=warmup, moment_dtype="bfloat16")
        run.optimizer.ema = 0.9999 if arg.polyak else None
        run.update(batch_size=512, steps=steps)
        run.init.update(path=arg.init or INIT[arg.model], new_head=True, resize=True)
    return smoke(config) if arg.smoke else config
