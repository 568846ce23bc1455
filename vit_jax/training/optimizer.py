"""Optimizers and learning-rate schedules (section 4.1, Tables 3 and 4).

`config.optimizer.name` and `config.optimizer.schedule` choose an entry of OPTIMIZERS and of
SCHEDULES, or any importable function of the same form.

Factors by name are (regex, factor) pairs: the first regex found in a parameter's slash name gives
its factor; without one the factor is 1.
"""

import collections
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import trees
from vit_jax.config import registry
from vit_jax.config.fields import bounds
from vit_jax.config.schema import Optimizer
from vit_jax.errors import ConfigError

Factors = Sequence[tuple[str, float]]

DecayRate = Annotated[float, bounds(least=0, most=0.99999)]
Epsilon = Annotated[float, bounds(above=0, most=1)]
FloatDtype = Annotated[str, bounds(choices=("float32", "bfloat16"))]


class UpdateRule(NamedTuple):
    """The parts of an update that differ between optimizers.

    An update is -lr x after_decay(direction(gradient) + weight decay x parameter).
    """

    direction: optax.GradientTransformation
    # Applied to the parameters that decay.
    after_decay: optax.GradientTransformation | None = None


class OptimizerEntry(Protocol):
    """An entry of OPTIMIZERS: a function of the options in `optimizer.kwargs`.

    Options have optax's names, a default each, and an annotation that configs are checked
    against: a type, or `Annotated[type, bounds(...)]`. The call creates no arrays, as checking a
    config makes it; it may raise ValueError.
    """

    def __call__(self, **options) -> optax.GradientTransformation | UpdateRule:
        """Returns the transformation of a gradient to the direction to descend.

        Weight decay and learning rate are not part of it; an optimizer that changes the update
        after weight decay returns an `UpdateRule`.
        """


