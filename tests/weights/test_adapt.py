"""Pretrained parameters into another model: what is permitted, and what is refused at once."""

import numpy as np
import pytest
from scipy import ndimage

from vit_jax.errors import CheckpointError
from vit_jax.weights.adapt import apply_plan as stream
from vit_jax.weights.adapt import make_plan, resize_positions

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
MASKED = {"mask_token": (1, 1, D), "patch_head/kernel": (D, 512), "patch_head/bias": (512,)}
HEADLESS = {name: shape for name, shape in SHAPES.items() if not name.startswith("head")}


def plan(found, wanted, *, old=(4, 6), new=(4, 6), **permissions):
    return make_plan(found, wanted, old_grid=old, new_grid=new, where="old.npz", **permissions)


def apply_plan(made, params):
    def read(names=None):
        yield from ((n, array) for n, array in params.items() if names is None or n in names)

    return dict(stream(made, read))


def refusal(*args, **kwargs):
    with pytest.raises(CheckpointError, match=r"^old\.npz does not fit the model: ") as caught:
        plan(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def arrays(shapes):
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_parameters_that_fit_pass_through_untouched():
    made, params = plan(SHAPES, SHAPES), arrays(SHAPES)
    assert made.notes == []
    assert apply_plan(made, params) == params


def test_permissions_without_need_change_no_positions():
    made, params = plan(SHAPES, SHAPES, resize=True), arrays(SHAPES)
    assert made.notes == []
    assert apply_plan(made, params) == params


def test_all_mismatches_are_told_at_once():
    found = SHAPES | {"extra/scale": (7,)} | PRE_LOGITS | {POSITIONS: (1, 1 + 2 * 2, D)}
    wanted = SHAPES | NEW_HEAD | {"embedding/kernel": (8, 8, 3, D), "embedding/bias": (D,)}
    message = refusal(found, wanted, old=(2, 2))
    for words in (
        "embedding/bias is missing there",
        "embedding/kernel is (4, 4, 3, 2) there, (8, 8, 3, 2) here",
        "head/kernel is (2, 5) there, (2, 3) here: init.new_head=True permits a new one",
        "head/bias is (5,) there, (3,) here",
        "extra/scale has no place here",
        "pre_logits/kernel has no place here: init.new_head=True permits to drop it",
        "position grid 2x2 there, 4x6 here: init.resize=True permits resizing",
    ):
        assert words in message


def test_a_long_list_of_mismatches_is_cut_and_counted():
    found = SHAPES | {f"extra_{i:02}": (1,) for i in range(27)}
    message = refusal(found, SHAPES)
    assert message.count("has no place here") == 20
    assert message.endswith("; and 7 more.")


def test_permission_for_one_thing_is_no_permission_for_another():
    found = SHAPES | {"extra/scale": (7,)}
    wanted = SHAPES | NEW_HEAD
    assert "extra/scale has no place" in refusal(found, wanted, new_head=True, resize=True)
    wanted = SHAPES | {POSITIONS: (1, 1 + 4 * 4, D)}
    assert "init.resize" in refusal(SHAPES, wanted, new=(4, 4), new_head=True)
    assert "init.new_head" in refusal(SHAPES, SHAPES | NEW_HEAD, resize=True)


@pytest.mark.parametrize("head", [NEW_HEAD, {}], ids=["other classes", "the same classes"])
def test_a_new_head_is_zeros_and_leaves_the_rest(head):
    wanted, params = SHAPES | head, arrays(SHAPES)
    made = plan(SHAPES, wanted, new_head=True)
    new = apply_plan(made, params)
    assert {name: array.shape for name, array in new.items()} == wanted
    for name in new:
        if name.startswith("head"):
            assert not np.any(new[name])
            assert new[name].dtype == np.float32
        else:
            assert new[name] is params[name]
    assert "head replaced by zeros" in made.notes


def test_a_new_head_may_grow_on_features_and_features_may_lose_one():
    new = apply_plan(plan(HEADLESS, SHAPES, new_head=True), arrays(HEADLESS))
    assert not np.any(new["head/kernel"])
    made = plan(SHAPES, HEADLESS, new_head=True)
    assert set(apply_plan(made, arrays(SHAPES))) == set(HEADLESS)
    assert made.notes == ["dropped head/bias, head/kernel"]
    assert "head/kernel is missing there" in refusal(HEADLESS, SHAPES)
    assert "head/kernel has no place here" in refusal(SHAPES, HEADLESS)


def test_pre_logits_go_with_a_new_head_where_the_model_has_none():
    made = plan(SHAPES | PRE_LOGITS, SHAPES | NEW_HEAD, new_head=True)
    assert set(apply_plan(made, arrays(SHAPES | PRE_LOGITS))) == set(SHAPES)
    assert any("dropped" in note and "pre_logits/kernel" in note for note in made.notes)


def test_pre_logits_stay_where_the_model_has_them_and_are_never_made_up():
    params = arrays(SHAPES | PRE_LOGITS)
    new = apply_plan(plan(params_shapes(params), SHAPES | PRE_LOGITS, new_head=True), params)
    assert new["pre_logits/kernel"] is params["pre_logits/kernel"]
    message = refusal(SHAPES, SHAPES | PRE_LOGITS, new_head=True)
    assert "pre_logits/kernel is missing there" in message


def params_shapes(params):
    return {name: array.shape for name, array in params.items()}


def test_another_grid_needs_permission_even_with_as_many_positions():
    # 4x6 and 6x4 have the same shape: only the grids tell them apart.
    assert "position grid 4x6 there, 6x4 here: init.resize=True" in refusal(
        SHAPES, SHAPES, new=(6, 4)
    )
    made, params = plan(SHAPES, SHAPES, new=(6, 4), resize=True), arrays(SHAPES)
    new = apply_plan(made, params)[POSITIONS]
    assert made.notes == ["position embeddings resized from 4x6 to 6x4"]
    grid = params[POSITIONS][0, 1:].reshape(4, 6, D)
    expected = ndimage.zoom(grid, (6 / 4, 4 / 6, 1), order=1)
    np.testing.assert_allclose(new[0, 1:].reshape(6, 4, D), expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1], ids=["patches only", "with a class token"])
