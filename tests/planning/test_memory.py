"""Memory by formula: beside hand counts, and beside what XLA reserves."""

import dataclasses

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from vit_jax.config.schema import Config, Data, Mesh, Model, Optimizer
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.planning import memory
from vit_jax.tasks import registry as task_registry
from vit_jax.training import build

# T = 17 tokens, D = 24, M = 42, h = 3: no two alike, so that every array is known by its sides.
T, D, M, HEADS = 17, 24, 42, 3
TINY = Model(
    name="vit_ti16", patch=8, num_layers=4, hidden_size=D, mlp_size=M, num_heads=HEADS, scan=True
)
TINY = dataclasses.replace(TINY, kernels="plain")


def config_of(model: Model = TINY, **fields) -> Config:
    fields = {"batch_size": 16, "steps": 1, "data": Data(image_size=32)} | fields
    return Config(model=model, **fields)


def estimate(config: Config, shape=(1, 1, 1), **options) -> memory.Memory:
    mesh = AbstractMesh(shape, mesh_lib.AXES, axis_types=(AxisType.Auto,) * 3)
    model = task_registry.build_model(config, num_classes=10)
    state = memory.place_state(memory.state_shapes(config, model), mesh)
    return memory.estimate(config, model, state, **options)


def of_a_layer(model: Model, shape=(1, 1, 1), **options) -> float:
    """Bytes of one example that one layer keeps."""
    deeper = dataclasses.replace(model, num_layers=model.num_layers + 1)
    more, less = (estimate(config_of(m), shape, **options).activations for m in (deeper, model))
    return (more - less) / 16 * shape[0] * shape[1]


# Kept of each layer, counted by hand: two inputs of LayerNorm, each centred and scaled; q, k, v,
# the heads; the two residual sums. Five of the MLP's width for GELU's tanh form and the product
# after it, and one more before jax 0.11, where tanh keeps y and 1 - y instead of 1 - y^2; softmax
# twice; means, deviations, maxima and sums of a row.
IS_BEFORE_0_11 = jax.__version_info__ < (0, 11)
WIDE = 6 if IS_BEFORE_0_11 else 5
EVERYTHING = 10 * T * D + WIDE * T * M + 2 * HEADS * T * T + 4 * T + 2 * HEADS * T
PRODUCTS = 5 * T * D + T * M  # The layer's input, q, k, v, the sum's branch, and the MLP's first.


@pytest.mark.parametrize(
    ("remat", "numbers"), [("none", EVERYTHING), ("dots", PRODUCTS), ("full", T * D)]
)
def test_a_layer_keeps_what_a_count_by_hand_finds(remat, numbers):
    assert of_a_layer(dataclasses.replace(TINY, remat=remat)) == pytest.approx(4 * numbers)


def test_tensor_splits_what_has_heads_or_the_width_of_the_mlp():
    split = 4 * T * D + WIDE * T * M + 2 * HEADS * T * T + 2 * HEADS * T  # q, k, v, heads; ...
    whole = EVERYTHING - split
    assert of_a_layer(TINY, (1, 1, 3)) == pytest.approx(4 * (whole + split / 3))


def test_bfloat16_keeps_half_and_a_cpu_widens_it_before_jax_0_11():
    model = dataclasses.replace(TINY, dtype="bfloat16", remat="dots")
    assert of_a_layer(model) == pytest.approx(2 * PRODUCTS)
    width = 4 if IS_BEFORE_0_11 else 2
    assert of_a_layer(model, widened=True) == pytest.approx(width * PRODUCTS)


def test_flash_attention_never_makes_the_scores():
    plain, flash = (dataclasses.replace(TINY, kernels=kernels) for kernels in ("plain", "cudnn"))
    assert of_a_layer(plain) - of_a_layer(flash) == pytest.approx(4 * 2 * HEADS * T * T)


def test_a_looped_and_an_unrolled_model_keep_the_same_activations():
    unrolled = dataclasses.replace(TINY, scan=False)
    looped, found = estimate(config_of()), estimate(config_of(unrolled))
    assert found.activations == looped.activations
    assert found.stacked == 0
    layer = 4 * (D * D + D) + 2 * D * M + M + D + 4 * D  # Attention, MLP, LayerNorms.
    assert looped.stacked == 4 * 4 * layer


def test_devices_share_the_state_under_fsdp_and_examples_in_any_case():
    alone, shared = estimate(config_of()), estimate(config_of(), (1, 8, 1))
    copied = estimate(config_of(), (8, 1, 1))
    assert copied.parameters == alone.parameters
    assert copied.activations == shared.activations == alone.activations / 8
    assert shared.batch == alone.batch / 8
    kernels = 4 * (4 * (4 * D * D + 2 * D * M) + 8 * 8 * 3 * D)
    tables = 4 * T * D  # 17 x 24 numbers of the position embedding; the head's 24 x 10.
    head = 4 * 10 * D
    assert alone.parameters - shared.parameters == (kernels + tables + head) * 7 / 8
    assert alone.optimizer == 2 * alone.parameters + 8  # Two moments, two counts of 4 bytes.


def test_micro_batches_hold_their_part_of_the_activations_and_a_sum_of_gradients():
    once, parts = estimate(config_of()), estimate(config_of(accumulate=4))
    assert parts.activations == once.activations / 4
    assert parts.gradients == 2 * once.gradients


def test_a_small_batch_is_bound_by_the_update():
    found = estimate(config_of(batch_size=1, optimizer=Optimizer(name="sgd", ema=0.9)))
    update = found.parameters + found.optimizer + found.ema
    assert found.ema == found.parameters
    assert found.peak == found.lasting + max(update, found.peak - found.lasting)
    assert found.update == update


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lamb"])
def test_the_state_is_that_of_a_run(name):
    config = config_of(optimizer=Optimizer(name=name, ema=0.9, warmup_steps=1))
    model = task_registry.build_model(config, num_classes=10)
    mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
    found = memory.place_state(memory.state_shapes(config, model), mesh)
    run = build.assemble(config, model, mesh).abstract_state
    assert jax.tree.structure(found) == jax.tree.structure(run)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(run)):
        assert (ours.shape, ours.dtype, ours.sharding) == (
            theirs.shape,
            theirs.dtype,
            theirs.sharding,
        )


@pytest.mark.parametrize(
    ("mesh", "dtype", "remat"),
    [
        (Mesh(data=2, fsdp=4), "float32", "full"),
        (Mesh(data=1, fsdp=4, tensor=2), "bfloat16", "dots"),
    ],
)
def test_xla_reserves_what_the_formula_says(mesh, dtype, remat):
    model = dataclasses.replace(TINY, hidden_size=96, mlp_size=384, num_heads=4, num_layers=2)
    model = dataclasses.replace(model, dtype=dtype, remat=remat)
    config = config_of(model, batch_size=2048, mesh=mesh, optimizer=Optimizer(name="sgd"))
    shape = dataclasses.astuple(mesh)
    formula = estimate(config, shape, widened=True)
    found = memory.compile_step(config, task_registry.build_model(config, 10), jax.devices()[:8])
    assert formula.peak == pytest.approx(found.peak, rel=0.1)
