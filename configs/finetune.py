"""Fine-tunes on your own folder of class folders (section 4.1, Table 4).

  python -m vit_jax.main --config=configs/finetune.py:data=DIR,init=imagenet21k/ViT-B_16 \\
    --workdir=RUN

DIR contains `train/<class>/*.jpg` and, optionally, `val/<class>/*.jpg`; without `val/`, a tenth
of the images is held out. DIR can also be a folder that `prepare` wrote. `init` is a published
name, a file or folder of weights, or a workdir; `model` is by default the model of `init`. Without
`init`, the weights are random, and images of up to 96 pixels use a small model with about 8 x 8
patches and the settings of configs/cifar10.py. Other arguments: `size` and `patch` in pixels,
`steps`, `lr`, and `smoke`, a trial of a tiny model in two minutes.

The number of micro-batches and the dtype are chosen when the run starts.
"""

from vit_jax.config import base_config, find_source, parse_arg, smoke

SMALL = 96  # Largest image side in pixels of the small model.


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg, data="", init="", model="", size=384, patch=0, steps=500, lr=0.0, smoke=False
    )
    is_small = arg.size <= SMALL and not arg.init
    config = base_config()
    config.model.name = arg.model or ("auto" if arg.init else "vit_ti16" if is_small else "vit_b16")
    patch = _small_patch(arg.size) if is_small and not arg.model else None
    config.model.update(patch=arg.patch or patch, dtype="auto")
    config.data.update(source=find_source(arg.data), dir=arg.data, image_size=arg.size)
    config.data.resample = "tf_bilinear"  # As the published weights were trained.
    warmup_steps = min(100, arg.steps // 5)
    if is_small:  # As configs/cifar10.py.
        config.model.dropout = 0.1
        config.data.augment = "inception_crop(0.25)|flip"
        config.optimizer.update(lr=arg.lr or 1e-3, weight_decay=0.1, warmup_steps=warmup_steps)
    else:  # Table 4: SGD with momentum 0.9, cosine, no weight decay, global norm 1.
        config.optimizer.update(name="sgd", lr=arg.lr or 0.01, warmup_steps=warmup_steps)
    config.update(batch_size=512, accumulate="auto", steps=arg.steps)
    config.update(log_every=10, checkpoint_every=100)
    if arg.init:
        config.init.update(path=arg.init, new_head=True, resize=True)
    return smoke(config, keep_data=bool(arg.data)) if arg.smoke else config


def _small_patch(size: int) -> int:
    """Returns the side of patches that divide an image into about 8 x 8, and at least 7 x 7."""
    return max(side for side in range(1, max(size // 7, 1) + 1) if size % side == 0)
