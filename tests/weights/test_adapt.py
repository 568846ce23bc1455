"""Adapting pretrained parameters: permitted changes, rejected differences, new values."""

import numpy as np
import pytest
from scipy import ndimage

from vit_jax.config.schema import Init
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models.resize_grid import RESIZE_RULES, resize_grid
from vit_jax.weights.adapt import apply_plan, make_plan, resize_positions

D = 2
POSITIONS = "Transformer/posembed_input/pos_embedding"
SHAPES = {
    "cls": (1, 1, D),
    "embedding/kernel": (4, 4, 3, D),
    POSITIONS: (1, 1 + 4 * 6, D),
    "head/kernel": (D, 5),
    "head/bias": (5,),
}
PRE_LOGITS = {"pre_logits/kernel": (D, D), "pre_logits/bias": (D,)}
NEW_HEAD = {"head/kernel": (D, 3), "head/bias": (3,)}
MASKED_PATCH_SHAPES = {
    "mask_token": (1, 1, D),
    "patch_head/kernel": (D, 512),
    "patch_head/bias": (512,),
}
NEW_HEAD_DIST = {f"head_dist/{name}": NEW_HEAD[f"head/{name}"] for name in ("kernel", "bias")}
DISTILLED = SHAPES | {
    "dist_token": (1, 1, D),
    POSITIONS: (1, 2 + 4 * 6, D),
    "head_dist/kernel": (D, 5),
    "head_dist/bias": (5,),
}
HEADLESS = {name: shape for name, shape in SHAPES.items() if not name.startswith("head")}


def plan(
    source,
    target,
    *,
    old=(4, 6),
    new=(4, 6),
    head_bias=0.0,
    rows=None,
    rule=None,
    differences=(),
    **permissions,
):
    return make_plan(
        source,
        target,
        old_grid=old,
        new_grid=new,
        permissions=Init(**permissions),
        head_bias=head_bias,
        head_rows=rows,
        resize_rule=rule,
        where="old.npz",
        differences=differences,
    )


def adapted(made, params):
    """Arrays by name after the plan is applied."""

    def read(names=None):
        yield from ((n, array) for n, array in params.items() if names is None or n in names)

    return dict(apply_plan(made, read))


