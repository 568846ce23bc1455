"""The learning-rate schedule and the update rule (section 4.1, Tables 3 and 4).

Factors by name are pairs (regex, factor): the first regex that is found in a parameter's slash
name gives its factor, and a name that none is found in has the factor 1.
"""

import collections
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from vit_jax import trees
from vit_jax.config.schema import Optimizer

Factors = Sequence[tuple[str, float]]


def make_schedule(
    lr: float,
    *,
    total_steps: int,
    schedule: str = Optimizer.schedule,
    warmup_steps: int = Optimizer.warmup_steps,
    end_lr: float = Optimizer.end_lr,
    timescale: int = Optimizer.timescale,
    cooldown_steps: int = Optimizer.cooldown_steps,
    stair_at: Sequence[float] = Optimizer.stair_at,
) -> optax.Schedule:
    """Linear warm-up from 0 to `lr`, then one of five ways down.

    'linear' and 'cosine' end at `end_lr`; 'rsqrt' is lr / sqrt(1 + t / timescale), t steps after
    the warm-up (arXiv:2106.04560); 'stair' is divided by 10 at each share `stair_at` of the run
    (BiT-HyperRule, arXiv:1912.11370). The last `cooldown_steps` of any of them are multiplied by
    what falls linearly to 0.

    Step 0 has rate 0 when there is a warm-up, as in the official code.
    """
    decay_steps = max(total_steps - warmup_steps, 1)
    stairs = collections.Counter(
        max(round(share * total_steps) - warmup_steps, 0) for share in stair_at
    )
    after = {
        "linear": lambda: optax.linear_schedule(lr, end_lr, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(lr, decay_steps, end_lr / lr),
        "rsqrt": lambda: lambda t: lr / jnp.sqrt(1 + t / timescale),
        "stair": lambda: optax.piecewise_constant_schedule(
            lr, {step: 0.1**count for step, count in stairs.items()}
        ),
        "constant": lambda: optax.constant_schedule(lr),
    }[schedule]()
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, lr, warmup_steps)
        after = optax.join_schedules([warmup, after], [warmup_steps])
    if not cooldown_steps:
        return after
    return lambda step: after(step) * jnp.clip((total_steps - step) / cooldown_steps, 0.0, 1.0)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    name: str = Optimizer.name,
    weight_decay: float = Optimizer.weight_decay,
    decay_factors: Factors = Optimizer.decay_factors,
    lr_factors: Factors = Optimizer.lr_factors,
    layer_decay: float | None = Optimizer.layer_decay,
    beta1: float = Optimizer.beta1,
    beta2: float = Optimizer.beta2,
    momentum: float = Optimizer.momentum,
    moment_dtype: str = Optimizer.moment_dtype,
    clip_norm: float | None = Optimizer.clip_norm,
) -> optax.GradientTransformation:
    """Clips the global norm, then AdamW, SGD with momentum, Adafactor or LAMB.

    Every rule subtracts learning rate x weight decay x parameter, apart from the gradient's
    moments. That is the unit of Table 3: big_vision's `wd=1e-4` at `lr=1e-3` is 0.1 here.

    Adafactor is that of arXiv:2106.04560: factored second moments whose decay stays below `beta2`,
    and a first moment. LAMB (arXiv:1904.00962) takes the length of a parameter for that of its
    step, where the parameter decays.

    A parameter whose learning rate has the factor 0 is frozen: it has no optimiser state, and its
    gradient does not count in the norm.

    Args:
      layer_decay: learning rate of a layer as a share of that of the layer above (the head has
        the full rate, the embedding the smallest: arXiv:2111.06377).
    """

    decays = tuple((pattern, weight_decay * factor) for pattern, factor in decay_factors)
    decays += (("", weight_decay),)  # Of every other name.
    moments = {
        "adamw": lambda: optax.scale_by_adam(beta1, beta2, mu_dtype=moment_dtype),
        "sgd": lambda: optax.trace(momentum, accumulator_dtype=moment_dtype),
        "adafactor": lambda: _adafactor(beta1, beta2, moment_dtype),
        "lamb": lambda: optax.scale_by_adam(beta1, beta2, eps=1e-6, mu_dtype=moment_dtype),
    }[name]()
    tx = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
        moments,
        _add_decayed_weights(decays) if weight_decay else optax.identity(),
        _trust_ratio(decays) if name == "lamb" else optax.identity(),
        _scale_by_name(lr_factors, layer_decay or 1.0),
        optax.scale_by_learning_rate(schedule),
    )
    if all(factor for _, factor in lr_factors):
        return tx

    def labels(params):
        return trees.map_with_names(
            lambda name, _: "trained" if factor_of(name, lr_factors) else "frozen", params
        )

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def factor_of(name: str, factors: Factors) -> float:
    """The factor of the first pattern found in a name, or 1."""
    return next((factor for pattern, factor in factors if re.search(pattern, name)), 1.0)


def layer_of(name: str, num_layers: int) -> int:
    """0 before the encoder, i + 1 in encoderblock_i, num_layers + 1 after the encoder."""
    if block := re.match(r"Transformer/encoderblock_(\d+)/", name):
        return int(block[1]) + 1
    is_after = re.match(r"Transformer/encoder_norm/|pre_logits/|MAPHead_0/|head/|patch_head/", name)
    return num_layers + 1 if is_after else 0


def _adafactor(beta1: float, beta2: float, moment_dtype: str) -> optax.GradientTransformation:
    """That of "Scaling Vision Transformers" (arXiv:2106.04560, section 3.4)."""
    return optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=32,
            decay_rate_fn=lambda step, _: jnp.minimum(beta2, 1 - (step + 1.0) ** -0.8),
        ),
        optax.ema(beta1, debias=False, accumulator_dtype=moment_dtype),
    )


def _add_decayed_weights(decays: Factors) -> optax.GradientTransformation:
    def add(updates, params):
        shares = trees.map_with_names(lambda name, _: factor_of(name, decays), params)
        return jax.tree.map(lambda share, u, p: u + share * p, shares, updates, params)

    return optax.stateless(add)


def _trust_ratio(decays: Factors) -> optax.GradientTransformation:
    """LAMB's, for what decays: biases and the like have no length to go by."""

    def has_length(params):
        return trees.map_with_names(lambda name, _: factor_of(name, decays) > 0, params)

    return optax.masked(optax.scale_by_trust_ratio(), has_length)


def _scale_by_name(factors: Factors, layer_decay: float) -> optax.GradientTransformation:
    if not factors and layer_decay == 1.0:
        return optax.identity()

    def scale(updates, params):
        num_layers = max(layer_of(name, 0) for name in trees.flatten(params))

        def of_leaf(name: str, update: jax.Array) -> jax.Array:
            below = num_layers + 1 - layer_of(name, num_layers)
            return update * (factor_of(name, factors) * layer_decay**below)

        return trees.map_with_names(of_leaf, updates)

    return optax.stateless(scale)
