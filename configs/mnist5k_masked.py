"""Masked patch prediction on 4,000 MNIST images (appendix B.1.2), then 10 labels per class.

  python -m vit_jax.main --config=configs/mnist5k_masked.py --workdir=RUN

Stages: `pretrain` sees no label; `finetune` goes on from it and `scratch` from random weights,
on the same 100 labelled images, with the same model, length and augmentation. `seed` draws
these images as well as the weights; `targets` is mean (3-bit mean colour), downsized or pixels.
Further arguments: `per_class` and `smoke`. `benchmarks/mnist5k.py` compares several seeds.

Hardware and time: two CPU cores, under five minutes. Expected: see the README.
"""

from vit_jax.config import base_config, parse_arg, smoke


def get_config(arg: str | None = None):
    arg = parse_arg(arg, seed=0, per_class=10, targets="pixels", smoke=False)
    config = base_config("pretrain", "finetune", "scratch")
    config.seed = arg.seed
    for name in config.stages:
        stage = config.stages[name]
        stage.model.update(name="vit_ti16", patch=7, num_layers=3, hidden_size=96)
        stage.model.update(mlp_size=384, num_heads=4, pool="gap", pos_embed="sincos")
        stage.data.update(source="mnist5k", image_size=28)
        stage.data.augment = "random_resized_crop(0.6)"  # No flip: mirrored digits are other signs.
        stage.optimizer.update(weight_decay=0.05)

    pretrain = config.stages.pretrain
    pretrain.task.update(name="masked_patches", targets=arg.targets)
    pretrain.update(batch_size=64, epochs=30.0, log_every=250)
    pretrain.optimizer.update(lr=2e-3, warmup_steps=100, kwargs={"b2": 0.98})

    for name in ("finetune", "scratch"):
        stage = config.stages[name]
        stage.data.update(per_class=arg.per_class, subset_seed=arg.seed)
        stage.update(batch_size=50, steps=600, log_every=200)
        stage.optimizer.update(lr=3e-3, warmup_steps=50)  # Best of 1e-3 and 3e-3 for both.
    config.stages.finetune.init.update(stage="pretrain", new_head=True)
    return smoke(config) if arg.smoke else config
