"""Steps per second of a masked autoencoder beside the same encoder trained with labels.

  python benchmarks/pretraining.py --model=vit_b16 --batch=8 --steps=3 --rounds=5

Both train on one batch of noise. In each round both take `--steps` steps, one after the other; the
ratio is that of the medians over the rounds. `--decoder_layers` is the depth of the decoder.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from vit_jax import config as config_lib
from vit_jax.distributed.process import prepare_process
from vit_jax.models.flops import forward_macs
from vit_jax.tasks import registry as task_registry
from vit_jax.training import build, schedules

TOTAL_STEPS = 1000  # Of the schedule, of which a few steps are taken.


def make_config(task: str, args):
    """Returns the config of a task; both have the same optimizer."""
    config = config_lib.base_config()
    config.model.update(name=args.model, dtype=args.dtype, gelu="erf", class_token=True)
    config.data.update(source="fake", num_classes=1000, image_size=args.size)
    config.optimizer.update(lr=1e-4, weight_decay=0.05, clip_norm=None)
    config.update(batch_size=args.batch, steps=TOTAL_STEPS)
    if task == "mae":
        config.task.update(name="mae", decoder_layers=args.decoder_layers)
        config.model.pos_embed = "sincos_mae"
    return config_lib.check(config)[""]


class Trainer:
    """A task's train step on one batch."""

    def __init__(self, task: str, args):
        config = make_config(task, args)
        self.model = task_registry.build_model(config, num_classes=1000)
        programs = build.build_programs(config, self.model, build.build_mesh(config))
        random = np.random.default_rng(0)
        batch = {
            "image": random.uniform(-1, 1, (args.batch, args.size, args.size, 3)),
            "label": random.integers(0, 1000, args.batch),
            "mask": np.ones(args.batch),
        }
        dtypes = {"image": np.float32, "label": np.int32, "mask": np.float32}
        self._batch = jax.device_put(
            {name: array.astype(dtypes[name]) for name, array in batch.items()},
            programs.batch_sharding,
        )
        self._hyperparams = schedules.make_hyperparams(config.optimizer, TOTAL_STEPS)
        self._state = programs.init_state(jax.random.key(0))
        self._step, self._train_step, self.seconds = 0, programs.train_step, []

    def run(self, steps: int) -> None:
        """Takes steps and notes their mean time; the caller leaves out the first call."""
        start = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._train_step(
                self._state, self._batch, jax.random.key(1), self._hyperparams(self._step)
            )
            self._step += 1
        jax.block_until_ready(metrics)
        self.seconds.append((time.perf_counter() - start) / steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_b16")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoder_layers", type=int, default=8)
    args = parser.parse_args()
    prepare_process()  # As the command `train` does.
    trainers = {task: Trainer(task, args) for task in ("classification", "mae")}
    for trainer in trainers.values():
        trainer.run(1)  # Compiles.
        trainer.seconds.clear()
    for _ in range(args.rounds):
        for trainer in trainers.values():
            trainer.run(args.steps)
    medians = {task: statistics.median(trainer.seconds) for task, trainer in trainers.items()}
    for task, trainer in trainers.items():
        seconds = [f"{s:.3f}" for s in trainer.seconds]
        print(
            f"{task}: {1 / medians[task]:.3f} steps/s, {args.batch / medians[task]:.2f} images/s, "
            f"{forward_macs(trainer.model) / 1e9:.1f} GMACs an image, seconds {' '.join(seconds)}"
        )
    macs = [forward_macs(trainer.model) for trainer in trainers.values()]
    print(
        f"ratio of steps/s {medians['classification'] / medians['mae']:.2f}, "
        f"of multiply-accumulates {macs[0] / macs[1]:.2f}"
    )


if __name__ == "__main__":
    main()
