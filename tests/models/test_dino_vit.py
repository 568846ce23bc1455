"""The model of self-distillation: its parameters, local crops, masked patches and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import prototype_cases as cases
from tests.support.golden_outputs import params_of
from tests.support.tiny import some_images, some_params, tiny
from vit_jax import create_model
from vit_jax.config.schema import Model
from vit_jax.models import trees
from vit_jax.models.dino_vit import DinoViT, HeadShape, ProjectionHead, Prototypes
from vit_jax.models.flops import forward_macs, training_flops
from vit_jax.models.position import sincos
from vit_jax.models.registry import make_init, param_shapes
from vit_jax.models.vit import encoder_of
from vit_jax.weights.adapt import resize_positions

D = 32
SMALL = HeadShape(num_prototypes=7, num_layers=2, hidden_size=6, bottleneck=5)


def dino(head=SMALL, options=None, **changes):
    return DinoViT.of(tiny(num_classes=0, gelu="erf", **changes), head, **(options or {}))


def head_shapes(name, K):
    return {
        f"{name}/layer_0/kernel": (D, 6),
        f"{name}/layer_0/bias": (6,),
        f"{name}/layer_1/kernel": (6, 5),
        f"{name}/layer_1/bias": (5,),
        f"{name}/last_layer/kernel": (5, K),
    }


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, {}),
        ({"num_masked": 3}, {"mask_token": (1, 1, D)}),
        (
            {"num_masked": 3, "patch_prototypes": 9},
            {"mask_token": (1, 1, D), **head_shapes("patch_head", 9)},
        ),
    ],
    ids=["class", "shared head", "two heads"],
)
def test_parameters_are_those_of_a_headless_vit_and_of_the_heads(options, own):
    vit = tiny(num_classes=0, gelu="erf")
    expected = param_shapes(vit) | head_shapes("class_head", 7) | own
    assert param_shapes(dino(options=options)) == expected
    assert encoder_of(dino(options=options)) == vit


def test_initial_values_of_the_heads_and_of_the_mask_token():
    shape = HeadShape(num_prototypes=400, hidden_size=300, bottleneck=64, has_scale=True)
    model = dino(shape, {"num_masked": 3}, num_layers=1)
    params = trees.flatten(jax.jit(make_init(model))(jax.random.key(0)))
    assert not np.any(params["mask_token"])
    for i in range(3):
        assert not np.any(params[f"class_head/layer_{i}/bias"])
        np.testing.assert_allclose(params[f"class_head/layer_{i}/kernel"].std(), 0.02, rtol=0.05)
    np.testing.assert_array_equal(params["class_head/last_layer/scale"], np.ones(400))
    kernel = params["class_head/last_layer/kernel"]
    np.testing.assert_allclose([kernel.min(), kernel.max()], [-1 / 8, 1 / 8], rtol=1e-2)
    np.testing.assert_allclose(kernel.std(), 1 / 8 / 3**0.5, rtol=0.02)  # Uniform.


@pytest.mark.parametrize("has_scale", [False, True])
def test_logits_of_a_head_are_those_of_lightly(has_scale):
    sizes = cases.HEAD
    shape = HeadShape(sizes["prototypes"], 3, sizes["hidden"], sizes["bottleneck"], has_scale)
    params = trees.unflatten(cases.head_params(has_scale))
    logits = ProjectionHead(shape, Model()).apply({"params": params}, cases.head_tokens())
    expected = np.load(cases.GOLDEN)[f"head-{has_scale}"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-6)
    assert has_scale or np.abs(logits).max() <= 1 + 1e-6  # Cosines.


def test_a_head_returns_float32_and_finite_gradients_for_zeros():
    head = ProjectionHead(SMALL, Model(dtype="bfloat16"))
    params = jax.tree.map(jnp.zeros_like, head.init(jax.random.key(0), jnp.zeros((1, D))))
    logits, back = jax.vjp(head.apply, params, jnp.zeros((1, D), jnp.bfloat16))
    assert logits.dtype == jnp.float32
    for gradient in jax.tree.leaves(back(jnp.ones_like(logits))):
        assert np.isfinite(gradient).all()


def test_the_length_of_a_kernel_has_no_effect():
    layer, x = Prototypes(SMALL, Model()), some_images(2, 5)
    kernel = some_images(5, 7, seed=1)
    first, second = (
        layer.apply({"params": {"kernel": k}}, x) for k in (kernel, kernel * np.arange(1, 8))
    )
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", cases.LOCAL_MODELS)
def test_class_tokens_of_local_crops_are_those_of_timm(name):
    model, params = local_model(name)
    local = model.clone(image_size=cases.LOCAL_SIZE, position_size=cases.GLOBAL_SIZE)
    assert param_shapes(local) == param_shapes(model)
    tokens = local.apply({"params": params}, cases.local_images())
    expected = np.load(cases.GOLDEN)[f"local-{name}"]
    np.testing.assert_allclose(tokens, expected, atol=2e-5 * np.abs(expected).max())


def local_model(name):
    title, options = cases.LOCAL_MODELS[name]
    options = cases.LOCAL | options
    model = create_model(title, num_classes=0, image_size=cases.GLOBAL_SIZE, **options)
    return model, trees.unflatten(params_of(model))


@pytest.mark.parametrize("changes", [{"pos_embed_at": "layers"}, {"pos_embed": "learned_2d"}])
def test_positions_of_local_crops_are_resized_everywhere(changes):
    model = tiny(num_classes=0, image_size=(20, 28), **changes)
    params, images = some_params(model), some_images(2, 12, 8, 3)
    local = model.clone(image_size=(12, 8), position_size=(20, 28))
    arrays = trees.flatten(params)
    names = [name for name in arrays if name.endswith("_embedding")]
    arrays |= {
        name: resize_positions(name, arrays[name], (5, 7), (3, 2), "bicubic_offset")
        for name in names
    }
    expected = model.clone(image_size=(12, 8)).apply({"params": trees.unflatten(arrays)}, images)
    np.testing.assert_allclose(local.apply({"params": params}, images), expected, atol=1e-4)
    assert len(names) == 2


def test_fixed_positions_of_local_crops_are_those_of_the_whole_grid_resized():
    model = tiny(num_classes=0, image_size=(20, 28), pos_embed="sincos_mae")
    learned = tiny(num_classes=0, image_size=(20, 28), pos_embed="learned", class_token=True)
    params, images = some_params(model), some_images(2, 12, 8, 3)
    E_pos = np.pad(sincos((5, 7), D, "sincos_mae"), ((1, 0), (0, 0)))[None]
    local = {"image_size": (12, 8), "position_size": (20, 28)}
    encoder = params["Transformer"] | {"posembed_input": {"pos_embedding": E_pos}}
    expected = learned.clone(**local).apply({"params": params | {"Transformer": encoder}}, images)
    actual = model.clone(**local).apply({"params": params}, images)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_rotary_positions_of_local_crops_are_those_of_their_own_grid():
    model = tiny(num_classes=0, image_size=(20, 28), pos_embed="rope")
    params, images = some_params(model), some_images(2, 12, 8, 3)
    local = model.clone(image_size=(12, 8), position_size=(20, 28))
    own = model.clone(image_size=(12, 8))
    np.testing.assert_array_equal(
        local.apply({"params": params}, images), own.apply({"params": params}, images)
    )


def test_masked_pixels_have_no_effect_on_any_token():
    model = dino(options={"num_masked": 3})
    params, images = {"params": some_params(model)}, some_images(1, 8, 12, 3)
    is_masked = np.array([[False, True, False, False, False, False]])
    before = model.apply(params, images, is_masked, method="tokens")
    for place in range(6):
        other, (row, column) = images.copy(), divmod(place, 3)
        other[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.5
        after = model.apply(params, other, is_masked, method="tokens")
        assert np.array_equal(before, after) == (place == 1), place


def test_the_encoder_of_a_run_has_the_class_token_that_the_head_takes():
    model = dino(options={"num_masked": 3})
    params, images = {"params": some_params(model)}, some_images(2, 8, 12, 3)
    features = encoder_of(model).apply(params, images)
    logits = model.apply(params, features, method="class_logits")
    np.testing.assert_allclose(model.apply(params, images), logits, rtol=1e-4, atol=1e-5)


def test_a_training_step_counts_all_crops_of_the_student_and_the_teacher_once():
    options = {"local_crops": 3, "local_size": (4, 8), "num_masked": 2}
    model = dino(options=options)
    vit, local = tiny(num_classes=0), tiny(num_classes=0, image_size=(4, 8))
    head = D * 6 + 6 * 5 + 5 * 7
    teacher = 2 * (forward_macs(vit) + head + 2 * head)
    student = teacher + 3 * (forward_macs(local) + head)
    assert training_flops(model, 10) == 2 * 10 * (3 * student + teacher)
    assert forward_macs(model) == forward_macs(vit) + head
