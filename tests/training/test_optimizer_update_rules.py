"""Each optimizer against 100 steps of numpy, written from its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config.fields import Kwargs
from vit_jax.config.schema import Optimizer
from vit_jax.models import trees
from vit_jax.training.optimizer import OPTIMIZERS, make_optimizer
from vit_jax.training.schedules import make_schedule

STEPS, RATE = 100, 0.03
RANDOM = np.random.default_rng(0)
START = {
    "kernel": RANDOM.normal(size=(32, 40)),  # Factored: both sides are at least 32.
    "narrow": RANDOM.normal(size=(3, 40)),
    "bias": RANDOM.normal(size=5),
}
GRADIENTS = [{n: RANDOM.normal(size=p.shape) for n, p in START.items()} for _ in range(STEPS)]
CONSTANT = Optimizer(lr=RATE, schedule="constant", clip_norm=None)
WARMUP = Optimizer(lr=RATE, warmup_steps=4, clip_norm=1.0)


def trace(config, grads=GRADIENTS):
    """Parameters after each step, and the last optimizer state."""
    params = jax.tree.map(jnp.float32, START)
    tx = make_optimizer(config, make_schedule(config, STEPS))
    state, history = tx.init(params), []
    update = jax.jit(tx.update)
    for step_grads in grads:
        updates, state = update(jax.tree.map(jnp.float32, step_grads), state, params)
        params = optax.apply_updates(params, updates)
        history.append(jax.tree.map(np.array, params))
    return history, state


def with_options(config, name="adamw", *, weight_decay=0.0, **kwargs):
    return Optimizer(
        **{**vars(config), "name": name, "weight_decay": weight_decay, "kwargs": Kwargs(kwargs)}
    )


def assert_same_trace(actual, expected, rtol=2e-4, atol=2e-5):
    expected = list(expected)
    assert len(actual) == len(expected) == STEPS
    for step, (a, e) in enumerate(zip(actual, expected)):
        for name in e:
            message = f"{name} after step {step}"
            np.testing.assert_allclose(a[name], e[name], rtol, atol, err_msg=message)


def zeros():
    return {name: np.zeros_like(p) for name, p in START.items()}


def clipped(grads, norm):
    if norm is None:
        return grads
    length = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {name: g * min(1, norm / length) for name, g in grads.items()}


def rates_of(config):
    """Linear from 0 at step 0, then half a cosine to 0 at step STEPS; or constant."""
    if config.schedule == "constant":
        return np.full(STEPS, RATE)
    t, warmup = np.arange(STEPS), config.warmup_steps
    cosine = RATE * (1 + np.cos(np.pi * (t - warmup) / (STEPS - warmup))) / 2
    return np.where(t < warmup, RATE * t / warmup, cosine)


def adamw_by_hand(config, decay, b1=0.9, b2=0.999):
    """Algorithm 2 of arXiv:1711.05101, with the decay in units of the learning rate."""
    params = {name: p.copy() for name, p in START.items()}
    m, v = zeros(), zeros()
    for t, (grads, rate) in enumerate(zip(GRADIENTS, rates_of(config)), start=1):
        for name, g in clipped(grads, config.clip_norm).items():
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            step = m[name] / (1 - b1**t) / (np.sqrt(v[name] / (1 - b2**t)) + 1e-8)
            params[name] = params[name] - rate * step - rate * decay * params[name]
        yield dict(params)


def nadamw_by_hand(config, decay, b1=0.9, b2=0.999):
    """AdamW with the moment of the next step (Dozat 2016, algorithm 2, constant b1)."""
    params = {name: p.copy() for name, p in START.items()}
    m, v = zeros(), zeros()
    for t, (grads, rate) in enumerate(zip(GRADIENTS, rates_of(config)), start=1):
        for name, g in clipped(grads, config.clip_norm).items():
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            next_m = b1 * m[name] / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
            step = next_m / (np.sqrt(v[name] / (1 - b2**t)) + 1e-8)
            params[name] = params[name] - rate * step - rate * decay * params[name]
        yield dict(params)


def nadamw_algoperf_by_hand(config, decay, b1=0.9, b2=0.999):
    """The NAdamW of AlgoPerf: moment and gradient are corrected by the same 1 - b1^t."""
    params = {name: p.copy() for name, p in START.items()}
    m, v = zeros(), zeros()
    for t, (grads, rate) in enumerate(zip(GRADIENTS, rates_of(config)), start=1):
        for name, g in clipped(grads, config.clip_norm).items():
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            ahead = (b1 * m[name] + (1 - b1) * g) / (1 - b1**t)
            step = ahead / (np.sqrt(v[name] / (1 - b2**t)) + 1e-8)
            params[name] = params[name] - rate * (step + decay * params[name])
        yield dict(params)


def newton_schulz(matrix):
    """Five steps of the quintic iteration of Jordan (2024)."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        squares = x @ x.T
        x = 3.4445 * x + (-4.775 * squares + 2.0315 * squares @ squares) @ x
    return x


