"""Learning-rate schedules, and the hyperparameters of each step.

`config.optimizer.schedule` chooses an entry of SCHEDULES, or any importable function of that form.
"""

import collections
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.config import registry
from vit_jax.config.schema import Optimizer


class ScheduleEntry(Protocol):
    """An entry of SCHEDULES."""

    def __call__(self, config: Optimizer, total_steps: int) -> optax.Schedule:
        """Returns the learning rate as a traceable function of the steps after the warm-up."""


def linear(config: Optimizer, total_steps: int) -> optax.Schedule:
    """Linear from `lr` to `end_lr`."""
    return optax.linear_schedule(config.lr, config.end_lr, _decay_steps(config, total_steps))


def cosine(config: Optimizer, total_steps: int) -> optax.Schedule:
    """Half a cosine from `lr` to `end_lr`."""
    decay_steps = _decay_steps(config, total_steps)
    return optax.cosine_decay_schedule(config.lr, decay_steps, config.end_lr / config.lr)


def rsqrt(config: Optimizer, total_steps: int) -> optax.Schedule:
    """Reciprocal square root, lr / sqrt(1 + t / timescale) (arXiv:2106.04560)."""
    del total_steps
    return lambda t: config.lr / jnp.sqrt(1 + t / config.timescale)


def stair(config: Optimizer, total_steps: int) -> optax.Schedule:
    """Divided by 10 at each fraction `stair_at` of the run (BiT-HyperRule, arXiv:1912.11370)."""
    counts = collections.Counter(
        max(round(fraction * total_steps) - config.warmup_steps, 0) for fraction in config.stair_at
    )
    factors = {step: 0.1**count for step, count in counts.items()}
    return optax.piecewise_constant_schedule(config.lr, factors)


def constant(config: Optimizer, total_steps: int) -> optax.Schedule:
    """Constant `lr`."""
    del total_steps
    return optax.constant_schedule(config.lr)


SCHEDULES: Mapping[str, ScheduleEntry] = {
    "linear": linear,
    "cosine": cosine,
    "rsqrt": rsqrt,
    "stair": stair,
    "constant": constant,
}


def make_schedule(config: Optimizer, total_steps: int) -> optax.Schedule:
    """Returns the learning rate at each step: warm-up, the config's schedule and cool-down.

    The warm-up is linear from 0, so the rate of step 0 is 0, as in the official code. The last
    `cooldown_steps` of any schedule are multiplied by a factor that falls linearly to 0.
    """
    entry = registry.find(SCHEDULES, config.schedule, "config.optimizer.schedule")
    schedule = entry(config, total_steps)
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [config.warmup_steps])
    if not config.cooldown_steps:
        return schedule
    return lambda step: (
        schedule(step) * jnp.clip((total_steps - step) / config.cooldown_steps, 0.0, 1.0)
    )


def _decay_steps(config: Optimizer, total_steps: int) -> int:
    return max(total_steps - config.warmup_steps, 1)


def make_hyperparams(config: Optimizer, total_steps: int) -> Callable[[int], dict[str, np.float32]]:
    """Returns `hyperparams(step)`: `lr`, and what else of a config changes with the step.

    With SAM, `rho` is its radius. It falls with the learning rate from `sam_rho` to `sam_rho_min`
    (arXiv:2203.08065, section 4.2). With `end_weight_decay`, `weight_decay` is that of the step;
    with `end_ema`, `ema_step` is 1 - the decay of averaged weights, which float32 has with more
    digits than the decay. Both follow half a cosine over all steps (arXiv:2104.14294).
    """
    schedule = make_schedule(config, total_steps)
    lr = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(total_steps)), np.float32)
    values = {"lr": lr}
    if config.sam_rho is not None:
        smallest = config.sam_rho if config.sam_rho_min is None else config.sam_rho_min
        span, fraction = config.lr - config.end_lr, np.ones_like(lr)
        if span:
            fraction = np.maximum((lr - config.end_lr) / span, 0.0)
        values["rho"] = np.float32(smallest + (config.sam_rho - smallest) * fraction)
    if config.end_weight_decay is not None:
        decays = _half_cosine(config.weight_decay, config.end_weight_decay, total_steps)
        values["weight_decay"] = np.float32(decays)
    if config.end_ema is not None:
        values["ema_step"] = np.float32(1 - _half_cosine(config.ema, config.end_ema, total_steps))
    return lambda step: {name: array[step] for name, array in values.items()}


def _half_cosine(start: float, end: float, total_steps: int) -> np.ndarray:
    """Returns the values of all steps in float64, from `start` at the first towards `end`."""
    fraction = np.arange(total_steps) / total_steps
    return end + (start - end) * (1 + np.cos(np.pi * fraction)) / 2
