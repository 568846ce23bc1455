"""Steps against numpy, non-finite steps, and sharded initial states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import create_model
from vit_jax.config.fields import without_traced
from vit_jax.config.schema import Optimizer
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models import trees
from vit_jax.models.registry import make_init
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.schedules import make_schedule
from vit_jax.training.train_step import make_abstract_state, make_init_state, make_train_step

ADAMW = Optimizer()
START = {"linear": {"kernel": np.array([[1.0], [-1.0]], np.float32), "bias": np.zeros(1)}}
X = np.array([[1, 2], [3, 4], [-1, 0], [0, 1], [2, 2], [1, -1], [0, 0], [5, 1]], np.float32)
Y = np.array([[1], [0], [2], [0], [1], [1], [0], [3]], np.float32)


def toy_init(key):
    del key
    return jax.tree.map(jnp.float32, START)


def toy_loss(params, batch, key):
    error = batch["x"] @ params["linear"]["kernel"] + params["linear"]["bias"][None] - batch["y"]
    return jnp.mean(error**2), {"noise": jax.random.uniform(key)}


def toy(loss=toy_loss, mesh=None, **options):
    """A state and its step under a linear schedule from 0.1 to 0 in 10 steps."""
    mesh = mesh or mesh_lib.make_mesh()
    config = Optimizer(**{"name": "sgd", "weight_decay": 0.2} | options, lr=0.1, schedule="linear")
    schedule, config = make_schedule(config, 10), without_traced(config)
    abstract_state = make_abstract_state(toy_init, config, mesh)
    state = make_init_state(toy_init, config, abstract_state)(jax.random.key(0))
    step = make_train_step(loss, config, abstract_state, mesh_lib.batch_sharding(mesh))

    def on_schedule(state, *rest):
        return step(state, *rest, {"lr": schedule(state.step)})

    on_schedule.program = step
    return state, on_schedule


def to_numpy(tree):
    return jax.tree.map(np.array, tree)


def same_bits(a, b) -> bool:
    """Returns True if all floats have equal bits; integers are counts, which always increase."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs if x.dtype != np.int32
    )


def test_train_step_equals_numpy():
    state, step = toy()
    w, b = START["linear"]["kernel"].astype(np.float64), np.zeros(1)
    velocity_w, velocity_b = np.zeros_like(w), np.zeros_like(b)
    for t in (0, 1):
        error = X @ w + b - Y
        grad_w, grad_b = 2 * X.T @ error / 8, 2 * error.mean(0)
        norm = np.sqrt((grad_w**2).sum() + (grad_b**2).sum())
        assert norm > 1, "it is clipped"
        velocity_w, velocity_b = (
            0.9 * velocity_w + grad_w / norm,
            0.9 * velocity_b + grad_b / norm,
        )
        rate = 0.1 * (1 - t / 10)
        w, b = w - rate * (velocity_w + 0.2 * w), b - rate * (velocity_b + 0.2 * b)

        state, metrics = step(state, {"x": X, "y": Y}, jax.random.key(5))
        assert state.step == t + 1
        np.testing.assert_allclose(state.params["linear"]["kernel"], w, rtol=1e-5)
        np.testing.assert_allclose(state.params["linear"]["bias"], b, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], (error**2).mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)  # Before clipping.
        np.testing.assert_allclose(metrics["lr"], rate, rtol=1e-5)
        # The noise depends on seed and step alone, so that a resumed run draws the same.
        noise = jax.random.uniform(jax.random.fold_in(jax.random.key(5), t))
        assert metrics["noise"] == noise


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_train_step_with_non_finite_loss_keeps_the_bits_of_parameters_and_optimizer(name, bad):
    state, step = toy(name=name)
    state, _ = step(state, {"x": X, "y": Y}, jax.random.key(0))
    before = to_numpy(state)
    poisoned = Y.copy()
    poisoned[3] = bad
    state, metrics = step(state, {"x": X, "y": poisoned}, jax.random.key(0))
    assert not np.isfinite(metrics["loss"])
    assert same_bits(to_numpy(state.params), before.params)
    assert same_bits(to_numpy(state.opt_state), before.opt_state)
    assert state.step == 2
    state, metrics = step(state, {"x": X, "y": Y}, jax.random.key(0))
    assert np.isfinite(metrics["loss"])
    assert not same_bits(to_numpy(state.params), before.params)