def muon_by_hand(config, decay, beta=0.95, nesterov=True, consistent_rms=0.2):
    """Section 2.2 of arXiv:2502.16982 for the kernel; AdamW for the other parameters."""
    params = {name: p.copy() for name, p in START.items()}
    m = np.zeros_like(START["kernel"])
    others = adamw_by_hand(config, decay)
    for t, (grads, rate, after) in enumerate(zip(GRADIENTS, rates_of(config), others), start=1):
        g = clipped(grads, config.clip_norm)["kernel"]
        m = beta * m + (1 - beta) * g
        moment = m / (1 - beta**t)
        if nesterov:
            moment = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        step = consistent_rms * np.sqrt(max(m.shape)) * newton_schulz(moment)
        params["kernel"] = params["kernel"] - rate * step - rate * decay * params["kernel"]
        yield {**after, "kernel": params["kernel"]}


def schedule_free_adamw_by_hand(config, decay, b1=0.9, b2=0.999, weight_lr_power=2.0):
    """Algorithm 1 of arXiv:2405.15682 for given gradients; yields the averages x."""
    x, z, v = ({name: p.copy() for name, p in each.items()} for each in (START, START, zeros()))
    largest = total = 0.0
    for t, (grads, rate) in enumerate(zip(GRADIENTS, rates_of(config)), start=1):
        largest = max(largest, rate)
        total += largest**weight_lr_power
        share = largest**weight_lr_power / total if total else 0.0
        for name, g in clipped(grads, config.clip_norm).items():
            y = (1 - b1) * z[name] + b1 * x[name]
            v[name] = b2 * v[name] + (1 - b2) * g**2
            step = g / (np.sqrt(v[name] / (1 - b2**t)) + 1e-8)
            z[name] = z[name] - rate * step - rate * decay * y
            x[name] = (1 - share) * x[name] + share * z[name]
        yield dict(x)


def lion_by_hand(config, decay, b1=0.9, b2=0.99):
    """Algorithm 2 of arXiv:2302.06675."""
    params = {name: p.copy() for name, p in START.items()}
    m = zeros()
    for grads, rate in zip(GRADIENTS, rates_of(config)):
        for name, g in clipped(grads, config.clip_norm).items():
            step = np.sign(b1 * m[name] + (1 - b1) * g)
            m[name] = b2 * m[name] + (1 - b2) * g
            params[name] = params[name] - rate * (step + decay * params[name])
        yield dict(params)


def sgd_by_hand(config, decay, momentum=0.9, nesterov=False):
    """SGD with momentum; Nesterov's form is that of arXiv:1212.0901, equation 7."""
    params = {name: p.copy() for name, p in START.items()}
    velocity = zeros()
    for grads, rate in zip(GRADIENTS, rates_of(config)):
        for name, g in clipped(grads, config.clip_norm).items():
            velocity[name] = momentum * velocity[name] + g
            step = g + momentum * velocity[name] if nesterov else velocity[name]
            params[name] = params[name] - rate * step - rate * decay * params[name]
        yield dict(params)


