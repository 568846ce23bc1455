"""The forms for a CPU and the plain forms are the same mathematics, forwards and backwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from tests.support.tiny import equations, forward, some_images, some_params, tiny
from vit_jax.models import cpu_ops

PLAIN, CPU = cpu_ops.KERNELS["plain"], cpu_ops.KERNELS["cpu"]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def values_and_gradients(function, *arrays):
    """What a function returns, and the gradients of its sum weighted by fixed numbers."""

    def weighted(*arrays):
        y = function(*arrays)
        return jnp.sum(y.astype(jnp.float32) * normal(*y.shape, seed=9)), y

    run = jax.jit(jax.grad(weighted, argnums=tuple(range(len(arrays))), has_aux=True))
    gradients, value = run(*arrays)
    return value, *gradients


CASES = {
    "dense to a wider": ("dense", [(2, 5, 8), (8, 12), (12,)]),
    "dense to a narrower": ("dense", [(2, 5, 8), (8, 3), (3,)]),
    "dense to heads": ("dense", [(2, 5, 8), (8, 2, 4), (2, 4)]),
    "dense from heads": ("dense", [(2, 5, 2, 4), (2, 4, 8), (8,)]),
    "attention": ("attention", [(2, 5, 3, 4), (2, 5, 3, 4), (2, 5, 3, 4)]),
    "attention of one query": ("attention", [(2, 1, 3, 4), (2, 7, 3, 4), (2, 7, 3, 4)]),
    "attention with a bias": (
        "attention",
        [(2, 5, 3, 4), (2, 5, 3, 4), (2, 5, 3, 4), (2, 3, 5, 5)],
    ),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_products_for_a_cpu_equal_the_plain_ones(case, dtype):
    name, shapes = CASES[case]
    arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    inputs = 1 if name == "dense" else len(arrays)  # Kernel and bias stay float32.
    exact = values_and_gradients(getattr(PLAIN, name), *arrays)
    arrays = [array.astype(dtype) for array in arrays[:inputs]] + arrays[inputs:]
    found = values_and_gradients(getattr(CPU, name), *arrays)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.03
    assert [a.dtype for a in found] == [found[0].dtype, *(a.dtype for a in arrays)]
    assert found[0].dtype == dtype
    for ours, plain in zip(found, exact, strict=True):
        gap = np.linalg.norm(np.float32(ours) - plain) / np.linalg.norm(plain)
        assert gap < tolerance


@pytest.mark.parametrize("form", [PLAIN, CPU], ids=["plain", "cpu"])
def test_layer_norm_is_the_standard_score_scaled_and_shifted(form):
    x, scale, bias = 5 + 2 * normal(2, 3, 8), normal(8, seed=1), normal(8, seed=2)
    expected = stats.zscore(np.float64(x), axis=-1) * scale + bias
    np.testing.assert_allclose(form.layer_norm(x, scale, bias, 1e-12), expected, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-6, 1.0])
def test_layer_norm_for_a_cpu_has_the_gradients_of_the_plain_one(eps):
    x, scale, bias = normal(2, 3, 8), normal(8, seed=1), normal(8, seed=2)
    results = [
        values_and_gradients(lambda *a, form=form: form.layer_norm(*a, eps), x, scale, bias)
        for form in (PLAIN, CPU)
    ]
    for plain, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [PLAIN, CPU], ids=["plain", "cpu"])
def test_gelu_is_x_times_the_normal_distribution_and_its_slope_that_of_differences(form):
    x = np.linspace(-4, 4, 33)
    gelu = lambda x: x * (1 + special.erf(x / np.sqrt(2))) / 2  # noqa: E731
    exact = functools.partial(form.gelu, kind="erf")
    np.testing.assert_allclose(exact(jnp.float32(x)), gelu(x), atol=1e-5)
    slope = jax.vmap(jax.grad(lambda x: exact(x[None])[0]))(jnp.float32(x))
    np.testing.assert_allclose(slope, (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5, atol=1e-4)
    tanh = form.gelu(jnp.float32(x), "tanh")
    assert 1e-5 < np.abs(tanh - gelu(x)).max() < 1e-2
    quick = form.gelu(jnp.float32(x), "quick")
    np.testing.assert_allclose(quick, x * special.expit(1.702 * x), atol=1e-5)


@pytest.mark.parametrize("pos_embed", ["learned", "relative"])
def test_a_model_of_either_form_gives_the_same_logits(pos_embed):
    plain = tiny(kernels="plain", pool="map", qk_norm=True, pos_embed=pos_embed)
    params, images = some_params(plain), some_images(2, 8, 12, 3)
    ours = forward(
        tiny(kernels="cpu", pool="map", qk_norm=True, pos_embed=pos_embed), params, images
    )
    np.testing.assert_allclose(ours, forward(plain, params, images), rtol=1e-4, atol=1e-5)


def test_auto_is_the_form_of_the_platform():
    assert cpu_ops.choose("auto") is CPU
    assert cpu_ops.choose("plain") is PLAIN


def test_gradients_of_kernels_multiply_rows_that_lie_one_after_the_other():
    # XLA's fast products on a CPU contract the last dimension with the first or the last.
    def loss(form, *arrays):
        return jnp.sum(form.dense(*arrays))

    arrays = normal(2, 5, 8), normal(8, 12), normal(12)
    for form, is_fast in ((CPU, True), (PLAIN, False)):
        jaxpr = jax.make_jaxpr(jax.grad(functools.partial(loss, form), (0, 1)))(*arrays)
        dots = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
        firsts = [
            e.params["dimension_numbers"][0][0][-1] == e.invars[0].aval.ndim - 1 for e in dots
        ]
        assert all(firsts) is is_fast
