"""Clipping by groups and parameters that are frozen at first, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config.schema import Optimizer
from vit_jax.models import trees
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.transforms import clip_by_norm

GRADS = {
    "embedding/kernel": np.array([[3.0, 0.0], [0.0, 4.0]]),  # Norm 5.
    "Transformer/encoder_norm/scale": np.array([12.0]),  # Norm 13 with the kernel.
    "class_head/layer_0/kernel": np.array([0.6, 0.8]),
    "class_head/last_layer/kernel": np.array([0.0, 7.0]),
    "patch_head/last_layer/kernel": np.array([0.3, 0.4]),
}


def clipped(max_norm, per, grads=GRADS):
    tx = clip_by_norm(max_norm, per)
    tree = trees.unflatten({name: jnp.float32(grad) for name, grad in grads.items()})
    updates, _ = tx.update(tree, tx.init(tree))
    return trees.flatten(updates)


def test_each_parameter_is_clipped_by_its_own_norm():
    actual = clipped(3.0, "parameter")
    for name, grad in GRADS.items():
        expected = grad * min(1, 3 / np.linalg.norm(grad))
        np.testing.assert_allclose(actual[name], expected, rtol=1e-6, err_msg=name)


def test_the_encoder_and_each_head_are_clipped_by_their_norms():
    actual = clipped(3.0, "module")
    norms = {"embedding": 13, "Transformer": 13, "class_head": 50**0.5, "patch_head": 0.5}
    for name, grad in GRADS.items():
        expected = grad * min(1, 3 / norms[name.partition("/")[0]])
        np.testing.assert_allclose(actual[name], expected, rtol=1e-6, err_msg=name)


def test_gradients_of_zero_and_of_the_largest_norm_are_not_changed():
    zeros = {name: np.zeros_like(grad) for name, grad in GRADS.items()}
    for per in ("model", "module", "parameter"):
        for name, grad in clipped(3.0, per, zeros).items():
            np.testing.assert_array_equal(grad, zeros[name])
        for name, grad in clipped(100.0, per).items():
            np.testing.assert_array_equal(grad, np.float32(GRADS[name]))


def test_gradients_of_frozen_parameters_are_not_part_of_the_norm_of_their_module():
    config = Optimizer(name="sgd", clip_norm=3.0, clip_per="module", lr_factors=(("norm", 0.0),))
    tree = trees.unflatten({name: jnp.float32(grad) for name, grad in GRADS.items()})
    tx = make_optimizer(config, 1.0)
    updates, _ = tx.update(tree, tx.init(tree), tree)
    kernel = GRADS["embedding/kernel"]
    np.testing.assert_allclose(updates["embedding"]["kernel"], -kernel * 3 / 5, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("max_norm", [0.3, 3.0])
def test_clipping_by_parameter_equals_torch(max_norm):
    torch = pytest.importorskip("torch")
    actual = clipped(max_norm, "parameter")
    for name, grad in GRADS.items():
        parameter = torch.nn.Parameter(torch.zeros(grad.shape))
        parameter.grad = torch.tensor(grad, dtype=torch.float32)
        torch.nn.utils.clip_grad_norm_(parameter, max_norm)  # It adds 1e-6 to the norm.
        np.testing.assert_allclose(actual[name], parameter.grad, rtol=1e-5, err_msg=name)


START = {"head": {"kernel": np.array([1.0, -2.0])}, "bias": np.array([0.5])}
RANDOM = np.random.default_rng(0)
STEPS = [jax.tree.map(lambda p: RANDOM.normal(size=p.shape), START) for _ in range(4)]


def path(**fields):
    """Parameters after each step with fixed gradients, and the last optimizer state."""
    tx = make_optimizer(Optimizer(weight_decay=0.3, clip_norm=None, **fields), 0.1)
    params = jax.tree.map(jnp.float32, START)
    state, trace = tx.init(params), []
    for grads in STEPS:
        updates, state = tx.update(jax.tree.map(jnp.float32, grads), state, params)
        params = optax.apply_updates(params, updates)
        trace.append(jax.tree.map(np.array, params))
    return trace, state


def test_a_parameter_does_not_change_in_its_first_steps_while_its_moments_do():
    plain, plain_state = path()
    held, held_state = path(freeze_steps=(("^head/", 2),))
    start = np.float32(START["head"]["kernel"])
    for t in (0, 1):
        np.testing.assert_array_equal(held[t]["head"]["kernel"], start)
        np.testing.assert_array_equal(held[t]["bias"], plain[t]["bias"])
    # The moments do not depend on the parameters, so the third update differs by weight decay only.
    third = plain[2]["head"]["kernel"] - plain[1]["head"]["kernel"]
    decay = 0.1 * 0.3 * (plain[1]["head"]["kernel"] - start)
    np.testing.assert_allclose(held[2]["head"]["kernel"] - start, third + decay, atol=1e-6)
    for moment in ("mu", "nu"):
        for a, b in zip(
            jax.tree.leaves(optax.tree_utils.tree_get(held_state, moment)),
            jax.tree.leaves(optax.tree_utils.tree_get(plain_state, moment)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_the_first_pattern_gives_the_number_of_frozen_steps():
    held, _ = path(freeze_steps=(("^head/", 3), ("", 1)))
    start = jax.tree.map(np.float32, START)
    assert [bool((p["head"]["kernel"] == start["head"]["kernel"]).all()) for p in held] == [
        *(True, True, True),
        False,
    ]
    assert [bool((p["bias"] == start["bias"]).all()) for p in held] == [True, False, False, False]