def adafactor_by_hand(config, decay, momentum=0.9, beta2_cap=0.999):
    """Section 3.4 of arXiv:2106.04560: rows and columns of squares, and a first moment."""
    params = {name: p.copy() for name, p in START.items()}
    row, col = np.zeros(32), np.zeros(40)
    squares = {name: np.zeros_like(START[name]) for name in ("narrow", "bias")}
    m = zeros()
    for t, (grads, rate) in enumerate(zip(GRADIENTS, rates_of(config)), start=1):
        grads = clipped(grads, config.clip_norm)
        keep = min(beta2_cap, 1 - t**-0.8)
        row = keep * row + (1 - keep) * (grads["kernel"] ** 2).mean(1)
        col = keep * col + (1 - keep) * (grads["kernel"] ** 2).mean(0)
        scale = {"kernel": np.sqrt(np.outer(row, col) / row.mean())}
        for name in squares:
            squares[name] = keep * squares[name] + (1 - keep) * grads[name] ** 2
            scale[name] = np.sqrt(squares[name])
        for name, g in grads.items():
            m[name] = momentum * m[name] + (1 - momentum) * g / scale[name]  # No bias correction.
            params[name] = params[name] - rate * (m[name] + decay * params[name])
        yield dict(params)


def lamb_by_hand(config, decay, undecayed=""):
    """Algorithm 2 of arXiv:1904.00962; a parameter that does not decay moves as in Adam."""
    params = {name: p.copy() for name, p in START.items()}
    m, v = zeros(), zeros()
    for t, (grads, rate) in enumerate(zip(GRADIENTS, rates_of(config)), start=1):
        for name, g in clipped(grads, config.clip_norm).items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            u = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-6)
            if decay and name != undecayed:
                u = u + decay * params[name]
                u = u * np.linalg.norm(params[name]) / np.linalg.norm(u)
            params[name] = params[name] - rate * u
        yield dict(params)


def lars_by_hand(config, decay, momentum=0.9, trust_coefficient=0.001):
    """Equations 4 to 6 of arXiv:1708.03888, with the vectors moved as in SGD."""
    params = {name: p.copy() for name, p in START.items()}
    velocity = zeros()
    for grads, rate in zip(GRADIENTS, rates_of(config)):
        for name, g in clipped(grads, config.clip_norm).items():
            step = g + decay * params[name]
            if params[name].ndim > 1:
                step *= trust_coefficient * np.linalg.norm(params[name]) / np.linalg.norm(step)
            velocity[name] = momentum * velocity[name] + step
            params[name] = params[name] - rate * velocity[name]
        yield dict(params)


RULES = [  # Name, options and the same rule in numpy.
    ("adamw", {}, adamw_by_hand),
    ("adamw", {"b1": 0.8, "b2": 0.99}, adamw_by_hand),
    ("nadamw", {}, nadamw_by_hand),
    ("nadamw", {"b1": 0.8, "b2": 0.99}, nadamw_by_hand),
    ("nadamw_algoperf", {}, nadamw_algoperf_by_hand),
    ("nadamw_algoperf", {"b1": 0.89, "b2": 0.9978}, nadamw_algoperf_by_hand),
    ("muon", {}, muon_by_hand),
    ("muon", {"beta": 0.9, "nesterov": False, "consistent_rms": 0.5}, muon_by_hand),
    ("schedule_free_adamw", {}, schedule_free_adamw_by_hand),
    (
        "schedule_free_adamw",
        {"b1": 0.8, "b2": 0.99, "weight_lr_power": 1.0},
        schedule_free_adamw_by_hand,
    ),
    ("lion", {}, lion_by_hand),
    ("lion", {"b1": 0.95, "b2": 0.98}, lion_by_hand),
    ("sgd", {}, sgd_by_hand),
    ("sgd", {"momentum": 0.8}, sgd_by_hand),
    ("sgd", {"nesterov": True}, sgd_by_hand),
    ("adafactor", {}, adafactor_by_hand),
    ("adafactor", {"momentum": 0.8, "beta2_cap": 0.95}, adafactor_by_hand),
    ("lamb", {}, lamb_by_hand),
    ("lars", {}, lars_by_hand),
    ("lars", {"momentum": 0.8, "trust_coefficient": 0.1}, lars_by_hand),
]