def plan_error(*args, **kwargs):
    with pytest.raises(CheckpointError, match=r"^old\.npz does not fit the model: ") as caught:
        plan(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def arrays(shapes):
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_apply_plan_returns_fitting_parameters_unchanged():
    made, params = plan(SHAPES, SHAPES), arrays(SHAPES)
    assert made.notes == []
    assert adapted(made, params) == params


def test_apply_plan_ignores_permissions_that_are_not_needed():
    made, params = plan(SHAPES, SHAPES, resize=True), arrays(SHAPES)
    assert made.notes == []
    assert adapted(made, params) == params


def test_make_plan_lists_all_differences():
    source = SHAPES | {"extra/scale": (7,)} | PRE_LOGITS | {POSITIONS: (1, 1 + 2 * 2, D)}
    target = SHAPES | NEW_HEAD | {"embedding/kernel": (8, 8, 3, D), "embedding/bias": (D,)}
    message = plan_error(source, target, old=(2, 2))
    for text in (
        "embedding/bias is missing in the weights",
        "embedding/kernel is (4, 4, 3, 2) in the weights and (8, 8, 3, 2) in the model",
        "head/kernel is (2, 5) in the weights and (2, 3) in the model (init.new_head=True ",
        "head/bias is (5,) in the weights and (3,) in the model",
        "extra/scale is not in the model",
        "pre_logits/kernel is not in the model (init.new_head=True permits dropping it)",
        "grid is 2x2 in the weights and 4x6 in the model (init.resize=True permits resizing)",
    ):
        assert text in message


def test_make_plan_lists_twenty_differences_and_counts_the_rest():
    source = SHAPES | {f"extra_{i:02}": (1,) for i in range(27)}
    message = plan_error(source, SHAPES)
    assert message.count("is not in the model") == 20
    assert message.endswith("; and 7 more.")


def test_make_plan_needs_the_permission_of_each_change():
    source = SHAPES | {"extra/scale": (7,)}
    target = SHAPES | NEW_HEAD
    assert "extra/scale is not in the model" in plan_error(
        source, target, new_head=True, resize=True
    )
    target = SHAPES | {POSITIONS: (1, 1 + 4 * 4, D)}
    assert "init.resize" in plan_error(SHAPES, target, new=(4, 4), new_head=True)
    assert "init.new_head" in plan_error(SHAPES, SHAPES | NEW_HEAD, resize=True)


@pytest.mark.parametrize("head", [NEW_HEAD, {}], ids=["other classes", "the same classes"])
def test_new_head_is_zeros_and_other_parameters_are_unchanged(head):
    target, params = SHAPES | head, arrays(SHAPES)
    made = plan(SHAPES, target, new_head=True)
    new = adapted(made, params)
    assert {name: array.shape for name, array in new.items()} == target
    for name in new:
        if name.startswith("head"):
            assert not np.any(new[name])
            assert new[name].dtype == np.float32
        else:
            assert new[name] is params[name]
    assert "head replaced by zeros" in made.notes


def test_head_rows_give_each_class_its_output():
    made, params = plan(SHAPES, SHAPES, rows=(4, 0, 3, 1, 2)), arrays(SHAPES)
    found = adapted(made, params)
    assert made.notes == ["outputs of the head put in the order of the class names"]
    for new, old in enumerate((4, 0, 3, 1, 2)):
        assert found["head/bias"][new] == params["head/bias"][old]
        np.testing.assert_array_equal(found["head/kernel"][:, new], params["head/kernel"][:, old])


def test_new_head_permits_adding_and_dropping_a_head():
    new = adapted(plan(HEADLESS, SHAPES, new_head=True), arrays(HEADLESS))
    assert not np.any(new["head/kernel"])
    made = plan(SHAPES, HEADLESS, new_head=True)
    assert set(adapted(made, arrays(SHAPES))) == set(HEADLESS)
    assert made.notes == ["dropped head/bias, head/kernel"]
    assert "head/kernel is missing in the weights" in plan_error(HEADLESS, SHAPES)
    assert "head/kernel is not in the model" in plan_error(SHAPES, HEADLESS)


def test_new_head_drops_pre_logits_that_the_model_does_not_have():
    made = plan(SHAPES | PRE_LOGITS, SHAPES | NEW_HEAD, new_head=True)
    assert set(adapted(made, arrays(SHAPES | PRE_LOGITS))) == set(SHAPES)
    assert any("dropped" in note and "pre_logits/kernel" in note for note in made.notes)


def test_new_head_keeps_pre_logits_and_does_not_create_them():
    params = arrays(SHAPES | PRE_LOGITS)
    new = adapted(plan(params_shapes(params), SHAPES | PRE_LOGITS, new_head=True), params)
    assert new["pre_logits/kernel"] is params["pre_logits/kernel"]
    message = plan_error(SHAPES, SHAPES | PRE_LOGITS, new_head=True)
    assert "pre_logits/kernel is missing in the weights" in message


def params_shapes(params):
    return {name: array.shape for name, array in params.items()}


def test_make_plan_rejects_another_grid_with_as_many_positions():
    # 4x6 and 6x4 have the same shape: only the grids differ.
    message = plan_error(SHAPES, SHAPES, new=(6, 4))
    assert "grid is 4x6 in the weights and 6x4 in the model (init.resize=True" in message
    made, params = plan(SHAPES, SHAPES, new=(6, 4), resize=True), arrays(SHAPES)
    new = adapted(made, params)[POSITIONS]
    assert made.notes == ["position embeddings resized from 4x6 to 6x4"]
    grid = params[POSITIONS][0, 1:].reshape(4, 6, D)
    expected = ndimage.zoom(grid, (6 / 4, 4 / 6, 1), order=1)
    np.testing.assert_allclose(new[0, 1:].reshape(6, 4, D), expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1], ids=["patches only", "with a class token"])
