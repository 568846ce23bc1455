"""SwiGLU (arXiv:2002.05202) against plain numpy."""

import jax
import numpy as np

from tests.support.tiny import some_images, some_params, tiny
from vit_jax.models import trees
from vit_jax.models.flops import forward_macs
from vit_jax.models.layers import SwiGlu
from vit_jax.models.registry import make_init


def test_swiglu_equals_the_formula_in_numpy():
    config = tiny(mlp="swiglu", mlp_size=24).config
    random = np.random.default_rng(0)
    z = random.standard_normal((2, 3, 32)).astype(np.float32)
    module = SwiGlu(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), z)["params"]
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape) * 0.3, shapes)

    def linear(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    gate = linear(z.astype(float), params["Dense_gate"])
    hidden = gate / (1 + np.exp(-gate)) * linear(z, params["Dense_0"])
    expected = linear(hidden, params["Dense_1"])
    actual = module.apply({"params": jax.tree.map(np.float32, params)}, z)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


def test_swiglu_counts_three_matrices():
    plain, gated = (tiny(mlp=mlp, image_size=8, pool="gap") for mlp in ("mlp", "swiglu"))
    tokens, layers = 4, 2
    assert forward_macs(gated) - forward_macs(plain) == layers * tokens * 32 * 64
    names = trees.flatten(jax.eval_shape(make_init(gated), jax.random.key(0)))
    assert "Transformer/encoderblock_1/MlpBlock_0/Dense_gate/kernel" in names


def test_swiglu_gives_the_same_outputs_scanned_and_unrolled():
    unrolled, scanned = (tiny(mlp="swiglu", scan=scan) for scan in (False, True))
    params, images = some_params(unrolled), some_images(2, 8, 12, 3)
    outputs = [model.apply({"params": params}, images) for model in (unrolled, scanned)]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