def adamw(
    b1: DecayRate = 0.9,
    b2: DecayRate = 0.999,
    eps: Epsilon = 1e-8,
    mu_dtype: FloatDtype = "float32",
) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101), with the defaults of Table 3."""
    return optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)


def sgd(
    momentum: DecayRate = 0.9, nesterov: bool = False, accumulator_dtype: FloatDtype = "float32"
) -> optax.GradientTransformation:
    """SGD with momentum, with the default of Table 4."""
    return optax.trace(momentum, nesterov, accumulator_dtype=accumulator_dtype)


def adafactor(
    momentum: DecayRate = 0.9,
    beta2_cap: DecayRate = 0.999,
    decay_rate: DecayRate = 0.8,
    min_dim_size_to_factor: Annotated[int, bounds(least=1)] = 32,
    dtype_momentum: FloatDtype = "float32",
) -> optax.GradientTransformation:
    """Adafactor of "Scaling Vision Transformers" (arXiv:2106.04560, section 3.4).

    The second moments are factored; their decay rate is 1 - t^-decay_rate, at most `beta2_cap`.
    """
    return optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=min_dim_size_to_factor,
            decay_rate_fn=lambda step, _: jnp.minimum(beta2_cap, 1 - (step + 1.0) ** -decay_rate),
        ),
        optax.ema(momentum, debias=False, accumulator_dtype=dtype_momentum),
    )


def lamb(
    b1: DecayRate = 0.9,
    b2: DecayRate = 0.999,
    eps: Epsilon = 1e-6,
    mu_dtype: FloatDtype = "float32",
) -> UpdateRule:
    """LAMB (arXiv:1904.00962): an update as long as its parameter, for parameters that decay."""
    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return UpdateRule(adam, after_decay=optax.scale_by_trust_ratio())


OPTIMIZERS: Mapping[str, OptimizerEntry] = {
    "adamw": adamw,
    "sgd": sgd,
    "adafactor": adafactor,
    "lamb": lamb,
}


def make_optimizer(
    config: Optimizer, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """Returns the optimizer of a config: clipping, update rule, weight decay and learning rate.

    Weight decay is decoupled: each step subtracts learning rate x weight decay x parameter. This
    is the unit of Table 3; big_vision's `wd=1e-4` at `lr=1e-3` is 0.1 here.

    A parameter with learning-rate factor 0 is frozen: it has no optimizer state, and its gradient
    is not part of the global norm.

    Args:
      config: fields with `is_traced` are not used, so that they may be None.
      learning_rate: a number, a traced scalar or a schedule.
    """
    rule = registry.find(OPTIMIZERS, config.name, "config.optimizer.name")(**config.kwargs)
    if isinstance(rule, optax.GradientTransformation):
        rule = UpdateRule(rule)
    if not isinstance(rule, UpdateRule):
        raise ConfigError(
            f"config.optimizer.name: {config.name} returns {type(rule).__name__}; expected an "
            "optax.GradientTransformation or a vit_jax.training.optimizer.UpdateRule."
        )
    schedule = learning_rate if callable(learning_rate) else lambda _: learning_rate
    decays = [(pattern, config.weight_decay * factor) for pattern, factor in config.decay_factors]
    decays.append(("", config.weight_decay))  # All other parameters.
    clips, is_scaled = config.clip_norm is not None, config.lr_factors or config.layer_decay
    tx = optax.chain(  # Checkpoints store positions in this chain, so they never change.
        optax.clip_by_global_norm(config.clip_norm) if clips else optax.identity(),
        rule.direction,
        _add_decayed_weights(decays) if config.weight_decay else optax.identity(),
        _where_decayed(rule.after_decay, decays) if rule.after_decay else optax.identity(),
        _scale_by_name(config.lr_factors, config.layer_decay) if is_scaled else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )
    if all(factor for _, factor in config.lr_factors):
        return tx

    def labels(params):
        return trees.map_with_names(
            lambda name, _: "trained" if factor_of(name, config.lr_factors) else "frozen", params
        )

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def factor_of(name: str, factors: Factors) -> float:
    """Returns the factor of the first pattern found in a name, or 1."""
    return next((factor for pattern, factor in factors if re.search(pattern, name)), 1.0)


def layer_of(name: str, num_layers: int) -> int:
    """Returns 0 before the encoder, i + 1 in encoderblock_i, num_layers + 1 after the encoder."""
    if block := re.match(r"Transformer/encoderblock_(\d+)/", name):
        return int(block[1]) + 1
    is_after = re.match(r"Transformer/encoder_norm/|pre_logits/|MAPHead_0/|head/|patch_head/", name)
    return num_layers + 1 if is_after else 0


def _add_decayed_weights(decays: Factors) -> optax.GradientTransformation:
    def add(updates, params):
        factors = trees.map_with_names(lambda name, _: factor_of(name, decays), params)
        return jax.tree.map(lambda factor, u, p: u + factor * p, factors, updates, params)

    return optax.stateless(add)


def _where_decayed(
    tx: optax.GradientTransformation, decays: Factors
) -> optax.GradientTransformation:
    def is_decayed(params):
        return trees.map_with_names(lambda name, _: factor_of(name, decays) > 0, params)

    return optax.masked(tx, is_decayed)


def _scale_by_name(factors: Factors, layer_decay: float | None) -> optax.GradientTransformation:
    """Multiplies updates by the factor of their name and by layer_decay^(layers above)."""
    layer_decay = layer_decay or 1.0

    def scale(updates, params):
        num_layers = max(layer_of(name, 0) for name in trees.flatten(params))

        def scale_leaf(name: str, update: jax.Array) -> jax.Array:
            layers_above = num_layers + 1 - layer_of(name, num_layers)
            return update * (factor_of(name, factors) * layer_decay**layers_above)

        return trees.map_with_names(scale_leaf, updates)

    return optax.stateless(scale)


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
    """Returns `hyperparams(step)`: `lr`, and SAM's radius `rho` if the config sets one.

    The radius falls with the learning rate from `sam_rho` to `sam_rho_min`
    (arXiv:2203.08065, section 4.2).
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
    return lambda step: {name: array[step] for name, array in values.items()}
