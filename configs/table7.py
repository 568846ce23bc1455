"""Adam against SGD for pre-training ResNets (Table 7).

  python -m vit_jax.main --config=configs/table7.py:model=bit_r50x1,optimizer=sgd,dir=DIR \\
    --workdir=RUN

Anything stands in for JFT-300M, as in configs/pretrain.py. `batch` scales SGD's learning rate.

Hardware and time: R50x1 50 exaFLOPs, R152x2 563 (Table 6): 22 and 244 TPUv3-core-days at the
rate of L/16. Expected, fine-tuned: ImageNet 77.54 (Adam) and 78.24 (SGD) for R50x1, 84.97 and
84.37 for R152x2; the average of five data sets 89.33 and 88.79, 94.01 and 93.72.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

ADAM_LR = {"bit_r50x1": 1e-3, "bit_r152x2": 6e-4}  # Table 3.
OPTIMIZERS = ("adam", "sgd")


def get_config(arg: str | None = None):
    arg = parse_arg(
        arg,
        excludes={"source": "dataset"},
        model="bit_r50x1",
        optimizer="adam",
        batch=4096,
        source="prepared",
        dataset="",
        dir="",
        smoke=False,
    )
    if arg.model not in ADAM_LR:
        raise ConfigError(f"model is {arg.model!r}; choose from {', '.join(ADAM_LR)}.")
    if arg.optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer is {arg.optimizer!r}; choose from {', '.join(OPTIMIZERS)}.")
    config = base_config()
    config.model.update(name=arg.model, head_bias=-10.0)
    config.task.loss = "sigmoid"  # As in configs/pretrain.py.
    config.data.update(source="tfds" if arg.dataset else arg.source, dataset=arg.dataset)
    config.data.update(dir=arg.dir, resample="tf_bilinear")
    if arg.dataset:
        config.data.update(split="train[:99%]", val_split="train[99%:]")
    else:
        config.data.val_fraction = 0.01
    if arg.optimizer == "adam":  # Table 3.
        config.optimizer.update(lr=ADAM_LR[arg.model], schedule="linear", warmup_steps=10_000)
        config.optimizer.update(weight_decay=0.1, clip_norm=None)
    else:
        # BiT (arXiv:1912.11370): 0.03 for each 256 examples, warm-up of 5,000 steps, a tenth
        # after 10, 23, 30 and 37 of 40 epochs, here of 7. Its L2 of 1e-4 works through the
        # momentum of 0.9, ten steps long: 1e-3 decoupled.
        config.optimizer.update(name="sgd", lr=0.03 * arg.batch / 256, warmup_steps=5_000)
        config.optimizer.update(schedule="stair", stair_at=(0.25, 0.575, 0.75, 0.925))
        config.optimizer.update(weight_decay=1e-3, clip_norm=None)
    config.update(batch_size=arg.batch, epochs=7.0, eval_every=10_000)
    return smoke(config) if arg.smoke else config
