"""Training on a Ray cluster: the workers are one run, and Ray restarts those that are lost.

python examples/ray_cluster.py --workdir=/shared/runs/ray --num_workers=2
"""

import argparse

import ray

from vit_jax.config import base_config
from vit_jax.training import ray_train


def make_config(steps: int):
    """Returns a small model on the digits of scikit-learn."""
    config = base_config()
    config.model.update(name="vit_ti16", patch=4, num_layers=3, hidden_size=64, mlp_size=128)
    config.model.update(num_heads=4)
    config.data.update(source="digits", image_size=16, augment="random_resized_crop(0.6)")
    config.optimizer.update(name="adamw", lr=2e-3, warmup_steps=steps // 10)
    config.update(batch_size=64, steps=steps, log_every=50, checkpoint_every=100)
    return config


def main(workdir: str, num_workers: int = 2, steps: int = 300, **scaling) -> dict:
    """Trains on the cluster that this process is connected to, or on a local one.

    Args:
      workdir: a folder that all nodes of the cluster share.
      **scaling: for GPUs use_gpu=True and resources_per_worker={"GPU": 1}.
    """
    ray.init(ignore_reinit_error=True)  # On a node of a cluster: RAY_ADDRESS=auto.
    config = make_config(steps)
    return ray_train.fit(config, workdir, num_workers=num_workers, max_failures=3, **scaling)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    print(main(**vars(parser.parse_args())))
