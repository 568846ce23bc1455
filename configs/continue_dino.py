"""Continues published or own weights without labels on own images, by self-distillation.

  python -m vit_jax.main --config=configs/continue_dino.py:init=WHERE,dir=DIR --workdir=RUN

`init` is `hf://owner/name`, a published name such as dinov2_s14, a file or a workdir; the model is
that of the weights. DIR is any folder of images, or with `source=prepared` one that `prepare`
wrote. Student and teacher start from the weights. The projection heads are new and are trained
alone in the first 2 % of the steps. `patches` adds the loss at masked patches; the published
weights of DINOv2 S, B and L were distilled without it. `color=False` leaves colours as they are,
for images in which they have a meaning. `pixel_stats` replaces that of the weights.

Compare the features with those of the weights, by `evaluate --protocol=knn` on labelled images:
with rates for random weights, published features are lost (github.com/facebookresearch/dinov2,
issue 204).
"""

from vit_jax.config import base_config, parse_arg, smoke

DECAYED = "(kernel|cls|token|registers|embedding|last_layer/scale)$"  # As in configs/dino.py.


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        init="",
        dir="",
        source="images",
        size=224,
        local_size=112,  # Divisible into patches of 8, 14 and 16.
        batch=256,
        steps=12_500,
        patches=False,
        color=True,
        pixel_stats="",
        smoke=False,
    )
    config = base_config()
    config.model.update(name="auto", dtype="auto", drop_path=0.1)
    if arg.pixel_stats:
        config.model.pixel_stats = arg.pixel_stats
    if arg.init:
        config.init.update(path=arg.init, new_head=True, resize=True)
        config.init.allow_numerics = bool(arg.pixel_stats)
    config.data.update(source=arg.source, dir=arg.dir, image_size=arg.size, resample="bicubic")
    config.data.update(val_fraction=0.01, eval_crop="timm", fast_crop=True)
    jitter = "flip|color_jitter(0.4,0.4,0.2,0.1,prob=0.8)|grayscale(0.2)" if arg.color else "flip"
    solarize = "|solarize(0.2)" if arg.color else ""
    config.data.augment = f"random_resized_crop(0.32)|{jitter}|gaussian_blur(1.0)"
    second = f"random_resized_crop(0.32)|{jitter}|gaussian_blur(0.1){solarize}"
    config.data.second_augment = second
    config.data.local_augment = f"random_resized_crop(0.05,0.32)|{jitter}|gaussian_blur(0.5)"
    config.data.update(local_crops=8, local_size=arg.local_size)
    config.task.update(name="dino", patch_weight=float(arg.patches))
    # A twentieth of DINOv2's rate for random weights; a teacher that changes slowly.
    config.optimizer.update(lr=2e-4 * (arg.batch / 1024) ** 0.5, end_lr=1e-6, layer_decay=0.9)
    config.optimizer.update(weight_decay=0.04, ema=0.999, end_ema=1.0)
    config.optimizer.update(clip_norm=3.0, clip_per="module", warmup_steps=arg.steps // 10)
    config.optimizer.decay_factors = ((DECAYED, 1.0), (".*", 0.0))
    config.optimizer.freeze_steps = (("^(?!class_head/|patch_head/)", max(arg.steps // 50, 1)),)
    config.update(batch_size=arg.batch, steps=arg.steps, accumulate="auto", eval_every=1000)
    return smoke(config) if arg.smoke else config
