"""Optimizers (section 4.1, Tables 3 and 4).

`config.optimizer.name` chooses an entry of OPTIMIZERS, or any importable function of that form.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from vit_jax.config import registry
from vit_jax.config.fields import bounds
from vit_jax.config.schema import Optimizer
from vit_jax.errors import ConfigError
from vit_jax.models import trees
from vit_jax.training.param_groups import HEAD, frozen_names
from vit_jax.training.transforms import (
    add_decayed_weights,
    clip_by_norm,
    freeze_first_steps,
    scale_by_name,
    where_decayed,
)

DecayRate = Annotated[float, bounds(least=0, most=0.99999)]
Epsilon = Annotated[float, bounds(above=0, most=1)]
FloatDtype = Annotated[str, bounds(choices=("float32", "bfloat16"))]


class UpdateRule(NamedTuple):
    """The parts of an update that differ between optimizers.

    An update is -lr x after_decay(direction(gradient) + weight decay x parameter).

    Attributes:
      direction: transformation of gradients.
      after_decay: transformation of the sum, for the parameters that decay.
      after_sum: transformation of the sum for all parameters, in place of `after_decay`.
      wrap: function of the optimizer with all of the above, and of its learning rate, that returns
        the optimizer to use.
    """

    direction: optax.GradientTransformation
    after_decay: optax.GradientTransformation | None = None
    after_sum: optax.GradientTransformation | None = None
    wrap: (
        Callable[[optax.GradientTransformation, optax.Schedule], optax.GradientTransformation]
        | None
    ) = None


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


def nadamw(
    b1: DecayRate = 0.9,
    b2: DecayRate = 0.999,
    eps: Epsilon = 1e-8,
    mu_dtype: FloatDtype = "float32",
) -> optax.GradientTransformation:
    """AdamW with Nesterov momentum (Dozat 2016)."""
    return optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype, nesterov=True)


def nadamw_algoperf(
    b1: DecayRate = 0.9, b2: DecayRate = 0.999, eps: Epsilon = 1e-8
) -> optax.GradientTransformation:
    """AdamW with Nesterov momentum as in AlgoPerf's baselines: all bias is corrected by 1 - b1^t.

    In `nadamw`, the moment is corrected by 1 - b1^(t + 1) instead.
    """

    def init(params):
        mu, nu = (optax.tree.zeros_like(params) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu)

    def update(grads, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        ahead = optax.tree.bias_correction(optax.tree.update_moment(grads, mu, b1, 1), b1, count)
        squares = optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), ahead, squares)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def lion(
    b1: DecayRate = 0.9, b2: DecayRate = 0.99, mu_dtype: FloatDtype = "float32"
) -> optax.GradientTransformation:
    """Lion, the sign of a moment (arXiv:2302.06675); lr 3 to 10 times below that of AdamW."""
    return optax.scale_by_lion(b1, b2, mu_dtype)


def muon(
    beta: DecayRate = 0.95,
    nesterov: bool = True,
    ns_steps: Annotated[int, bounds(least=1, most=20)] = 5,
    consistent_rms: Annotated[float, bounds(above=0)] = 0.2,
    adam_b1: DecayRate = 0.9,
    adam_b2: DecayRate = 0.999,
    eps: Epsilon = 1e-8,
    mu_dtype: FloatDtype = "float32",
) -> optax.GradientTransformation:
    """Muon (arXiv:2502.16982) for the kernels of hidden layers, Adam for all other parameters.

    Other parameters are the patch embedding, the head, position embeddings, tokens, norms and
    biases. A kernel is one matrix from all inputs to all outputs: those of queries, keys and
    values are D x (h d), that of the attention output is (h d) x D.

    The moment of a kernel is orthogonalized by `ns_steps` Newton-Schulz iterations and scaled to
    the root mean square `consistent_rms`, which is about that of AdamW, so that one learning rate
    and one weight decay fit all parameters.
    """

    def axes(params):
        return trees.map_with_names(_matrix_axes, params)

    def labels(params):
        return trees.map_with_names(
            lambda name, leaf: "muon" if _matrix_axes(name, leaf) else "adam", params
        )

    def scale(update: jax.Array, axes: optax.contrib.MuonDimensionNumbers) -> jax.Array:
        fan_in = math.prod(update.shape[axis] for axis in axes.reduction_axis)
        return update * (consistent_rms * max(fan_in, update.size // fan_in) ** 0.5)

    hidden = optax.chain(
        optax.contrib.scale_by_muon(
            ns_steps=ns_steps,
            beta=beta,
            eps=eps,
            mu_dtype=mu_dtype,
            nesterov=nesterov,
            weight_dimension_numbers=axes,
        ),
        optax.stateless(lambda updates, _: jax.tree.map(scale, updates, axes(updates))),
    )
    adam = optax.scale_by_adam(adam_b1, adam_b2, eps, mu_dtype=mu_dtype)
    return optax.partition({"muon": hidden, "adam": adam}, labels)


def _matrix_axes(name: str, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    """Returns the input and output axes of the kernel of a hidden layer, otherwise None."""
    is_kernel = leaf.ndim > 1 and re.search(r"(^|/)kernel$", name)
    if not is_kernel or re.match(rf"(embedding|conv_root)/|{HEAD}", name):
        return None
    is_projection_to_heads = re.search(r"/(query|key|value)/kernel$", name)
    num_inputs = 1 if is_projection_to_heads else leaf.ndim - 1
    axes = tuple(range(leaf.ndim))
    return optax.contrib.MuonDimensionNumbers(axes[:num_inputs], axes[num_inputs:])


def schedule_free_adamw(
    b1: Annotated[float, bounds(above=0, most=0.99999)] = 0.9,
    b2: DecayRate = 0.999,
    eps: Epsilon = 1e-8,
    weight_lr_power: Annotated[float, bounds(least=0)] = 2.0,
) -> UpdateRule:
    """Schedule-free AdamW (arXiv:2405.15682); use it with `schedule="constant"` and a warm-up."""

    def wrap(tx, schedule):
        def schedule_from_one(count):  # optax counts these steps from 1.
            return schedule(count - 1)

        return schedule_free(tx, schedule_from_one, b1, weight_lr_power)

    # Adam without a first moment, which the average of iterates replaces.
    rms = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    return UpdateRule(rms, wrap=wrap)


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


def lars(
    momentum: DecayRate = 0.9, trust_coefficient: Annotated[float, bounds(above=0)] = 0.001
) -> UpdateRule:
    """LARS (arXiv:1708.03888), as in linear probes of MAE and MoCo v3.

    The gradient plus weight decay of a kernel is scaled to `trust_coefficient` times the norm of
    the kernel, except for vectors and biases, before the momentum.
    """
    scale = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
    scaled = optax.masked(scale, lambda params: trees.map_with_names(_is_matrix, params))
    return UpdateRule(optax.identity(), after_sum=optax.chain(scaled, optax.trace(momentum)))


def _is_matrix(name: str, leaf: jax.Array) -> bool:
    """Returns False for vectors, and for biases, which have two axes in attention."""
    return leaf.ndim > 1 and not name.endswith("bias")


OPTIMIZERS: Mapping[str, OptimizerEntry] = {
    "adamw": adamw,
    "nadamw": nadamw,
    "nadamw_algoperf": nadamw_algoperf,
    "muon": muon,
    "schedule_free_adamw": schedule_free_adamw,
    "sgd": sgd,
    "adafactor": adafactor,
    "lamb": lamb,
    "lars": lars,
    "lion": lion,
}


def make_optimizer(
    config: Optimizer,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: jax.typing.ArrayLike | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer of a config: clipping, update rule, weight decay and learning rate.

    Weight decay is decoupled: each step subtracts learning rate x weight decay x parameter. This
    is the unit of Table 3; big_vision's `wd=1e-4` at `lr=1e-3` is 0.1 here.

    A frozen parameter (`freeze`, or learning-rate factor 0) has no optimizer state, and its
    gradient is not part of a norm.

    Args:
      config: fields with `is_traced` are not used, so that they may be None.
      learning_rate: a number, a traced scalar or a schedule.
      weight_decay: a number or a traced scalar; None for `config.weight_decay`. It has no effect
        if that is 0.
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
    weight_decay = config.weight_decay if weight_decay is None else weight_decay
    decays = config.decay_factors if config.weight_decay else (("", 0.0),)
    clips, is_scaled = config.clip_norm is not None, config.lr_factors or config.layer_decay
    tx = optax.chain(  # Checkpoints store positions in this chain, so they never change.
        clip_by_norm(config.clip_norm, config.clip_per) if clips else optax.identity(),
        rule.direction,
        add_decayed_weights(weight_decay, decays) if config.weight_decay else optax.identity(),
        where_decayed(rule.after_decay, decays)
        if rule.after_decay
        else rule.after_sum or optax.identity(),
        scale_by_name(config.lr_factors, config.layer_decay) if is_scaled else optax.identity(),
        optax.scale_by_learning_rate(schedule),
        *([freeze_first_steps(config.freeze_steps)] if config.freeze_steps else []),
    )
    if rule.wrap:
        tx = rule.wrap(tx, schedule)
    if not config.freeze and all(factor for _, factor in config.lr_factors):
        return tx

    def labels(params):
        frozen = frozen_names(config, trees.flatten(params).keys())
        return trees.map_with_names(
            lambda name, _: "frozen" if name in frozen else "trained", params
        )

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free`."""

    inner: optax.contrib.ScheduleFreeState

    def points(self, params):
        """Returns y = b1 x + (1 - b1) z for averages x; frozen parameters have no z."""
        b1, iterates = self.inner.b1, trees.flatten(self.inner.z)
        return trees.map_with_names(
            lambda name, x: b1 * x + (1 - b1) * iterates[name] if name in iterates else x, params
        )


