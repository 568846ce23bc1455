"""Scanned and recomputed layers are the layers, with the same parameters and the same noise."""

import functools

import jax
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals

from tests.support.tiny import equations, forward, some_images, some_params, tiny
from vit_jax.errors import ConfigError
from vit_jax.models.registry import param_shapes

NOISY = {"dropout": 0.2, "drop_path": 0.3, "kernels": "plain"}


def loss_and_gradients(model, params, images):
    def loss(params):
        rngs = {"dropout": jax.random.key(3, impl="rbg")}  # Quicker to compile than the default.
        return (model.apply({"params": params}, images, train=True, rngs=rngs) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


@functools.cache
def one_by_one(**changes):
    """Model, parameters, images, loss and gradients without scan and remat."""
    model = tiny(**NOISY, **changes)
    params, images = some_params(model), some_images(4, 8, 12, 3)
    return params, images, *loss_and_gradients(model, params, images)


@pytest.mark.parametrize(
    ("how", "changes"),
    [
        ({"remat": "dots"}, {}),
        ({"scan": True}, {"dtype": "bfloat16"}),
        (
            {"scan": True, "remat": "full"},
            {"layer_scale": 0.1, "registers": 2, "pos_embed_at": "shared"},
        ),
    ],
    ids=str,
)
@pytest.mark.stress
def test_loss_and_gradients_are_those_of_layers_one_by_one_noise_included(how, changes):
    params, images, expected, wanted = one_by_one(**changes)
    found, gradients = loss_and_gradients(tiny(**NOISY, **changes, **how), params, images)
    tolerance = 1e-5 if "dtype" not in changes else 0.02
    assert float(found) == pytest.approx(float(expected), rel=tolerance)
    size = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(wanted))
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(ours - theirs) <= tolerance * size


def test_scan_and_remat_change_no_name_and_no_shape_of_a_parameter():
    for changes in ({"scan": True}, {"remat": "full"}, {"scan": True, "remat": "dots"}):
        assert param_shapes(tiny(**changes)) == param_shapes(tiny())


def test_a_scanned_model_compiles_one_layer_for_all():
    def num_products(**changes):
        model = tiny(num_layers=5, **changes)
        run = lambda params, x: model.apply({"params": params}, x)  # noqa: E731
        jaxpr = jax.make_jaxpr(run)(some_params(model), some_images(1, 8, 12, 3))
        return sum(e.primitive.name == "dot_general" for e in equations(jaxpr.jaxpr))

    of_a_layer, others = 8, 2  # q, k, v, A, its product, out and the MLP; embedding and head.
    assert num_products() == 5 * of_a_layer + others
    assert num_products(scan=True) == of_a_layer + others


def kept_between_passes(**changes):
    """Bytes that the forward pass keeps for the backward one, parameters and images apart."""
    model = tiny(num_layers=4, num_heads=4, image_size=(32, 32), kernels="plain", **changes)
    params, images = some_params(model), some_images(8, 32, 32, 3)
    run = lambda params: (model.apply({"params": params}, images, train=True) ** 2).sum()  # noqa: E731
    kept = saved_residuals(run, params)
    return sum(aval.size * aval.dtype.itemsize for aval, why in kept if "argument" not in why)


def test_remat_keeps_less_and_less():
    none, dots, full = (kept_between_passes(remat=name) for name in ("none", "dots", "full"))
    assert none > 1.5 * dots
    assert dots > 3 * full


def test_layers_that_differ_by_their_positions_cannot_be_scanned():
    with pytest.raises(ConfigError, match="pos_embed_at='layers'"):
        tiny(scan=True, pos_embed_at="layers")


def test_a_scanned_model_predicts_what_the_plain_one_does():
    options = {"registers": 2, "pos_embed_at": "shared"}
    params, images = some_params(tiny(**options)), some_images(2, 8, 12, 3)
    found, expected = (
        forward(tiny(scan=scan, **options), params, images) for scan in (True, False)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
