"""Statistics before a head: folded for a model without them, new for a new head."""

import numpy as np
import pytest

from tests.support.tiny import forward, some_images, some_params, tiny
from vit_jax.config.schema import Init
from vit_jax.errors import CheckpointError
from vit_jax.models import trees
from vit_jax.models.registry import param_shapes
from vit_jax.weights.adapt import apply_plan, make_plan


def standardised():
    """A model with statistics and its parameters."""
    model = tiny(head_norm=True)
    params = some_params(model)
    params["head_norm"]["var"] = np.abs(params["head_norm"]["var"]) + 0.1
    return model, params


def adapt(source, params, target, **permissions):
    plan = make_plan(
        param_shapes(source),
        param_shapes(target),
        old_grid=source.grid,
        new_grid=target.grid,
        permissions=Init(**permissions),
        head_std=target.config.head_std,
        where="old",
    )
    flat = trees.flatten(params)

    def read(names=None):
        yield from ((n, array) for n, array in flat.items() if names is None or n in names)

    return plan, trees.unflatten(dict(apply_plan(plan, read)))


def test_statistics_that_the_model_does_not_have_are_folded_into_the_head():
    source, params = standardised()
    images = some_images(3, 8, 12, 3)
    plan, folded = adapt(source, params, tiny())
    assert plan.notes == ["head_norm folded into the head"]
    expected = forward(source, params, images)
    np.testing.assert_allclose(forward(tiny(), folded, images), expected, rtol=1e-3, atol=1e-4)


def test_a_new_head_with_statistics_keeps_the_initial_values_of_the_model():
    source, target = tiny(num_classes=0), tiny(head_norm=True, head_std=0.01)
    plan, params = adapt(source, some_params(source), target, new_head=True)
    assert set(plan.drawn) == {"head/kernel", "head_norm/mean", "head_norm/var"}
    assert plan.notes == ["head replaced by random initial values"]
    assert set(params["head"]) == {"bias"}


def test_a_new_head_drops_the_statistics_of_the_old_one():
    source, params = standardised()
    plan, adapted = adapt(source, params, tiny(num_classes=3), new_head=True)
    assert "head_norm" not in adapted
    assert not adapted["head"]["kernel"].any()
    assert plan.notes[-1] == "dropped head_norm/mean, head_norm/var"


def test_statistics_that_the_weights_do_not_have_need_a_new_head():
    with pytest.raises(CheckpointError, match=r"head_norm/mean is missing .*new_head=True permits"):
        adapt(tiny(), some_params(tiny()), tiny(head_norm=True))
