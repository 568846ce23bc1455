"""Pre-trains on 4,000 MNIST images, then transfers to scanned digits with 5 labels a class.

  python -m vit_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

The stage `scratch` trains the same model on the same 50 labels without pre-training.
"""

from vit_jax.config import base_config, parse_arg, smoke


def get_config(arg: str | None = None):
    arg = parse_arg(arg, per_class=5, smoke=False)
    config = base_config("pretrain", "finetune", "scratch")
    for name in config.stages:
        stage = config.stages[name]
        stage.model.update(name="vit_ti16", patch=7, num_layers=4, hidden_size=96)
        stage.model.update(mlp_size=384, num_heads=3)
        stage.data.update(image_size=28, crop_area=(0.6, 1.0), flip=False)
        stage.optimizer.update(weight_decay=0.1)

    pretrain = config.stages.pretrain
    pretrain.data.source = "mnist5k"
    pretrain.model.update(pre_logits=True, dropout=0.1)
    pretrain.update(batch_size=128, epochs=8, log_every=50, checkpoint_every=100)
    pretrain.optimizer.update(lr=2e-3, warmup_steps=25)

    for name in ("finetune", "scratch"):
        stage = config.stages[name]
        stage.data.update(source="digits", per_class=arg.per_class)
        stage.update(batch_size=50, steps=100, log_every=25, checkpoint_every=50)
        stage.optimizer.update(lr=1e-3, warmup_steps=10)
    config.stages.finetune.init.update(stage="pretrain", new_head=True, resize=True)
    return smoke(config) if arg.smoke else config
