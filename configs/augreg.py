"""How to train your ViT: augmentation and regularisation (arXiv:2106.10270).

  python -m vit_jax.main --config=configs/augreg.py:model=vit_b16 --workdir=RUN
  python -m vit_jax.main --config=configs/augreg.py:data=imagenet21k,epochs=30,dir=DIR,\\
aug=medium1,reg=0.1,wd=0.03 --workdir=RUN

The grid of 28: 7 augmentations `aug`, dropout and stochastic depth `reg` 0 or 0.1, weight decay
`wd` 0.1 or 0.03. Without them a model has the setting recommended for it. ImageNet comes through
TFDS, ImageNet-21k from a folder DIR that `prepare` wrote.

Hardware and hours: not published. Expected (their Table 3, 224 px, upstream, ImageNet for 300
epochs): B/16 79.84, S/16 79.00, L/16 75.72, Ti/16 72.59, B/32 74.42, S/32 72.07; ImageNet-21k
for 300 epochs, then ImageNet at 384 px: B/16 85.49, L/16 85.59, S/16 83.73.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

AUGS = {  # Operations and magnitude of RandAugment, alpha of mixup.
    "none": (0, 0, 0.0),
    "light1": (2, 0, 0.0),  # Operations at magnitude 0 are not nothing.
    "light2": (2, 10, 0.2),
    "medium1": (2, 15, 0.2),
    "medium2": (2, 15, 0.5),
    "strong1": (2, 20, 0.5),
    "strong2": (2, 20, 0.8),
}
BEST = {  # aug, reg, wd: README of google-research/vision_transformer.
    "vit_l16": ("strong1", 0.0, 0.1),
    "vit_b16": ("medium1", 0.0, 0.1),
    "vit_s16": ("light1", 0.0, 0.03),
    "r50_l32": ("medium1", 0.1, 0.1),
    "r26_s32": ("light1", 0.0, 0.1),
    "vit_ti16": ("none", 0.0, 0.03),
    "vit_b32": ("light1", 0.0, 0.1),
    "vit_s32": ("none", 0.0, 0.1),
    "r_ti16": ("none", 0.0, 0.03),
}
IMAGENET_AUG = {"vit_ti16": "light1", "r_ti16": "light1", "vit_s32": "medium1"}  # big_vision.
HEAD_BIAS = {"imagenet": -6.9, "imagenet21k": -10.0}  # big_vision, for the sigmoid loss.


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        data="imagenet",
        model="vit_b16",
        epochs=300.0,
        aug="",
        reg=-1.0,
        wd=-1.0,
        source="",
        dir="",
        smoke=False,
    )
    if arg.data not in HEAD_BIAS:
        raise ConfigError(f"data is {arg.data!r}; choose from {', '.join(HEAD_BIAS)}.")
    if arg.model not in BEST:
        raise ConfigError(f"model is {arg.model!r}; choose from {', '.join(BEST)}.")
    is_imagenet = arg.data == "imagenet"
    aug, reg, wd = BEST[arg.model]
    if is_imagenet:
        aug, reg, wd = IMAGENET_AUG.get(arg.model, "medium2"), 0.0, 0.1
    aug, reg, wd = arg.aug or aug, reg if arg.reg < 0 else arg.reg, wd if arg.wd < 0 else arg.wd
    if aug not in AUGS:
        raise ConfigError(f"aug is {aug!r}; choose from {', '.join(AUGS)}.")
    layers, magnitude, mixup = AUGS[aug]
    config = base_config()
    config.model.update(name=arg.model, dropout=reg, drop_path=reg)
    config.model.update(head_bias=HEAD_BIAS[arg.data], pre_logits=is_imagenet)
    config.task.loss = "sigmoid"
    source = arg.source or ("tfds" if is_imagenet else "prepared")
    config.data.update(source=source, dir=arg.dir)
    if source == "tfds":
        config.data.update(dataset="imagenet2012", split="train[:99%]", val_split="validation")
    else:
        config.data.val_fraction = 0.002
    if layers:
        config.data.augment = f"inception_crop|flip|randaug({layers},{magnitude})"
    # As in big_vision, and so are the first positions.
    config.data.update(mixup=mixup, resample="tf_bilinear_uint8")
    config.data.update(eval_crop="center", eval_resample="tf_area_uint8")
    config.model.pos_embed_std = None
    config.optimizer.update(lr=1e-3, weight_decay=wd, warmup_steps=10_000)
    # big_vision decays kernels only, and keeps the first moment in bfloat16.
    config.optimizer.decay_factors = ((".*kernel", 1.0), (".*", 0.0))
    config.optimizer.kwargs.mu_dtype = "bfloat16"
    config.update(batch_size=4096, epochs=arg.epochs, eval_every=5_000)
    return smoke(config) if arg.smoke else config
