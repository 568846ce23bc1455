"""Dropout and stochastic depth: where they act, how often, and that they need `train`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import reference_vit
from tests.support.tiny import equations, forward, named, some_images, some_params, tiny
from vit_jax.models import trees
from vit_jax.models.layers import drop_path
from vit_jax.models.registry import make_init


def quick_key(seed):
    return jax.random.key(seed, impl="rbg")  # Quicker to compile than the default.


def run_with_key(model, params, images, seed, **kwargs):
    rngs = {"dropout": quick_key(seed)}
    return model.apply({"params": params}, images, train=True, rngs=rngs, **kwargs)


def test_dropout_follows_positions_attention_gelu_and_mlp_and_nothing_else():
    model = tiny(dropout=0.25, pre_logits=True)
    params, images = some_params(model), some_images(16, 8, 12, 3)
    seen = named(model, params, images, train=True, rngs={"dropout": quick_key(0)})
    cls = np.broadcast_to(params["cls"], (16, 1, 32))
    E_pos = params["Transformer"]["posembed_input"]["pos_embedding"]
    z = np.concatenate([cls, seen["embedding"]], axis=1) + E_pos
    sources = {"Transformer/Dropout_0": z}
    for i in (0, 1):
        block = f"Transformer/encoderblock_{i}"
        attention = seen[f"{block}/MultiHeadDotProductAttention_0"]
        sources[f"{block}/Dropout_0"] = attention
        hidden = seen[f"{block}/MlpBlock_0/Dense_0"]
        sources[f"{block}/MlpBlock_0/Dropout_0"] = reference_vit.gelu(hidden, "tanh")
        sources[f"{block}/MlpBlock_0/Dropout_1"] = seen[f"{block}/MlpBlock_0/Dense_1"]
    assert {name for name in seen if "Dropout" in name} == set(sources)
    for name, source in sources.items():
        kept = seen[name] != 0
        assert 1 - kept.mean() == pytest.approx(0.25, abs=0.03), name  # 3584 numbers or more.
        assert 0.1 < kept[:, 0].mean() < 0.9, name  # Single numbers, not whole tokens.
        np.testing.assert_allclose(seen[name][kept], source[kept] / 0.75, rtol=1e-4, atol=1e-5)
    draws = jax.make_jaxpr(lambda p, x: run_with_key(model, p, x, 0))(params, images)
    names = [eqn.primitive.name for eqn in equations(draws.jaxpr)]
    assert names.count("random_bits") == 1 + 2 * 3, "attention weights, qkv and head have none"


def test_dropout_needs_train_and_its_key_decides():
    noisy, calm = (tiny(dropout=rate, drop_path=rate, num_layers=1) for rate in (0.5, 0.0))
    params, images = some_params(calm), some_images(2, 8, 12, 3)
    plain = forward(calm, params, images)
    np.testing.assert_array_equal(forward(noisy, params, images), plain)
    still = jax.jit(lambda: run_with_key(calm, params, images, 0))()
    np.testing.assert_allclose(still, plain, atol=1e-5)
    train = jax.jit(lambda seed: run_with_key(noisy, params, images, seed))
    first, again, other = train(0), train(0), train(1)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).min() > 0
    assert np.abs(first - plain).min() > 0


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    out = np.asarray(drop_path(jnp.ones((2000, 2, 3)), 0.2, jax.random.key(0)))
    np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1, :1], out.shape))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.8])
    assert np.mean(out == 0) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("branch", ["MultiHeadDotProductAttention_0/out", "MlpBlock_0/Dense_1"])
def test_drop_path_grows_linearly_with_depth_on_both_branches(branch):
    # One branch adds exactly 1 and the other 0, so a block adds 0 or 1 / (1 - its rate).
    model = tiny(drop_path=0.5, num_layers=3, image_size=4)
    shapes = jax.eval_shape(make_init(model), jax.random.key(0))
    params = trees.map_with_names(
        lambda name, leaf: np.full(leaf.shape, name.endswith(f"{branch}/bias"), np.float32), shapes
    )
    images, rngs = np.zeros((1000, 4, 4, 3), np.float32), {"dropout": quick_key(0)}
    seen = named(model, params, images, train=True, rngs=rngs)
    z = [np.zeros((1000, 2, 32))]
    z += [seen[f"Transformer/encoderblock_{i}"] for i in range(3)]
    for i, rate in enumerate([0.0, 0.25, 0.5]):
        added = z[i + 1] - z[i]
        np.testing.assert_allclose(added[added > 0.5], 1 / (1 - rate), rtol=1e-5)
        assert np.mean(added < 0.5) == pytest.approx(rate, abs=0.05)
        assert added.std(axis=(1, 2)).max() < 1e-5, "an example is dropped whole or not at all"
    both = (z[2] - z[1])[:, 0, 0] < 0.5, (z[3] - z[2])[:, 0, 0] < 0.5
    assert np.mean(both[0] & both[1]) == pytest.approx(0.125, abs=0.04), "layers draw apart"