def test_train_step_skips_infinite_gradients_of_a_finite_loss():
    def loss(params, batch, key):  # Infinite slope of the square root at 0.
        return jnp.mean(jnp.sqrt(jnp.abs(params["linear"]["bias"]))), {}

    state, step = toy(loss)
    before = to_numpy(state)
    state, metrics = step(state, {"x": X}, jax.random.key(0))
    assert metrics["loss"] == 0
    assert not np.isfinite(metrics["grad_norm"])
    assert same_bits(to_numpy(state.params), before.params)
    assert same_bits(to_numpy(state.opt_state), before.opt_state)


def test_train_step_donates_the_state_and_compiles_once():
    state, step = toy()
    for _ in range(3):
        given, (state, _) = state, step(state, {"x": X, "y": Y}, jax.random.key(0))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((given.params, given.opt_state)))
    assert step.program._cache_size() == 1, "another learning rate uses the same program"


@pytest.fixture(scope="module")
def sharded():
    """The state of a tiny ViT over eight devices, with its `init` and its abstract state."""
    size = {"patch": 4, "num_layers": 1, "hidden_size": 32, "mlp_size": 64, "num_heads": 2}
    init = make_init(create_model("vit_ti16", num_classes=4, image_size=(8, 12), **size))
    abstract_state = make_abstract_state(init, ADAMW, mesh_lib.make_mesh(1, 8))
    init_state = make_init_state(init, ADAMW, abstract_state)
    return init, abstract_state, init_state(jax.random.key(0))


def test_init_state_has_the_shardings_of_the_abstract_state(sharded):
    _, abstract_state, state = sharded
    for name, leaf in trees.flatten(state).items():
        wanted = trees.flatten(abstract_state)[name]
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim), name
    kernel = "encoderblock_0/MlpBlock_0/Dense_0/kernel"
    moments = {
        name: leaf.addressable_shards[3].data.shape
        for name, leaf in trees.flatten(state).items()
        if name.endswith(kernel)
    }
    assert len(moments) == 3  # The parameter and Adam's two moments.
    assert set(moments.values()) == {(32, 64 // 8)}


def test_init_state_has_the_parameters_of_init_at_step_zero(sharded):
    init, _, state = sharded
    assert state.step == 0
    alone = jax.jit(init)(jax.random.key(0))
    for name, leaf in trees.flatten(state.params).items():
        np.testing.assert_allclose(leaf, trees.flatten(alone)[name], atol=1e-6, err_msg=name)
    moments = trees.flatten(state.opt_state)
    assert not any(np.any(moments[name]) for name in moments)


def test_init_state_takes_given_parameters(sharded):
    init, abstract_state, _ = sharded
    given = jax.tree.map(
        lambda leaf: np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32),
        abstract_state.params,
    )
    state = make_init_state(init, ADAMW, abstract_state)(jax.random.key(0), given)
    assert same_bits(to_numpy(state.params), given)
    assert state.step == 0
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract_state), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_abstract_state_has_no_arrays_and_the_structure_of_the_optimizer_state(sharded):
    init, abstract_state, _ = sharded
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract_state))
    wanted = jax.eval_shape(lambda: make_optimizer(ADAMW, 0.0).init(init(jax.random.key(0))))
    assert jax.tree.structure(abstract_state.opt_state) == jax.tree.structure(wanted)
    assert (
        optax.tree_utils.tree_get(abstract_state.opt_state, "mu").keys()
        == abstract_state.params.keys()
    )
