"""Pre-trains on 4,000 MNIST images, then transfers to scanned digits with 5 labels per class.

  python -m vit_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

The transfer follows section 3.2: the head is replaced by zeros, and larger images may follow
(`--config.stages.finetune.data.image_size=32` resizes the position embeddings). The stage
`scratch` trains the same model on the same 50 labels without pre-training. Arguments:
`per_class`, labels for each digit; `seed`, of all stages; and `smoke`.

Hardware and time: two CPU cores, under two minutes. Expected: see the README.
"""

from vit_jax.config import base_config, parse_arg, smoke


def get_config(arg: str | None = None):
    arg = parse_arg(arg, per_class=5, seed=0, smoke=False)
    config = base_config("pretrain", "finetune", "scratch")
    for name in config.stages:
        stage = config.stages[name]
        stage.seed = arg.seed
        stage.model.update(name="vit_ti16", patch=8, num_layers=3, hidden_size=96)
        stage.model.update(mlp_size=384, num_heads=2)
        stage.data.augment = "random_resized_crop(0.6)"  # No flip: mirrored digits are other signs.
        stage.optimizer.update(weight_decay=0.1, kwargs={"b2": 0.98})

    pretrain = config.stages.pretrain
    pretrain.model.pre_logits = True
    pretrain.data.update(source="mnist5k", image_size=24)
    pretrain.update(batch_size=64, epochs=15, log_every=100, checkpoint_every=200)
    pretrain.optimizer.update(lr=2e-3, warmup_steps=50)

    for name in ("finetune", "scratch"):
        stage = config.stages[name]
        stage.data.update(source="digits", image_size=24, per_class=arg.per_class)
        stage.update(batch_size=50, steps=200, log_every=100, checkpoint_every=100)
        stage.optimizer.update(lr=1e-3, warmup_steps=20)
    config.stages.finetune.init.update(stage="pretrain", new_head=True, resize=True)
    return smoke(config) if arg.smoke else config