def schedule_free(
    tx: optax.GradientTransformation, *args, **kwargs
) -> optax.GradientTransformation:
    """`optax.contrib.schedule_free` for parameters that are the averages x, which are evaluated.

    In optax, the parameters are the points y at which gradients are taken, and x is computed from
    y for evaluation. Here evaluation, checkpoints and exports get x as the parameters, and the
    train step computes y with `gradient_params`. State and memory are the same.
    """
    inner = optax.contrib.schedule_free(tx, *args, **kwargs)

    def init(params):
        return ScheduleFreeState(inner.init(params))

    def update(grads, state, params):
        points = state.points(params)
        updates, inner_state = inner.update(grads, state.inner, points)
        points = optax.apply_updates(points, updates)
        averages = optax.contrib.schedule_free_eval_params(inner_state, points)
        return jax.tree.map(jnp.subtract, averages, params), ScheduleFreeState(inner_state)

    return optax.GradientTransformation(init, update)


def gradient_params(opt_state: optax.OptState, params):
    """Returns the parameters at which the gradient of a step is taken.

    These are `params`, except for schedule-free optimizers.
    """

    def is_schedule_free(node) -> bool:
        return isinstance(node, ScheduleFreeState)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_schedule_free)
    state = next(filter(is_schedule_free, nodes), None)
    return params if state is None else state.points(params)