def test_resize_positions_equals_scipy_zoom_and_keeps_the_class_token(tokens):
    positions = np.random.default_rng(0).normal(size=(1, tokens + 14 * 14, D)).astype(np.float32)
    resized = resize_positions(POSITIONS, positions, (14, 14), (10, 17))
    assert resized.shape == (1, tokens + 10 * 17, D)
    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized[:, :tokens], positions[:, :tokens])
    grid = positions[0, tokens:].reshape(14, 14, D)
    expected = ndimage.zoom(grid, (10 / 14, 17 / 14, 1), order=1)
    np.testing.assert_allclose(resized[0, tokens:].reshape(10, 17, D), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("own", "chosen", "expected"),
    [
        (None, "auto", "aligned_bilinear"),
        ("bicubic", "auto", "bicubic"),
        ("bicubic", "bicubic_antialias", "bicubic_antialias"),
        ("bicubic", "aligned_bilinear", "aligned_bilinear"),
    ],
)
def test_plan_resizes_by_the_familys_rule_or_by_the_chosen_one(own, chosen, expected):
    target, params = SHAPES | {POSITIONS: (1, 1 + 3 * 9, D)}, arrays(SHAPES)
    made = plan(SHAPES, target, new=(3, 9), rule=own, resize=True, resize_rule=chosen)
    by = "" if expected == "aligned_bilinear" else f" by {expected}"
    assert made.notes == [f"position embeddings resized from 4x6 to 3x9{by}"]
    resized = resize_grid(params[POSITIONS][0, 1:].reshape(4, 6, D), (3, 9), RESIZE_RULES[expected])
    np.testing.assert_array_equal(adapted(made, params)[POSITIONS][0, 1:], resized.reshape(-1, D))


def test_make_plan_rejects_an_unknown_resize_rule():
    with pytest.raises(ConfigError, match=r"init\.resize_rule is 'cubic'; .* bicubic"):
        plan(SHAPES, SHAPES, new=(6, 4), resize=True, resize_rule="cubic")
    with pytest.raises(ConfigError, match=r"init\.resize_rule has no effect without init\.resize"):
        plan(SHAPES, SHAPES, resize_rule="bicubic")


def test_resize_positions_keeps_two_prefix_tokens():
    target = {POSITIONS: (1, 2 + 3 * 3, D)}
    source = {POSITIONS: (1, 2 + 4 * 6, D)}
    params = arrays(source)
    new = adapted(plan(source, target, new=(3, 3), resize=True), params)[POSITIONS]
    np.testing.assert_array_equal(new[:, :2], params[POSITIONS][:, :2])
    assert new.shape == target[POSITIONS]


def test_resize_does_not_permit_a_missing_class_token():
    target = SHAPES | {POSITIONS: (1, 8 * 8, D)}
    message = plan_error(SHAPES, target, new=(8, 8), resize=True)
    assert f"{POSITIONS} is (1, 25, 2) in the weights and (1, 64, 2) in the model" in message


def test_resize_does_not_permit_another_width():
    target = SHAPES | {POSITIONS: (1, 1 + 8 * 8, D + 1)}
    assert POSITIONS in plan_error(SHAPES, target, new=(8, 8), resize=True)


def test_resize_positions_repeatedly_equals_scipy_zoom():
    positions = np.random.default_rng(0).normal(size=(1, 1 + 14 * 14, D)).astype(np.float32)
    old, expected = (14, 14), positions[0, 1:].reshape(14, 14, D).astype(np.float64)
    for new in ((24, 24), (10, 17), (14, 14)):
        positions = resize_positions(POSITIONS, positions, old, new)
        factors = (new[0] / old[0], new[1] / old[1], 1)
        expected = ndimage.zoom(expected, factors, order=1)
        np.testing.assert_allclose(positions[0, 1:].reshape(*new, D), expected, atol=1e-5)
        old = new


def test_apply_plan_resizes_row_and_column_embeddings_along_their_axes():
    x, y = (f"Transformer/posembed_input/{axis}_embedding" for axis in "xy")
    params = arrays({x: (1, 6, D), y: (1, 4, D)})
    target = {x: (1, 9, D), y: (1, 8, D)}
    new = adapted(plan(params_shapes(params), target, new=(8, 9), resize=True), params)
    for name, length in ((x, 9), (y, 8)):
        old = params[name][0]
        expected = ndimage.zoom(old, (length / len(old), 1), order=1)
        np.testing.assert_allclose(new[name][0], expected, atol=1e-5)


