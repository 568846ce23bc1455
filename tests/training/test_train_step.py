"""One step by hand, steps that go wrong, and the same losses on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import create_model, trees
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models.registry import make_init
from vit_jax.training.optimizer import make_optimizer, make_schedule
from vit_jax.training.train_step import make_abstract_state, make_init_state, make_train_step

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
    schedule = make_schedule(0.1, total_steps=10, schedule="linear")
    options = {"name": "sgd", "weight_decay": 0.2} | options
    make_tx = functools.partial(make_optimizer, **options)
    tx = make_tx(schedule)
    abstract_state = make_abstract_state(toy_init, tx, mesh)
    state = make_init_state(toy_init, tx, abstract_state)(jax.random.key(0))
    step = make_train_step(loss, make_tx, abstract_state, mesh_lib.batch_sharding(mesh))

    def on_schedule(state, *rest):
        return step(state, *rest, {"lr": schedule(state.step)})

    on_schedule.program = step
    return state, on_schedule


def to_numpy(tree):
    return jax.tree.map(np.array, tree)


def same_bits(a, b) -> bool:
    """Whether all floats are equal to the bit; counts go on, and the schedule with them."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs if x.dtype != np.int32
    )


def test_two_steps_are_those_computed_by_hand():
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
        # The noise depends on seed and step alone, so that a resumed run replays it.
        noise = jax.random.uniform(jax.random.fold_in(jax.random.key(5), t))
        assert metrics["noise"] == noise


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_of_no_number_leaves_parameters_and_optimiser_bit_by_bit(name, bad):
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


def test_infinite_gradients_of_a_finite_loss_are_not_taken_either():
    def loss(params, batch, key):  # The slope of a root at 0.
        return jnp.mean(jnp.sqrt(jnp.abs(params["linear"]["bias"]))), {}

    state, step = toy(loss)
    before = to_numpy(state)
    state, metrics = step(state, {"x": X}, jax.random.key(0))
    assert metrics["loss"] == 0
    assert not np.isfinite(metrics["grad_norm"])
    assert same_bits(to_numpy(state.params), before.params)
    assert same_bits(to_numpy(state.opt_state), before.opt_state)


def test_the_state_is_donated_and_the_step_is_compiled_once():
    state, step = toy()
    for _ in range(3):
        given, (state, _) = state, step(state, {"x": X, "y": Y}, jax.random.key(0))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((given.params, given.opt_state)))
    assert step.program._cache_size() == 1, "another rate is no other program"


# A tiny ViT, with everything on that draws random numbers.


def vit(num_layers=2):
    return create_model(
        "vit_ti16",
        num_classes=4,
        image_size=(8, 12),
        patch=4,
        num_layers=num_layers,
        hidden_size=32,
        mlp_size=64,
        num_heads=2,
        dropout=0.1,
        drop_path=0.1,
    )


@pytest.fixture(scope="module")
def born():
    """A state split over eight devices."""
    tx, init = make_optimizer(make_schedule(0.1, total_steps=9)), make_init(vit(num_layers=1))
    abstract_state = make_abstract_state(init, tx, mesh_lib.make_mesh(1, 8))
    return init, tx, abstract_state, make_init_state(init, tx, abstract_state)(jax.random.key(0))


def test_a_state_is_born_where_it_is_to_lie(born):
    _, _, abstract_state, state = born
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


def test_a_born_state_has_the_parameters_of_init_at_step_zero(born):
    init, _, _, state = born
    assert state.step == 0
    alone = jax.jit(init)(jax.random.key(0))
    for name, leaf in trees.flatten(state.params).items():
        np.testing.assert_allclose(leaf, trees.flatten(alone)[name], atol=1e-6, err_msg=name)
    moments = trees.flatten(state.opt_state)
    assert not any(np.any(moments[name]) for name in moments)


def test_given_parameters_take_the_place_of_init(born):
    init, tx, abstract_state, _ = born
    given = jax.tree.map(
        lambda leaf: np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32),
        abstract_state.params,
    )
    state = make_init_state(init, tx, abstract_state)(jax.random.key(0), given)
    assert same_bits(to_numpy(state.params), given)
    assert state.step == 0
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract_state), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_an_abstract_state_takes_no_memory_and_has_the_optimisers_structure(born):
    init, tx, abstract_state, _ = born
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract_state))
    wanted = jax.eval_shape(lambda: tx.init(init(jax.random.key(0))))
    assert jax.tree.structure(abstract_state.opt_state) == jax.tree.structure(wanted)
    assert (
        optax.tree_utils.tree_get(abstract_state.opt_state, "mu").keys()
        == abstract_state.params.keys()
    )
