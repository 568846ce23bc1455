"""CIFAR-10 from scratch through TFDS: a small model with 4x4 patches.

  python -m vit_jax.main --config=configs/cifar10.py --workdir=RUN

The data must have been prepared once as ArrayRecord, which needs TensorFlow (`[tf]`); the
message of a run without them has the command. `dir` names another TFDS folder; `smoke` is a
trial on packaged digits.
"""

from vit_jax.config import base_config, parse_arg, smoke


def get_config(arg: str | None = None):
    arg = parse_arg(arg, dir="", smoke=False)
    config = base_config()
    config.model.update(name="vit_ti16", patch=4, dropout=0.1)
    config.data.update(source="tfds", dataset="cifar10", dir=arg.dir, val_split="test")
    config.data.update(image_size=32, augment="random_resized_crop(0.25)|flip")
    config.optimizer.update(lr=1e-3, weight_decay=0.1, warmup_steps=1000)
    config.update(batch_size=512, epochs=200, log_every=50, eval_every=1000)
    return smoke(config) if arg.smoke else config
