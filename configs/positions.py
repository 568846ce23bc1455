"""Position embeddings: which kind, and where they are added (Table 8, appendix D.4).

  python -m vit_jax.main --config=configs/positions.py:kind=learned_2d,at=layers,dir=DIR \\
    --workdir=RUN

Anything stands in for JFT-300M, as in configs/pretrain.py: the table names B/16, not the data.
`fewshot=imagenet2012` measures what the table shows.

Hardware and time: 224 exaFLOPs (Table 6), 97 TPUv3-core-days at the rate of L/16. Expected,
linear 5-shot ImageNet: none 61.38; learned 64.21, at every layer 63.96, shared by all 64.29;
learned_2d 64.00, 64.05, 64.02; relative 64.03.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

ROWS = {  # Table 8.
    "none": ("stem",),
    "learned": ("stem", "layers", "shared"),
    "learned_2d": ("stem", "layers", "shared"),
    "relative": ("stem",),
}


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        excludes={"source": "dataset"},
        kind="learned",
        at="stem",
        source="prepared",
        dataset="",
        dir="",
        fewshot="",
        smoke=False,
    )
    if arg.kind not in ROWS:
        raise ConfigError(f"kind is {arg.kind!r}; choose from {', '.join(ROWS)}.")
    if arg.at not in ROWS[arg.kind]:
        raise ConfigError(f"at is {arg.at!r}; {arg.kind} has {', '.join(ROWS[arg.kind])}.")
    config = base_config()
    config.model.update(name="vit_b16", pre_logits=True, head_bias=-10.0)
    config.model.update(pos_embed=arg.kind, pos_embed_at=arg.at)
    config.task.loss = "sigmoid"  # As in configs/pretrain.py.
    config.data.update(source="tfds" if arg.dataset else arg.source, dataset=arg.dataset)
    config.data.update(dir=arg.dir, resample="tf_bilinear")
    if arg.dataset:
        config.data.update(split="train[:99%]", val_split="train[99%:]")
    else:
        config.data.val_fraction = 0.01
    config.optimizer.update(lr=8e-4, schedule="linear", warmup_steps=10_000)  # Table 3, B/16.
    config.optimizer.update(weight_decay=0.1, clip_norm=None)
    config.update(batch_size=4096, epochs=7.0, eval_every=10_000)
    if arg.fewshot:
        config.fewshot.update(every=config.eval_every, source="tfds", sets=(arg.fewshot,))
        config.fewshot.update(test_split="validation", shots=(5,))
    return smoke(config) if arg.smoke else config
