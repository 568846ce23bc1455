"""One step on many meshes: the same losses, its share of bytes, and what moves between devices."""

import functools
import re

import jax
import numpy as np
import pytest

from vit_jax import create_model
from vit_jax.config.schema import Optimizer, Task
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models import trees
from vit_jax.models.registry import make_init
from vit_jax.tasks.classification import Classification
from vit_jax.training.schedules import make_schedule
from vit_jax.training.train_step import make_abstract_state, make_init_state, make_train_step

BATCH, STEPS = 16, 50
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)]
ADAMW = Optimizer(lr=1e-3, weight_decay=0.1)
SCHEDULE = make_schedule(ADAMW, STEPS)
SHAPE = {"num_layers": 2, "hidden_size": 32, "mlp_size": 64, "num_heads": 4, "patch": 4}


def small(**options):
    return create_model(
        "vit_ti16", num_classes=10, image_size=12, kernels="plain", **SHAPE | options
    )


def batches():
    random = np.random.default_rng(0)
    while True:
        label = random.integers(0, 10, BATCH)
        image = random.normal(size=(BATCH, 12, 12, 3)) + label[:, None, None, None] / 5
        yield {"image": image.astype(np.float32), "label": label, "mask": np.ones(BATCH, "f4")}


def step_on(sizes, model):
    """The mesh, the state's shapes and the jitted step."""
    num_devices = int(np.prod(sizes))
    mesh = mesh_lib.make_mesh(*sizes, devices=jax.devices()[:num_devices])
    abstract_state = make_abstract_state(make_init(model), ADAMW, mesh)
    loss = Classification(Task(), model).loss
    step = make_train_step(loss, ADAMW, abstract_state, mesh_lib.batch_sharding(mesh))
    init_state = make_init_state(make_init(model), ADAMW, abstract_state)
    return mesh, abstract_state, init_state, step


@functools.cache
def losses_on(sizes, num_steps=STEPS, **options) -> np.ndarray:
    mesh, _, init_state, step = step_on(sizes, small(**options))
    state, losses = init_state(jax.random.key(0)), []
    with jax.set_mesh(mesh):
        for i, batch in zip(range(num_steps), batches()):
            batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
            state, metrics = step(state, batch, jax.random.key(1), {"lr": SCHEDULE(i)})
            losses.append(metrics["loss"])
    return np.array(losses)


@pytest.mark.parametrize("sizes", MESHES[1:], ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.stress
def test_fifty_steps_have_the_same_losses_on_every_mesh(sizes):
    alone = losses_on(MESHES[0])
    assert alone[-1] < alone[0] - 0.1, "nothing was learnt"
    np.testing.assert_allclose(losses_on(sizes), alone, rtol=1e-5)


ENCODERS = {
    "dinov3": {"pos_embed": "rope", "mlp": "swiglu", "registers": 4, "qkv_bias": "qv"},
    "eva02": {
        "pos_embed": "learned_rope",
        "rope": "eva02",
        "mlp": "glu",
        "mlp_norm": True,
        "pool": "gap",
        "class_token": True,
        "fc_norm": True,
    },
    "clip and siglip": {
        "pre_norm": True,
        "patch_bias": False,
        "qkv_bias": "none",
        "gelu": "quick",
        "pool": "map",
        "projection": 24,
    },
    "deit": {"distill_token": True},
}


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 2)], ids=["2x1x1", "1x2x2"])
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.stress
def test_encoders_have_the_same_losses_on_every_mesh(name, sizes):
    options = {"num_steps": 10} | ENCODERS[name]
    alone = losses_on(MESHES[0], **options)
    assert alone[-1] < alone[0], "nothing was learnt"
    np.testing.assert_allclose(losses_on(sizes, **options), alone, rtol=1e-5)


@pytest.mark.stress
def test_fifty_scanned_and_recomputed_steps_have_the_same_losses():
    scanned = losses_on((2, 2, 2), scan=True, remat="dots")
    np.testing.assert_allclose(scanned, losses_on(MESHES[0]), rtol=1e-5)


@pytest.mark.stress
def test_an_eighth_of_the_bytes_lies_on_each_of_eight_fsdp_devices():
    _, abstract_state, _, _ = step_on((1, 8, 1), create_model("vit_s16"))
    for part in (abstract_state.params, abstract_state.opt_state):
        places = jax.tree.map(lambda leaf: leaf.sharding, part)
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(part))
        assert mesh_lib.bytes_per_device(part, places) == pytest.approx(total / 8, rel=0.05)
    assert mesh_lib.unsharded_parameters(abstract_state.params) == []


def moved(sizes, kind: str, **options) -> list[tuple[int, ...]]:
    """Shapes of what a kind of collective gives in the compiled step."""
    mesh, abstract_state, _, step = step_on(sizes, small(**options))
    place = mesh_lib.batch_sharding(mesh)
    batch = jax.tree.map(
        lambda rows: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=place), next(batches())
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        text = step.lower(abstract_state, batch, key, {"lr": 1e-3}).compile().as_text()
    found = []
    for result in re.findall(rf"= (.+?) {kind}(?:-start)?\(", text):
        shapes = re.findall(r"\w+\[([\d,]*)\]", result)
        found += [tuple(int(n) for n in shape.split(",") if n) for shape in shapes]
    return found


@pytest.mark.stress
def test_data_parallel_steps_gather_nothing_and_reduce_each_gradient_once():
    assert moved((8, 1, 1), "all-gather") == []
    reduced = sum(int(np.prod(shape)) for shape in moved((8, 1, 1), "all-reduce"))
    num_params = trees.count(jax.eval_shape(make_init(small()), jax.random.key(0)))
    assert num_params <= reduced <= num_params + 16  # And a few scalars.


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.stress
def test_fsdp_steps_gather_parameters_and_never_examples(scan):
    params = trees.flatten(jax.eval_shape(make_init(small()), jax.random.key(0)))
    shapes = {tuple(n for n in leaf.shape if n > 1) for leaf in params.values()}
    sizes = {int(np.prod(shape)) for shape in shapes}
    gathered = moved((1, 8, 1), "all-gather", scan=scan)
    assert gathered
    assert {int(np.prod(shape)) for shape in gathered} <= sizes
