"""Class token against the mean of the patches (Figure 9, appendix D.3).

  python -m vit_jax.main --config=configs/heads.py:head=gap_low,dir=DIR --workdir=RUN

Anything stands in for JFT-300M, as in configs/pretrain.py. The figure does not name its model;
`model` is B/16 unless told otherwise. `fewshot=imagenet2012` measures what the figure shows.

Hardware and time: that of the model's JFT row in configs/pretrain.py. Expected: Figure 9 (linear
5-shot ImageNet; no numbers are printed): both heads work equally well, the mean of the patches
at the lower learning rate only.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

HEADS = {"token": ("token", 8e-4), "gap": ("gap", 8e-4), "gap_low": ("gap", 3e-4)}  # Figure 9.


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        excludes={"source": "dataset"},
        head="token",
        model="vit_b16",
        source="prepared",
        dataset="",
        dir="",
        fewshot="",
        smoke=False,
    )
    if arg.head not in HEADS:
        raise ConfigError(f"head is {arg.head!r}; choose from {', '.join(HEADS)}.")
    pool, lr = HEADS[arg.head]
    config = base_config()
    config.model.update(name=arg.model, pool=pool, pre_logits=True, head_bias=-10.0)
    config.task.loss = "sigmoid"  # As in configs/pretrain.py.
    config.data.update(source="tfds" if arg.dataset else arg.source, dataset=arg.dataset)
    config.data.update(dir=arg.dir, resample="tf_bilinear")
    if arg.dataset:
        config.data.update(split="train[:99%]", val_split="train[99%:]")
    else:
        config.data.val_fraction = 0.01
    config.optimizer.update(lr=lr, schedule="linear", warmup_steps=10_000)  # Table 3's JFT rows.
    config.optimizer.update(weight_decay=0.1, clip_norm=None)
    config.update(batch_size=4096, epochs=7.0, eval_every=10_000)
    if arg.fewshot:
        config.fewshot.update(every=config.eval_every, source="tfds", sets=(arg.fewshot,))
        config.fewshot.update(test_split="validation", shots=(5,))
    return smoke(config) if arg.smoke else config
