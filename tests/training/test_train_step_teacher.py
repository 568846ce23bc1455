"""Targets of a teacher and the state of a task in the train step, against numpy."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.checkpoints import checkpoint
from vit_jax.config.fields import Kwargs
from vit_jax.config.schema import Optimizer
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.training.train_step import (
    TrainState,
    make_abstract_state,
    make_init_state,
    make_train_step,
)

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
W = np.array([1.0, -2.0, 0.5])
RATE, EMA, KEPT = 0.05, 0.9, 0.8


def toy_init(key):
    del key
    return {"w": jnp.float32(W)}


def init_task_state():
    return {"center": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}


def teacher_targets(teacher_params, task_state, batch, step, key):
    """Outputs of the teacher minus their running mean from before the step."""
    outputs = jnp.tanh(batch["x"] @ teacher_params["w"])  # B
    center = KEPT * task_state["center"] + (1 - KEPT) * outputs.mean()
    metrics = {"step": step, "noise": jax.random.uniform(key)}
    state = {"center": center, "count": task_state["count"] + 1}
    return {"target": outputs - task_state["center"]}, state, metrics


def toy_loss(params, batch, key):
    del key
    return jnp.mean((batch["x"] @ params["w"] - batch["target"]) ** 2), {}


def toy(mesh=None, accumulate=1, ema=EMA):
    """Shapes of a state, the state, and its step."""
    mesh = mesh or mesh_lib.make_mesh()
    config = Optimizer(name="sgd", kwargs=Kwargs(momentum=0.0), clip_norm=None, ema=ema)
    abstract_state = make_abstract_state(toy_init, config, mesh, init_task_state)
    init_state = make_init_state(toy_init, config, abstract_state, init_task_state)
    step = make_train_step(
        toy_loss,
        config,
        abstract_state,
        mesh_lib.batch_sharding(mesh),
        accumulate=accumulate,
        teacher_targets=teacher_targets,
    )

    def with_rate(state, x=X):
        return step(state, {"x": x}, jax.random.key(3), {"lr": np.float32(RATE)})

    return abstract_state, init_state(jax.random.key(0)), with_rate


def by_hand(ema):
    """Parameters, their average, centre and loss of each step."""
    w, average, center = W.copy(), W.copy(), 0.0
    while True:
        outputs = np.tanh(X @ (w if ema is None else average))
        error = X @ w - (outputs - center)  # The centre from before the step.
        w = w - RATE * 2 * X.T @ error / len(X)  # The targets are constants.
        center = KEPT * center + (1 - KEPT) * outputs.mean()
        average = w if ema is None else ema * average + (1 - ema) * w
        yield w, average, center, (error**2).mean()


def same_bits(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def run(num_steps, **options):
    """The state after some steps, in numpy."""
    _, state, step = toy(**options)
    for _ in range(num_steps):
        state, _ = step(state)
    return jax.tree.map(np.array, state)


@pytest.mark.parametrize("ema", [EMA, None])
def test_targets_are_those_of_the_averaged_parameters_and_the_old_state(ema):
    _, state, step = toy(ema=ema)
    for t, (w, average, center, loss) in zip(range(20), by_hand(ema)):
        state, metrics = step(state)
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state.eval_params["w"], average, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state.task["center"], center, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
        assert metrics["step"] == t
        assert state.task["count"] == t + 1


def test_noise_of_the_teacher_is_another_at_every_step_and_the_same_for_micro_batches():
    noises = []
    for accumulate in (1, 8):
        _, state, step = toy(accumulate=accumulate)
        for _ in range(2):
            state, metrics = step(state)
            noises.append(float(metrics["noise"]))
    assert noises[:2] == noises[2:]
    assert noises[0] != noises[1]


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_targets_and_task_state_are_of_the_whole_batch_whatever_the_micro_batches(accumulate):
    whole, parts = run(10), run(10, accumulate=accumulate)
    assert whole.task["center"] != 0
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(2, 1), (8, 1), (2, 4)])
def test_targets_and_task_state_are_the_same_on_every_mesh(sizes):
    num_devices = sizes[0] * sizes[1]
    mesh = mesh_lib.make_mesh(*sizes, devices=jax.devices()[:num_devices])
    one = mesh_lib.make_mesh(devices=jax.devices()[:1])
    for a, b in zip(
        jax.tree.leaves(run(10, mesh=mesh)), jax.tree.leaves(run(10, mesh=one)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_skipped_keeps_the_bits_of_the_task_state():
    _, state, step = toy()
    state, _ = step(state)
    before = jax.tree.map(np.array, state)
    poisoned = X.copy()
    poisoned[3] = np.inf
    state, metrics = step(state, poisoned)
    assert metrics["skipped"] == 1
    assert same_bits(state.task, before.task)
    assert same_bits(state.ema, before.ema)
    state, metrics = step(state)
    assert metrics["skipped"] == 0
    assert not same_bits(state.task, before.task)


def save(folder, state):
    writer = checkpoint.Checkpoints(folder)
    writer.save(1, state, data={}, meta={})
    writer.close()
    return folder / "1"


def test_task_state_is_restored_to_the_bit_and_the_next_step_is_the_same(tmp_path):
    abstract_state, state, step = toy()
    state, _ = step(state)
    folder = save(tmp_path / "checkpoints", state)
    restored = checkpoint.restore(folder, abstract_state)
    assert restored.task["center"] != 0
    assert same_bits(restored, state)
    assert same_bits(step(restored), step(state))


@flax.struct.dataclass
class EarlierState:
    """The state of versions without task state."""

    step: jax.Array
    params: dict
    opt_state: tuple
    ema: dict | None


@pytest.mark.parametrize("ema", [EMA, None])
def test_checkpoint_of_a_version_without_task_state_is_restored(tmp_path, ema):
    config = Optimizer(ema=ema)
    abstract_state = make_abstract_state(toy_init, config, mesh_lib.make_mesh())
    state = make_init_state(toy_init, config, abstract_state)(jax.random.key(0))
    earlier = EarlierState(state.step, state.params, state.opt_state, state.ema)
    restored = checkpoint.restore(save(tmp_path / "checkpoints", earlier), abstract_state)
    assert isinstance(restored, TrainState)
    assert restored.task is None
    assert same_bits(restored, state)
