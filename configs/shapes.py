"""Scaling depth, width, MLP width, patch size, or all of them (Figure 8, appendix D.2).

  python -m vit_jax.main --config=configs/shapes.py:scale=depth,factor=2,dir=DIR --workdir=RUN

The lines of the figure cross at 8 layers, D = 1024, MLP 2048 and patches of 32 pixels;
`factor` multiplies what `scale` names, and divides the side of a patch. Depths of the figure: up
to 64 layers. Anything stands in for JFT-300M, as in configs/pretrain.py.
`fewshot=imagenet2012` measures what the figure shows.

Hardware and time: `plan`, or the FLOPs in summary.json. Expected: Figure 8 (linear 5-shot
ImageNet; no numbers are printed): depth gains most, up to 64 layers and less beyond 16; width
least; smaller patches gain without parameters.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

SCALES = {  # Which of depth, width, MLP width and patch a line of the figure scales.
    "depth": ("depth",),
    "width": ("width",),
    "mlp": ("mlp",),
    "patch": ("patch",),
    "all": ("depth", "width", "mlp", "patch"),
}
HEAD_SIZE = 64  # Of all variants of Table 1 but H; the figure does not state it.


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        needs={"scale": "factor"},
        excludes={"source": "dataset"},
        scale="all",
        factor=1.0,
        lr=6e-4,
        source="prepared",
        dataset="",
        dir="",
        fewshot="",
        smoke=False,
    )
    if arg.scale not in SCALES:
        raise ConfigError(f"scale is {arg.scale!r}; choose from {', '.join(SCALES)}.")
    factor = {**dict.fromkeys(SCALES, 1.0), **dict.fromkeys(SCALES[arg.scale], arg.factor)}
    width = round(1024 * factor["width"])
    config = base_config()
    config.model.update(name="vit_l32", pre_logits=True, head_bias=-10.0)
    config.model.update(patch=round(32 / factor["patch"]), num_layers=round(8 * factor["depth"]))
    config.model.update(hidden_size=width, num_heads=max(width // HEAD_SIZE, 1))
    config.model.mlp_size = round(2048 * factor["mlp"])
    config.task.loss = "sigmoid"  # As in configs/pretrain.py.
    config.data.update(source="tfds" if arg.dataset else arg.source, dataset=arg.dataset)
    config.data.update(dir=arg.dir, resample="tf_bilinear")
    if arg.dataset:
        config.data.update(split="train[:99%]", val_split="train[99%:]")
    else:
        config.data.val_fraction = 0.01
    # Table 3's JFT rows; the figure states no learning rate: that of L/32, its nearest row.
    config.optimizer.update(lr=arg.lr, schedule="linear", warmup_steps=10_000)
    config.optimizer.update(weight_decay=0.1, clip_norm=None)
    config.update(batch_size=4096, epochs=7.0, eval_every=10_000)
    if arg.fewshot:
        config.fewshot.update(every=config.eval_every, source="tfds", sets=(arg.fewshot,))
        config.fewshot.update(test_split="validation", shots=(5,))
    return smoke(config) if arg.smoke else config
