"""Pre-training on random subsets of JFT-300M, with early stopping (Figure 4, section 4.3).

  python -m vit_jax.main --config=configs/subsets.py:subset=9M,model=vit_b32,dir=DIR \\
    --workdir=RUN

The subsets are shares of whatever stands in for JFT-300M, as in configs/pretrain.py. Every one
has as many steps as the whole, and no more regularisation. The weights are the best on `val`.
`fewshot=imagenet2012` measures what the figure shows.

Hardware and time: for each subset that of the model's JFT row in configs/pretrain.py. Expected:
Figure 4 (linear 5-shot ImageNet; no numbers are printed) has ResNets ahead of ViTs on 9M images,
behind from 90M on.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

SHARES = {"9M": 9 / 303, "30M": 30 / 303, "90M": 90 / 303, "all": 1.0}
LRS = {  # Table 3; ViT-b, half as wide as B in everything, has the shape of S and the rate of B.
    "vit_s32": 8e-4,
    "vit_b32": 8e-4,
    "vit_l32": 6e-4,
    "vit_l16": 4e-4,
    "bit_r50x1": 1e-3,
    "bit_r152x2": 6e-4,
}


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        excludes={"source": "dataset"},
        subset="9M",
        model="vit_b32",
        source="prepared",
        dataset="",
        dir="",
        fewshot="",
        smoke=False,
    )
    if arg.subset not in SHARES:
        raise ConfigError(f"subset is {arg.subset!r}; choose from {', '.join(SHARES)}.")
    if arg.model not in LRS:
        raise ConfigError(f"model is {arg.model!r}; choose from {', '.join(LRS)}.")
    share = SHARES[arg.subset]
    config = base_config()
    config.model.update(name=arg.model, head_bias=-10.0)
    config.model.pre_logits = not arg.model.startswith("bit")
    config.task.loss = "sigmoid"  # As in configs/pretrain.py.
    config.data.update(source="tfds" if arg.dataset else arg.source, dataset=arg.dataset)
    config.data.update(dir=arg.dir, resample="tf_bilinear", fraction=share)
    if arg.dataset:
        config.data.update(split="train[:99%]", val_split="train[99%:]")
    else:
        config.data.val_fraction = 0.01
    config.optimizer.update(lr=LRS[arg.model], schedule="linear", warmup_steps=10_000)
    config.optimizer.update(weight_decay=0.1, clip_norm=None)
    config.update(batch_size=4096, epochs=7 / share, eval_every=5_000, select="best")
    if arg.fewshot:
        config.fewshot.update(every=config.eval_every, source="tfds", sets=(arg.fewshot,))
        config.fewshot.update(test_split="validation", shots=(5,))
    return smoke(config) if arg.smoke else config