@pytest.mark.parametrize("decay", [0.3, 0.0])
@pytest.mark.parametrize("config", [CONSTANT, WARMUP], ids=["constant", "warmup_and_clipping"])
@pytest.mark.parametrize(
    ("name", "options", "by_hand"), RULES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_optimizer_follows_its_paper_for_100_steps(name, options, by_hand, config, decay):
    actual, _ = trace(with_options(config, name, weight_decay=decay, **options))
    assert_same_trace(actual, by_hand(config, decay, **options))


def test_every_optimizer_is_compared_with_numpy():
    assert {name for name, _, _ in RULES} == set(OPTIMIZERS)


def test_nadamw_algoperf_moves_by_one_and_b1_rates_first():
    (first,), _ = trace(with_options(CONSTANT, "nadamw_algoperf", b1=0.89), GRADIENTS[:1])
    for name, start in START.items():
        moved = np.sign(GRADIENTS[0][name]) * RATE * 1.89
        np.testing.assert_allclose(first[name], start - moved, rtol=1e-5, atol=1e-6)


def test_lamb_moves_undecayed_parameters_as_adam():
    config = with_options(CONSTANT, "lamb", weight_decay=0.02)
    config = Optimizer(**{**vars(config), "decay_factors": (("bias", 0.0),)})
    assert_same_trace(trace(config)[0], lamb_by_hand(config, 0.02, undecayed="bias"))


def test_lars_moves_a_kernel_of_zeros_by_its_gradient_and_biases_of_two_axes_as_vectors():
    config = with_options(CONSTANT, "lars", trust_coefficient=0.5)
    params = {"kernel": jnp.zeros((2, 2)), "query/bias": jnp.ones((2, 2))}
    grads = {name: jnp.full((2, 2), 3.0) for name in params}
    tx = make_optimizer(config, RATE)
    updates, _ = tx.update(grads, tx.init(params), params)
    for name in params:
        np.testing.assert_allclose(updates[name], np.full((2, 2), -3 * RATE), rtol=1e-6)


def test_adafactor_stores_a_row_and_a_column_of_second_moments_of_a_matrix():
    _, state = trace(with_options(CONSTANT, "adafactor"), GRADIENTS[:1])
    shapes = {name: leaf.shape for name, leaf in trees.flatten(state).items()}
    of_kernel = [shapes[name] for name in shapes if name.endswith("v_row/kernel")]
    of_kernel += [shapes[name] for name in shapes if name.endswith("v_col/kernel")]
    assert sorted(of_kernel) == [(32,), (40,)]


DTYPES = {
    "adamw": "mu_dtype",
    "nadamw": "mu_dtype",
    "muon": "mu_dtype",
    "lion": "mu_dtype",
    "sgd": "accumulator_dtype",
    "adafactor": "dtype_momentum",
    "lamb": "mu_dtype",
}


@pytest.mark.parametrize("name", DTYPES)
def test_bfloat16_moment_gives_nearly_the_same_path(name):
    slow = Optimizer(**{**vars(CONSTANT), "lr": 1e-3, "clip_norm": 1.0})
    exact, state = trace(with_options(slow, name))
    rounded, small = trace(with_options(slow, name, **{DTYPES[name]: "bfloat16"}))
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(small)}
    assert "bfloat16" in dtypes
    assert "bfloat16" not in {str(leaf.dtype) for leaf in jax.tree.leaves(state)}
    for each in START:
        moved = np.linalg.norm(exact[-1][each] - START[each])
        limit = 0.1 if name == "lion" else 0.02  # Some signs of Lion change.
        assert np.linalg.norm(exact[-1][each] - rounded[-1][each]) < limit * moved