def test_apply_plan_resizes_the_positions_of_every_layer():
    later = "Transformer/posembed_3/pos_embedding"
    params = arrays({later: (1, 1 + 4 * 6, D)})
    target = {later: (1, 1 + 8 * 8, D)}
    new = adapted(plan(params_shapes(params), target, new=(8, 8), resize=True), params)
    assert new[later].shape == (1, 65, D)


def test_drop_token_drops_the_class_token_and_its_position():
    target = {n: s for n, s in SHAPES.items() if n != "cls"} | {POSITIONS: (1, 4 * 6, D)}
    assert "cls is not in the model (init.drop_token=True permits" in plan_error(SHAPES, target)
    params = arrays(SHAPES)
    made = plan(SHAPES, target, drop_token=True)
    new = adapted(made, params)
    assert made.notes == ["class token and its position embedding dropped"]
    assert set(new) == set(target)
    np.testing.assert_array_equal(new[POSITIONS], params[POSITIONS][:, 1:])
    # Dropped and resized at once.
    target = target | {POSITIONS: (1, 5 * 5, D)}
    new = adapted(plan(SHAPES, target, new=(5, 5), drop_token=True, resize=True), params)
    expected = ndimage.zoom(params[POSITIONS][0, 1:].reshape(4, 6, D), (5 / 4, 5 / 6, 1), order=1)
    np.testing.assert_allclose(new[POSITIONS].reshape(5, 5, D), expected, atol=1e-5)


def test_layer_scale_is_folded_into_the_dense_layer_before_it():
    block = "Transformer/encoderblock_0"
    out, dense = f"{block}/MultiHeadDotProductAttention_0/out", f"{block}/MlpBlock_0/Dense_1"
    plain = {f"{out}/kernel": (2, 3, D), f"{out}/bias": (D,)}
    plain |= {f"{dense}/kernel": (5, D), f"{dense}/bias": (D,)}
    scales = {f"{block}/LayerScale_0/scale": (D,), f"{block}/LayerScale_1/scale": (D,)}
    params = arrays(plain | scales)
    made = plan(plain | scales, plain)
    new = adapted(made, params)
    assert made.notes == ["LayerScale folded into the dense layers before it"]
    assert set(new) == set(plain)
    for n, layer in ((0, out), (1, dense)):
        scale = params[f"{block}/LayerScale_{n}/scale"]
        for leaf in ("kernel", "bias"):
            np.testing.assert_allclose(
                new[f"{layer}/{leaf}"], params[f"{layer}/{leaf}"] * scale, rtol=1e-6
            )
    assert plan(plain | scales, plain | scales).folded == {}


def test_make_plan_lists_given_differences_first():
    message = plan_error(SHAPES, SHAPES | NEW_HEAD, differences=["gelu is 'erf'"])
    assert "gelu is 'erf'; head/kernel is" in message


def test_classifier_drops_the_parameters_of_masked_patches():
    source = HEADLESS | MASKED_PATCH_SHAPES
    message = plan_error(source, SHAPES)
    assert "mask_token is not in the model (init.new_head=True permits dropping it)" in message
    assert "patch_head/bias is not in the model (init.new_head=True permits dropping it)" in message
    made, params = plan(source, SHAPES, new_head=True), arrays(source)
    assert made.notes == [
        "head replaced by zeros",
        "dropped mask_token, patch_head/bias, patch_head/kernel",
    ]
    new = adapted(made, params)
    assert params_shapes(new) == SHAPES
    assert all(new[name] is params[name] for name in HEADLESS)


def test_masked_patches_start_from_a_classifier_with_zeros():
    target = HEADLESS | MASKED_PATCH_SHAPES
    message = plan_error(SHAPES, target)
    assert "mask_token is missing in the weights (init.new_head=True permits a new one)" in message
    assert "head/kernel is not in the model (init.new_head=True permits dropping it)" in message
    made, params = plan(SHAPES | PRE_LOGITS, target, new_head=True), arrays(SHAPES | PRE_LOGITS)
    assert made.notes == [
        "mask_token, patch_head replaced by zeros",
        "dropped head/bias, head/kernel, pre_logits/bias, pre_logits/kernel",
    ]
    new = adapted(made, params)
    assert params_shapes(new) == target
    assert all(np.any(new[name]) == (name in HEADLESS) for name in target)