def test_the_class_tokens_position_is_kept_and_the_grid_is_zoomed(tokens):
    positions = np.random.default_rng(0).normal(size=(1, tokens + 14 * 14, D)).astype(np.float32)
    resized = resize_positions(POSITIONS, positions, (14, 14), (10, 17))
    assert resized.shape == (1, tokens + 10 * 17, D)
    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized[:, :tokens], positions[:, :tokens])
    grid = positions[0, tokens:].reshape(14, 14, D)
    expected = ndimage.zoom(grid, (10 / 14, 17 / 14, 1), order=1)
    np.testing.assert_allclose(resized[0, tokens:].reshape(10, 17, D), expected, atol=1e-5)


def test_resizing_makes_up_no_class_token():
    wanted = SHAPES | {POSITIONS: (1, 8 * 8, D)}
    message = refusal(SHAPES, wanted, new=(8, 8), resize=True)
    assert f"{POSITIONS} is (1, 25, 2) there, (1, 64, 2) here" in message


def test_resizing_is_no_permission_for_another_width():
    wanted = SHAPES | {POSITIONS: (1, 1 + 8 * 8, D + 1)}
    assert POSITIONS in refusal(SHAPES, wanted, new=(8, 8), resize=True)


def test_positions_go_from_14x14_to_24x24_to_10x17_and_back_as_scipy_zooms_them():
    positions = np.random.default_rng(0).normal(size=(1, 1 + 14 * 14, D)).astype(np.float32)
    old, expected = (14, 14), positions[0, 1:].reshape(14, 14, D).astype(np.float64)
    for new in ((24, 24), (10, 17), (14, 14)):
        positions = resize_positions(POSITIONS, positions, old, new)
        factors = (new[0] / old[0], new[1] / old[1], 1)
        expected = ndimage.zoom(expected, factors, order=1)
        np.testing.assert_allclose(positions[0, 1:].reshape(*new, D), expected, atol=1e-5)
        old = new


def test_row_and_column_embeddings_are_zoomed_each_along_its_axis():
    x, y = (f"Transformer/posembed_input/{axis}_embedding" for axis in "xy")
    params = arrays({x: (1, 6, D), y: (1, 4, D)})
    wanted = {x: (1, 9, D), y: (1, 8, D)}
    new = apply_plan(plan(params_shapes(params), wanted, new=(8, 9), resize=True), params)
    for name, length in ((x, 9), (y, 8)):
        old = params[name][0]
        expected = ndimage.zoom(old, (length / len(old), 1), order=1)
        np.testing.assert_allclose(new[name][0], expected, atol=1e-5)


def test_positions_of_every_layer_are_resized():
    later = "Transformer/posembed_3/pos_embedding"
    params = arrays({later: (1, 1 + 4 * 6, D)})
    wanted = {later: (1, 1 + 8 * 8, D)}
    new = apply_plan(plan(params_shapes(params), wanted, new=(8, 8), resize=True), params)
    assert new[later].shape == (1, 65, D)


def test_the_class_token_goes_with_its_position_where_that_is_permitted():
    wanted = {n: s for n, s in SHAPES.items() if n != "cls"} | {POSITIONS: (1, 4 * 6, D)}
    assert "cls has no place here: init.drop_token=True permits" in refusal(SHAPES, wanted)
    params = arrays(SHAPES)
    made = plan(SHAPES, wanted, drop_token=True)
    new = apply_plan(made, params)
    assert made.notes == ["class token and its position dropped"]
    assert set(new) == set(wanted)
    np.testing.assert_array_equal(new[POSITIONS], params[POSITIONS][:, 1:])
    # Dropped and resized at once.
    wanted = wanted | {POSITIONS: (1, 5 * 5, D)}
    new = apply_plan(plan(SHAPES, wanted, new=(5, 5), drop_token=True, resize=True), params)
    expected = ndimage.zoom(params[POSITIONS][0, 1:].reshape(4, 6, D), (5 / 4, 5 / 6, 1), order=1)
    np.testing.assert_allclose(new[POSITIONS].reshape(5, 5, D), expected, atol=1e-5)


def test_layer_scale_folds_into_the_dense_layer_before_it():
    block = "Transformer/encoderblock_0"
    out, dense = f"{block}/MultiHeadDotProductAttention_0/out", f"{block}/MlpBlock_0/Dense_1"
    plain = {f"{out}/kernel": (2, 3, D), f"{out}/bias": (D,)}
    plain |= {f"{dense}/kernel": (5, D), f"{dense}/bias": (D,)}
    scales = {f"{block}/LayerScale_0/scale": (D,), f"{block}/LayerScale_1/scale": (D,)}
    params = arrays(plain | scales)
    made = plan(plain | scales, plain)
    new = apply_plan(made, params)
    assert made.notes == ["LayerScale folded into the dense layers before it"]
    assert set(new) == set(plain)
    for n, layer in ((0, out), (1, dense)):
        scale = params[f"{block}/LayerScale_{n}/scale"]
        for leaf in ("kernel", "bias"):
            np.testing.assert_allclose(
                new[f"{layer}/{leaf}"], params[f"{layer}/{leaf}"] * scale, rtol=1e-6
            )
    assert plan(plain | scales, plain | scales).folded == {}


def test_other_differences_are_told_with_the_rest():
    message = refusal(SHAPES, SHAPES | NEW_HEAD, differences=["gelu is 'erf' there"])
    assert "gelu is 'erf' there; head/kernel is" in message


def test_a_classifier_starts_from_masked_patches_without_what_only_they_need():
    found = HEADLESS | MASKED
    message = refusal(found, SHAPES)
    assert "mask_token has no place here: init.new_head=True permits to drop it" in message
    assert "patch_head/bias has no place here: init.new_head=True permits to drop it" in message
    made, params = plan(found, SHAPES, new_head=True), arrays(found)
    assert made.notes == [
        "head replaced by zeros",
        "dropped mask_token, patch_head/bias, patch_head/kernel",
    ]
    new = apply_plan(made, params)
    assert params_shapes(new) == SHAPES
    assert all(new[name] is params[name] for name in HEADLESS)


def test_masked_patches_start_from_a_classifier_with_a_mask_token_and_a_head_of_zeros():
    wanted = HEADLESS | MASKED
    message = refusal(SHAPES, wanted)
    assert "mask_token is missing there: init.new_head=True permits a new one" in message
    assert "head/kernel has no place here: init.new_head=True permits to drop it" in message
    made, params = plan(SHAPES | PRE_LOGITS, wanted, new_head=True), arrays(SHAPES | PRE_LOGITS)
    assert made.notes == [
        "mask_token, patch_head replaced by zeros",
        "dropped head/bias, head/kernel, pre_logits/bias, pre_logits/kernel",
    ]
    new = apply_plan(made, params)
    assert params_shapes(new) == wanted
    assert all(np.any(new[name]) == (name in HEADLESS) for name in wanted)


def test_masked_patches_go_on_from_masked_patches_untouched():
    found = HEADLESS | MASKED
    made, params = plan(found, found), arrays(found)
    assert made.notes == []
    assert apply_plan(made, params) == params
    wanted = found | {"patch_head/kernel": (D, 48), "patch_head/bias": (48,)}
    message = refusal(found, wanted)
    assert "patch_head/bias is (512,) there, (48,) here: init.new_head=True permits" in message


def test_a_new_heads_bias_begins_where_it_is_told():
    wanted = SHAPES | NEW_HEAD
    made = plan(SHAPES, wanted, new_head=True, head_bias=-10.0)
    assert made.notes == ["head replaced by zeros, its bias by -10"]
    new = apply_plan(made, arrays(SHAPES))
    np.testing.assert_array_equal(new["head/bias"], np.full(3, -10, np.float32))
    assert not np.any(new["head/kernel"])
    # What is not new keeps the bias that it has; what has no head has none.
    params = arrays(SHAPES)
    kept = apply_plan(plan(SHAPES, SHAPES, head_bias=-10.0), params)
    assert kept["head/bias"] is params["head/bias"]
    assert plan(SHAPES, HEADLESS, new_head=True, head_bias=-10.0).notes == [
        "dropped head/bias, head/kernel"
    ]


def test_resizing_may_be_needed_and_the_token_dropped_and_both_are_told_at_once():
    wanted = {n: s for n, s in SHAPES.items() if n != "cls"} | {POSITIONS: (1, 5 * 5, D)}
    message = refusal(SHAPES, wanted, new=(5, 5), drop_token=True)
    assert "position grid 4x6 there, 5x5 here: init.resize=True permits resizing" in message
    assert "cls" not in message
