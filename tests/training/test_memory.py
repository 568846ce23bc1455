"""Tests of the memory formula against hand counts, training states and XLA."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from vit_jax.config import registry as registry_lib
from vit_jax.config.schema import Config, Data, Mesh, Model, Optimizer, Task
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models import registry
from vit_jax.planning.compiled_step import compile_step
from vit_jax.tasks import registry as task_registry
from vit_jax.tasks.classification import Classification
from vit_jax.training import build, memory

# T = 17 tokens, D = 24, M = 42, h = 3: all different, so that shapes identify the arrays.
T, D, M, HEADS = 17, 24, 42, 3
TINY = Model(
    name="vit_ti16", patch=8, num_layers=4, hidden_size=D, mlp_size=M, num_heads=HEADS, scan=True
)
TINY = dataclasses.replace(TINY, kernels="plain")


def make_config(model: Model = TINY, **fields) -> Config:
    fields = {"batch_size": 16, "steps": 1, "data": Data(image_size=32)} | fields
    return Config(model=model, **fields)


def estimate(config: Config, shape=(1, 1, 1), **options) -> memory.Memory:
    mesh = AbstractMesh(shape, mesh_lib.AXES, axis_types=(AxisType.Auto,) * 3)
    model = task_registry.build_model(config, num_classes=10)
    state = memory.add_shardings(memory.state_shapes(config, model), mesh)
    return memory.estimate(config, model, state, **options)


def layer_residuals(model: Model, shape=(1, 1, 1), **options) -> float:
    """Returns the bytes of the residuals of one layer and one example."""
    deeper = dataclasses.replace(model, num_layers=model.num_layers + 1)
    more, less = (estimate(make_config(m), shape, **options).activations for m in (deeper, model))
    return (more - less) / 16 * shape[0] * shape[1]


# Residuals of a layer, counted by hand: two inputs of LayerNorm, each centred and scaled; q, k, v,
# the outputs of the heads; the two residual sums. Five arrays of the MLP width for the tanh form
# of GELU and the product after it, and one more before jax 0.11, where tanh stores y and 1 - y
# instead of 1 - y^2; two arrays of softmax; means, deviations, maxima and sums of rows.
IS_BEFORE_0_11 = jax.__version_info__ < (0, 11)
MLP_RESIDUALS = 6 if IS_BEFORE_0_11 else 5
ALL_RESIDUALS = 10 * T * D + MLP_RESIDUALS * T * M + 2 * HEADS * T * T + 4 * T + 2 * HEADS * T
# Input of the layer, q, k, v, output of attention, and the first product of the MLP.
PRODUCTS = 5 * T * D + T * M


@pytest.mark.parametrize(
    ("remat", "numbers"), [("none", ALL_RESIDUALS), ("dots", PRODUCTS), ("full", T * D)]
)
def test_activations_of_a_layer_match_the_hand_count(remat, numbers):
    assert layer_residuals(dataclasses.replace(TINY, remat=remat)) == pytest.approx(4 * numbers)


def test_tensor_divides_activations_with_heads_or_the_mlp_width():
    split = (
        4 * T * D + MLP_RESIDUALS * T * M + 2 * HEADS * T * T + 2 * HEADS * T
    )  # q, k, v, heads; ...
    replicated = ALL_RESIDUALS - split
    assert layer_residuals(TINY, (1, 1, 3)) == pytest.approx(4 * (replicated + split / 3))


def test_bfloat16_activations_need_half_unless_a_cpu_widens_them():
    model = dataclasses.replace(TINY, dtype="bfloat16", remat="dots")
    assert layer_residuals(model) == pytest.approx(2 * PRODUCTS)
    width = 4 if IS_BEFORE_0_11 else 2
    assert layer_residuals(model, widened=True) == pytest.approx(width * PRODUCTS)


def test_cudnn_attention_stores_no_attention_scores():
    plain, flash = (dataclasses.replace(TINY, kernels=kernels) for kernels in ("plain", "cudnn"))
    assert layer_residuals(plain) - layer_residuals(flash) == pytest.approx(4 * 2 * HEADS * T * T)


def test_scan_does_not_change_the_activations():
    unscanned_model = dataclasses.replace(TINY, scan=False)
    scanned, unscanned = estimate(make_config()), estimate(make_config(unscanned_model))
    assert unscanned.activations == scanned.activations
    assert unscanned.stacked == 0
    layer = 4 * (D * D + D) + 2 * D * M + M + D + 4 * D  # Attention, MLP, LayerNorms.
    assert scanned.stacked == 4 * 4 * layer


def test_fsdp_divides_the_state_and_every_mesh_divides_the_examples():
    alone, shared = estimate(make_config()), estimate(make_config(), (1, 8, 1))
    copied = estimate(make_config(), (8, 1, 1))
    assert copied.parameters == alone.parameters
    assert copied.activations == shared.activations == alone.activations / 8
    assert shared.batch == alone.batch / 8
    kernels = 4 * (4 * (4 * D * D + 2 * D * M) + 8 * 8 * 3 * D)
    tables = 4 * T * D  # 17 x 24 numbers of the position embedding; the head's 24 x 10.
    head = 4 * 10 * D
    assert alone.parameters - shared.parameters == (kernels + tables + head) * 7 / 8
    assert alone.optimizer == 2 * alone.parameters + 8  # Two moments, two counts of 4 bytes.


def test_accumulate_divides_activations_and_doubles_gradients():
    once, parts = estimate(make_config()), estimate(make_config(accumulate=4))
    assert parts.activations == once.activations / 4
    assert parts.gradients == 2 * once.gradients


def test_peak_of_a_small_batch_is_in_the_update():
    found = estimate(make_config(batch_size=1, optimizer=Optimizer(name="sgd", ema=0.9)))
    update = found.parameters + found.optimizer + found.ema
    assert found.ema == found.parameters
    assert found.peak == found.persistent + max(update, found.peak - found.persistent)
    assert found.update == update


LARGE_OPTIONS = {
    "mlp": "swiglu",
    "mlp_norm": True,
    "pre_norm": True,
    "projection": 2 * D,
    "pool": "map",
    "pre_logits": True,
    "qk_norm": True,
    "layer_scale": 0.1,
    "dropout": 0.1,
    "drop_path": 0.1,
    "registers": 4,
}
LARGE_STATE = Optimizer(ema=0.9, sam_rho=0.1, gsam_alpha=0.1)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {"accumulate": 4}),
        ({"scan": False, "pos_embed_at": "layers"}, {"batch_size": 1}),
        ({"dtype": "bfloat16", "remat": "dots"}, {}),
        (LARGE_OPTIONS, {"accumulate": 4, "optimizer": LARGE_STATE}),
        (LARGE_OPTIONS | {"pos_embed": "learned_rope"}, {}),
        (LARGE_OPTIONS | {"pos_embed": "relative"}, {"data": Data(image_size=160, mixup=0.2)}),
    ],
)
def test_upper_bound_is_far_above_every_estimate(options, fields):
    config = make_config(dataclasses.replace(TINY, **options), **fields)
    model = task_registry.build_model(config, num_classes=10)
    bound = memory.upper_bound(config, model, mesh_lib.make_mesh(1, devices=jax.devices()[:1]))
    assert estimate(config).peak < 0.7 * bound


@pytest.mark.parametrize(
    "fields",
    [
        {"model": Model(name="r50_s32")},
        {"model": Model(name="bit_r50x1")},
        {"task": Task(name="my_package.tasks:Mine")},
    ],
)
def test_upper_bound_is_infinite_for_resnets_and_user_defined_tasks(fields):
    config = Config(steps=1, data=Data(image_size=224), **fields)
    model = registry.build(config.model, num_classes=10, image_size=224)
    assert memory.upper_bound(config, model, mesh_lib.make_mesh()) == float("inf")


def make_mae_config(decoder_layers=4, **fields) -> Config:
    """A masked autoencoder whose decoder has more tokens than its encoder."""
    model = dataclasses.replace(TINY, hidden_size=48, mlp_size=96, num_heads=4)
    task = Task(name="mae", decoder_layers=decoder_layers, decoder_size=32, decoder_heads=4)
    return make_config(model, task=task, **fields)


def test_activations_of_a_decoder_are_proportional_to_its_layers():
    sizes = [estimate(make_mae_config(layers)).activations for layers in (2, 3, 4, 5)]
    steps = [b - a for a, b in itertools.pairwise(sizes)]
    assert steps[0] > 0
    assert steps == [steps[0]] * 3


class MeanTeacher(Classification):
    """Learns from the outputs of a teacher for two views."""

    def init_task_state(self):
        return {"center": jnp.zeros((7, 10))}

    def teacher_targets(self, teacher_params, task_state, batch, step, key):
        logits = self.model.apply({"params": teacher_params}, batch["image"])
        return {"soft": jnp.stack([logits] * 5, axis=1)}, task_state, {}


def test_state_and_targets_of_a_teacher_are_counted():
    name = f"{__name__}:MeanTeacher"
    registry_lib.import_objects([("config.task.name", name)])
    plain, taught = (estimate(make_config(task=Task(name=each))) for each in (Task().name, name))
    assert taught.optimizer == plain.optimizer + 4 * 7 * 10
    assert taught.targets == 16 * 5 * 10 * 4
    assert plain.targets == 0
    assert taught.peak - plain.peak == taught.targets + 4 * 7 * 10


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lamb"])
def test_state_shapes_are_those_of_a_training_run(name):
    config = make_config(optimizer=Optimizer(name=name, ema=0.9, warmup_steps=1))
    model = task_registry.build_model(config, num_classes=10)
    mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
    found = memory.add_shardings(memory.state_shapes(config, model), mesh)
    run = build.build_programs(config, model, mesh).abstract_state
    assert jax.tree.structure(found) == jax.tree.structure(run)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(run)):
        assert (ours.shape, ours.dtype, ours.sharding) == (
            theirs.shape,
            theirs.dtype,
            theirs.sharding,
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "dtype", "remat"),
    [
        (Mesh(data=2, fsdp=4), "float32", "full"),
        (Mesh(data=1, fsdp=4, tensor=2), "bfloat16", "dots"),
    ],
)
def test_memory_formula_matches_xla_within_ten_percent(mesh, dtype, remat):
    model = dataclasses.replace(TINY, hidden_size=96, mlp_size=384, num_heads=4, num_layers=2)
    model = dataclasses.replace(model, dtype=dtype, remat=remat)
    config = make_config(model, batch_size=2048, mesh=mesh, optimizer=Optimizer(name="sgd"))
    shape = dataclasses.astuple(mesh)
    formula = estimate(config, shape, widened=True)
    found = compile_step(config, task_registry.build_model(config, 10), jax.devices()[:8])
    assert formula.peak == pytest.approx(found.peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_memory_of_masked_autoencoders_matches_xla_within_ten_percent(remat, accumulate):
    config = make_mae_config(batch_size=512, accumulate=accumulate, data=Data(image_size=64))
    model = dataclasses.replace(config.model, remat=remat)
    config = dataclasses.replace(config, model=model, optimizer=Optimizer(name="sgd"))
    formula = estimate(config, widened=True)
    one_device = dataclasses.replace(config, mesh=Mesh(data=1))
    found = compile_step(one_device, task_registry.build_model(config, 0), jax.devices()[:1])
    assert formula.peak == pytest.approx(found.peak, rel=0.1)


SELF_DISTILLATION = {
    "dino": {},
    "many prototypes": {"prototypes": 16384},
    "ibot": {"prototypes": 8192, "patch_weight": 1.0},
    "dinov2": {
        "patch_weight": 1.0,
        "patch_prototypes": 2048,
        "centering": "sinkhorn",
        "koleo_weight": 0.1,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "remat", "accumulate"),
    [
        ("dino", "none", 1),
        ("dino", "full", 4),
        ("many prototypes", "none", 1),
        ("many prototypes", "full", 1),
        ("ibot", "none", 1),
        ("dinov2", "none", 1),
    ],
)
def test_memory_of_self_distillation_matches_xla_within_ten_percent(name, remat, accumulate):
    sizes = {"hidden_size": 96, "mlp_size": 384, "num_heads": 4, "num_layers": 4, "remat": remat}
    head = {"prototypes": 1024, "head_hidden": 256, "bottleneck": 64}
    config = make_config(
        dataclasses.replace(TINY, **sizes),
        batch_size=128,
        accumulate=accumulate,
        task=Task(name="dino", **head | SELF_DISTILLATION[name]),
        data=Data(image_size=64, local_crops=4, local_size=32),
        optimizer=Optimizer(ema=0.99),
        mesh=Mesh(data=1),
    )
    found = compile_step(config, task_registry.build_model(config, 0), jax.devices()[:1])
    assert estimate(config, widened=True).peak == pytest.approx(found.peak, rel=0.1)


ENCODERS = {
    "dinov3": {
        "pos_embed": "rope",
        "mlp": "swiglu",
        "registers": 4,
        "layer_scale": 1e-5,
        "qkv_bias": "qv",
    },
    "eva02": {
        "pos_embed": "learned_rope",
        "rope": "eva02",
        "mlp": "swiglu",
        "mlp_norm": True,
        "pool": "gap",
        "class_token": True,
        "fc_norm": True,
    },
    "siglip": {"pool": "map", "class_token": False},
    "clip": {"pre_norm": True, "gelu": "erf", "projection": 64},
    "deit": {"distill_token": True, "gelu": "erf", "layer_scale": 1e-6},
    "algoperf": {"mlp": "glu", "pool": "map"},
}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("name", ENCODERS)
def test_memory_of_encoders_matches_xla_within_ten_percent(name, remat):
    sizes = {"hidden_size": 96, "mlp_size": 384, "num_heads": 4, "num_layers": 4, "remat": remat}
    model = dataclasses.replace(TINY, **sizes | ENCODERS[name])
    config = make_config(model, batch_size=512, optimizer=Optimizer(name="sgd"))
    formula = estimate(config, widened=True)
    one_device = dataclasses.replace(config, mesh=Mesh(data=1))
    found = compile_step(one_device, task_registry.build_model(config, 10), jax.devices()[:1])
    assert formula.peak == pytest.approx(found.peak, rel=0.1)
