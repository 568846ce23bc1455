"""The learning-rate schedule and the update rule (section 4.1, Tables 3 and 4)."""

import optax

from vit_jax.schema import Optimizer


def make_schedule(
    lr: float,
    *,
    total_steps: int,
    schedule: str = Optimizer.schedule,
    warmup_steps: int = Optimizer.warmup_steps,
) -> optax.Schedule:
    """Linear warm-up from 0 to `lr`, then linear or cosine decay to 0, or constant.

    Step 0 has rate 0 when there is a warm-up, as in the official code.
    """
    decay_steps = max(total_steps - warmup_steps, 1)
    after = {
        "linear": lambda: optax.linear_schedule(lr, 0.0, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(lr, decay_steps),
        "constant": lambda: optax.constant_schedule(lr),
    }[schedule]()
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, lr, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    schedule: optax.Schedule,
    *,
    name: str = Optimizer.name,
    weight_decay: float = Optimizer.weight_decay,
    beta1: float = Optimizer.beta1,
    beta2: float = Optimizer.beta2,
    momentum: float = Optimizer.momentum,
    clip_norm: float | None = Optimizer.clip_norm,
) -> optax.GradientTransformation:
    """Clips the global norm, then AdamW or SGD with momentum.

    Both subtract learning rate x weight decay x parameter, apart from the gradient's
    moments: the unit of Table 3, on all parameters.
    """
    rule = {
        "adamw": lambda: optax.scale_by_adam(beta1, beta2),
        "sgd": lambda: optax.trace(momentum),
    }[name]()
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
        rule,
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )
