"""A scaling study in miniature: four sizes by three shares of MNIST-5k (section 4.3, Figure 4).

  python -m vit_jax.main --config=configs/scaling_study.py --workdir=runs/study
  python -m vit_jax.main tables figure4 runs/study --out=runs/study

As in section 4.3, all runs have as many steps, and no more regularisation where there is less data.
They are judged by the same 1,000 images, which none of them has learnt from.

Hardware and time: two CPU cores, under 15 minutes. Expected: the table and plot of the README.
"""

from vit_jax.config import base_config, parse_arg, smoke

SIZES = ((2, 24), (2, 48), (3, 96), (4, 192))  # Layers and width.
HEAD_SIZE = 24
SHARES = (0.1, 0.3, 1.0)  # Of 4,000 images: 400, 1,200, 4,000.


def get_config(arg: str | None = None):
    arg = parse_arg(arg, steps=600, smoke=False)
    runs = {
        f"d{width}_{100 * share:.0f}": (depth, width, share)
        for depth, width in SIZES
        for share in SHARES
    }
    config = base_config(*runs)
    for name, (depth, width, share) in runs.items():
        stage = config.stages[name]
        stage.model.update(name="vit_ti16", patch=8, num_layers=depth, hidden_size=width)
        stage.model.update(mlp_size=4 * width, num_heads=width // HEAD_SIZE)
        stage.data.update(source="mnist5k", image_size=24, augment="random_resized_crop(0.6)")
        stage.data.fraction = share if share < 1 else None
        stage.optimizer.update(lr=2e-3, warmup_steps=50, weight_decay=0.1, kwargs={"b2": 0.98})
        stage.update(batch_size=64, steps=arg.steps, log_every=100, checkpoint_every=arg.steps)
    return smoke(config) if arg.smoke else config
