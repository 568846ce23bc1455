"""Trains a small ViT on packaged digits to a target accuracy in as few seconds as possible.

  python -m vit_jax.main --config=configs/speedrun.py --workdir=RUN

Arguments: `data` is mnist5k (4,000 images, target 97.0 % on the other 1,000) or digits (1,438
images, target 98.0 % on the other 359); `seed` and `smoke`. `benchmarks/speedrun.py` measures five
seeds, and docs/speedrun.md has the rules and the records.

Hardware and time: two CPU cores, under a minute. Expected: the target, as a mean of five seeds.
"""

from vit_jax.config import ConfigError, base_config, parse_arg, smoke

ROWS = {  # Learning rate, epochs and augmentation, selected on held-out training images.
    "mnist5k": (2e-2, 16.0, "resize|affine(15,0.08,0.15,10)"),
    "digits": (1e-2, 20.0, "resize|affine(10,0.05,0.12,8)"),
}


def get_config(arg: str | None = None):
    arg = parse_arg(arg, data="mnist5k", seed=0, smoke=False)
    if arg.data not in ROWS:
        raise ConfigError(f"data is {arg.data!r}; choose from {', '.join(ROWS)}.")
    lr, epochs, augment = ROWS[arg.data]
    config = base_config()
    config.model.update(name="vit_ti16", patch=4, num_layers=4, hidden_size=64)
    config.model.update(mlp_size=256, num_heads=2, pool="gap")
    config.data.update(source=arg.data, image_size=16, augment=augment)
    config.optimizer.update(name="muon", lr=lr, schedule="linear")
    config.optimizer.update(warmup_steps=50, weight_decay=0.1)
    config.update(seed=arg.seed, batch_size=64, epochs=epochs)
    config.update(log_every=100, eval_every=250, checkpoint_every=5000)
    return smoke(config) if arg.smoke else config