def test_masked_patches_keep_their_parameters():
    source = HEADLESS | MASKED_PATCH_SHAPES
    made, params = plan(source, source), arrays(source)
    assert made.notes == []
    assert adapted(made, params) == params
    target = source | {"patch_head/kernel": (D, 48), "patch_head/bias": (48,)}
    message = plan_error(source, target)
    assert (
        "patch_head/bias is (512,) in the weights and (48,) in the model (init.new_head=True"
        in message
    )


def test_new_head_has_the_given_bias():
    target = SHAPES | NEW_HEAD
    made = plan(SHAPES, target, new_head=True, head_bias=-10.0)
    assert made.notes == ["head replaced by zeros, with bias -10"]
    new = adapted(made, arrays(SHAPES))
    np.testing.assert_array_equal(new["head/bias"], np.full(3, -10, np.float32))
    assert not np.any(new["head/kernel"])
    # An old head keeps its bias; a model without a head has none.
    params = arrays(SHAPES)
    kept = adapted(plan(SHAPES, SHAPES, head_bias=-10.0), params)
    assert kept["head/bias"] is params["head/bias"]
    assert plan(SHAPES, HEADLESS, new_head=True, head_bias=-10.0).notes == [
        "dropped head/bias, head/kernel"
    ]


def test_distilled_weights_get_two_new_heads():
    made = plan(DISTILLED, DISTILLED | NEW_HEAD | NEW_HEAD_DIST, new_head=True, head_bias=-10.0)
    assert made.notes == ["head, head_dist replaced by zeros, with bias -10"]
    new = adapted(made, arrays(DISTILLED))
    for name, shape in (NEW_HEAD | NEW_HEAD_DIST).items():
        expected = np.full(shape, -10.0 * name.endswith("bias"), np.float32)
        np.testing.assert_array_equal(new[name], expected)
    # Without new heads, both are put in the order of the classes.
    params = arrays(DISTILLED)
    new = adapted(plan(DISTILLED, DISTILLED, rows=(4, 3, 2, 1, 0)), params)
    for name in ("head/kernel", "head_dist/kernel", "head_dist/bias"):
        np.testing.assert_array_equal(new[name], params[name][..., ::-1])


def test_drop_token_drops_the_distillation_token_with_its_head_and_position():
    params = arrays(DISTILLED)
    message = plan_error(DISTILLED, SHAPES)
    assert "dist_token is not in the model (init.drop_token=True permits" in message
    made = plan(DISTILLED, SHAPES, drop_token=True)
    assert made.notes[0] == "distillation token and its position embedding dropped"
    new = adapted(made, params)
    assert set(new) == set(SHAPES)
    expected = params[POSITIONS][:, [0, *range(2, 2 + 4 * 6)]]
    np.testing.assert_array_equal(new[POSITIONS], expected)
    target = {name: shape for name, shape in SHAPES.items() if name != "cls"}
    target |= {POSITIONS: (1, 4 * 6, D)}
    new = adapted(plan(DISTILLED, target, drop_token=True), params)
    np.testing.assert_array_equal(new[POSITIONS], params[POSITIONS][:, 2:])


def test_new_head_drops_a_projection_that_the_model_does_not_have():
    source = HEADLESS | {"projection/kernel": (D, 7)}
    assert "projection/kernel is not in the model (init.new_head" in plan_error(source, SHAPES)
    made = plan(source, HEADLESS | NEW_HEAD, new_head=True)
    assert made.notes == ["head replaced by zeros", "dropped projection/kernel"]
    kept = plan(source, source | {"head/kernel": (7, 3), "head/bias": (3,)}, new_head=True)
    assert kept.notes == ["head replaced by zeros"]


def test_make_plan_with_drop_token_still_rejects_another_grid():
    target = {n: s for n, s in SHAPES.items() if n != "cls"} | {POSITIONS: (1, 5 * 5, D)}
    message = plan_error(SHAPES, target, new=(5, 5), drop_token=True)
    assert "position grid is 4x6 in the weights and 5x5 in the model (init.resize" in message
    assert "cls" not in message
