"""Fine-tuning on the paper's data sets (section 4.1, Table 4; Table 2's runs with `polyak`).

  python -m vit_jax.main --config=configs/transfer.py:dataset=cifar10,grid --workdir=SWEEP
  python -m vit_jax.main --config=configs/transfer.py:dataset=cifar10,lr=0.03 --workdir=RUN

The first is the paper's protocol: it trains once for each learning rate of Table 4 on a part of the
training split, scores the rest of it, trains on all of it with the best of them for three seeds,
and tells mean and deviation on the test split; several processes share its runs by `--shard=I/N`.
The second is one run. `model` is one with published weights, or any with `init=WHERE`; `steps`, a
short schedule; `seeds`, another number of them.

Hardware and hours (README of google-research/vision_transformer; A100, B/16 from ImageNet-21k):
CIFAR 2.2, ImageNet 6.5. Expected: CIFAR-10 99.02, CIFAR-100 92.06, ImageNet 84.53; Table 5
for others; two runs differ by 0.1 to 0.2 points, CIFAR-100's by 0.4.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

SMALL = (0.001, 0.003, 0.01, 0.03)
ROWS = {  # Table 4: steps, share held out in the grid, learning rates. Warm-up: big_vision.
    "imagenet2012": (20_000, 0.01, (0.003, 0.01, 0.03, 0.06), 500, "validation"),
    "cifar100": (10_000, 0.02, SMALL, 500, "test"),
    "cifar10": (10_000, 0.02, SMALL, 500, "test"),
    "oxford_iiit_pet": (500, 0.1, SMALL, 100, "test"),
    "oxford_flowers102": (500, 0.1, SMALL, 100, "test"),
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
        needs={"seeds": "grid"},
        excludes={"lr": "grid"},
        dataset="cifar10",
        model="vit_b16",
        init="",
        dir="",
        lr=0.03,
        steps=0,
        grid=False,
        seeds=3,
        polyak=False,
        smoke=False,
    )
    if arg.dataset not in ROWS:
        raise ConfigError(f"dataset is {arg.dataset!r}; choose from {', '.join(ROWS)}.")
    if not arg.init and arg.model not in INIT:
        raise ConfigError(f"model is {arg.model!r}; give init=WHERE, or one of {', '.join(INIT)}.")
    steps, held_out, rates, warmup, test = ROWS[arg.dataset]
    if arg.steps:  # As in the README of google-research/vision_transformer.
        steps, warmup = arg.steps, arg.steps // 10
    config = base_config()
    config.model.name = arg.model
    config.data.update(source="tfds", dataset=arg.dataset, dir=arg.dir)
    config.data.update(split="train", val_split=test)
    config.data.image_size = PIXELS.get(arg.model, (384, 512))[arg.polyak]
    config.data.resample = "tf_bilinear"  # As the published numbers were made.
    # Table 4: SGD with momentum 0.9 (in bfloat16, as in the official code), cosine, no weight
    # decay, global norm 1.
    config.optimizer.update(name="sgd", lr=arg.lr, warmup_steps=warmup)
    config.optimizer.kwargs.accumulator_dtype = "bfloat16"
    config.optimizer.ema = 0.9999 if arg.polyak else None
    config.update(batch_size=512, steps=steps)
    config.init.update(path=arg.init or INIT[arg.model], new_head=True, resize=True)
    if arg.grid:  # Table 2: "mean +- std of 3 fine-tuning runs".
        grid = (("optimizer.lr", rates),)
        config.sweep.update(grid=grid, dev=held_out, seeds=arg.seeds)
    return smoke(config) if arg.smoke else config
