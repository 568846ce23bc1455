"""The Vision Transformer against equations 1 to 8 in plain numpy, and what it promises besides."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from vit_jax import create_model, trees
from vit_jax.errors import ConfigError
from vit_jax.models import make_init
from vit_jax.models.vit import Attention, Block, Layers, PatchEmbedding, Size, drop_path, patchify

TINY = {
    "image_size": (8, 12),  # A grid of 2x3: rows and columns cannot be exchanged unseen.
    "patch": 4,
    "num_layers": 2,
    "hidden_size": 32,
    "mlp_size": 64,
    "num_heads": 2,
    "num_classes": 5,
}


def tiny(**changes):
    return create_model("vit_ti16", **TINY | changes)


def some_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def some_params(model, seed=1):
    """No array is zero or one, so that each of them shows in the output."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(make_init(model), jax.random.key(0))
    return trees.map_with_names(
        lambda name, leaf: random.normal(float(name.endswith("scale")), 0.3, leaf.shape).astype(
            np.float32
        ),
        shapes,
    )


def forward(model, params, images, **kwargs):
    return jax.jit(lambda p, x: model.apply({"params": p}, x, **kwargs))(params, images)


# The paper in numpy, one image and one head at a time, in float64.


def paper_norm(x, p, eps):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * p["scale"] + p["bias"]


def paper_gelu(x, kind):
    if kind == "erf":
        return x / 2 * (1 + erf(x / np.sqrt(2)))
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def paper_msa(x, y, p):
    """Equations 5 to 8: queries from x, keys and values from y."""
    heads = []
    for i in range(p["query"]["kernel"].shape[1]):
        q = x @ p["query"]["kernel"][:, i] + p["query"]["bias"][i]
        k = y @ p["key"]["kernel"][:, i] + p["key"]["bias"][i]
        v = y @ p["value"]["kernel"][:, i] + p["value"]["bias"][i]
        A = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
        A /= A.sum(-1, keepdims=True)
        heads.append(A @ v)
    U_msa = p["out"]["kernel"].reshape(-1, x.shape[-1])
    return np.concatenate(heads, axis=-1) @ U_msa + p["out"]["bias"]


def paper_mlp(x, p, gelu):
    x = paper_gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], gelu)
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def paper_vit(params, images, *, gelu="tanh", eps=1e-6):
    """Images B H W 3 -> logits B K; what the tree of parameters holds decides the rest."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    return np.stack([_paper_logits(params, image, gelu, eps) for image in images])


def _paper_logits(params, image, gelu, eps):
    encoder, P = params["Transformer"], params["embedding"]["kernel"].shape[0]
    E = params["embedding"]["kernel"].reshape(P * P * 3, -1)
    z = [
        image[top : top + P, left : left + P].astype(np.float64).reshape(-1) @ E
        for top in range(0, image.shape[0], P)
        for left in range(0, image.shape[1], P)
    ]
    z = np.stack(z) + params["embedding"]["bias"]
    if "cls" in params:
        z = np.concatenate([params["cls"][0], z])
    z = z + encoder["posembed_input"]["pos_embedding"][0]  # Equation 1.
    for i in range(sum(name.startswith("encoderblock") for name in encoder)):
        p = encoder[f"encoderblock_{i}"]
        y = paper_norm(z, p["LayerNorm_0"], eps)
        z = paper_msa(y, y, p["MultiHeadDotProductAttention_0"]) + z  # Equation 2.
        z = paper_mlp(paper_norm(z, p["LayerNorm_1"], eps), p["MlpBlock_0"], gelu) + z  # 3.
    z = paper_norm(z, encoder["encoder_norm"], eps)
    if "cls" in params:
        y = z[0]  # Equation 4.
    elif "MAPHead_0" in params:
        p = params["MAPHead_0"]
        y = paper_msa(p["probe"][0], z, p["MultiHeadDotProductAttention_0"])
        y = (y + paper_mlp(paper_norm(y, p["LayerNorm_0"], eps), p["MlpBlock_0"], gelu))[0]
    else:
        y = z.mean(0)
    if "pre_logits" in params:
        y = np.tanh(y @ params["pre_logits"]["kernel"] + params["pre_logits"]["bias"])
    if "head" in params:
        y = y @ params["head"]["kernel"] + params["head"]["bias"]
    return y


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gelu": "erf", "pre_logits": True},
        {"pool": "map", "gelu": "erf", "norm_eps": 0.1},
        {"pool": "gap", "pre_logits": True, "image_size": (12, 4)},
        {"pool": "gap", "num_classes": 0, "num_heads": 1, "patch": 2, "num_layers": 1},
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()) or "token",
)
def test_the_model_is_the_papers_equations(changes):
    model = tiny(**changes)
    params, images = some_params(model), some_images(2, *model.image_size, 3)
    expected = paper_vit(
        params, images, gelu=changes.get("gelu", "tanh"), eps=changes.get("norm_eps", 1e-6)
    )
    np.testing.assert_allclose(forward(model, params, images), expected, rtol=1e-4, atol=1e-4)


def test_layer_norm_adds_a_millionth_to_the_variance():
    # Tokens of variance 1e-6, where 1e-5 or 0 in place of 1e-6 would show.
    model = tiny(pool="gap")
    params, images = some_params(model), some_images(2, 8, 12, 3)
    faint = lambda name, leaf: leaf * (1e-3 if "embed" in name else 1)  # noqa: E731
    params = trees.map_with_names(faint, params)
    actual = forward(model, params, images)
    np.testing.assert_allclose(actual, paper_vit(params, images), rtol=1e-4, atol=1e-4)
    assert np.abs(actual - paper_vit(params, images, eps=1e-5)).max() > 0.1


def test_the_two_gelus_differ_but_little():
    params, images = some_params(tiny()), some_images(2, 8, 12, 3)
    gap = np.abs(paper_vit(params, images, gelu="erf") - forward(tiny(), params, images))
    assert 1e-4 < gap.max() < 0.1


def test_patches_run_row_by_row():
    images = jnp.arange(32.0).reshape(1, 4, 4, 2)
    np.testing.assert_array_equal(
        patchify(images, 2)[0, :, ::2],
        [[0, 2, 8, 10], [4, 6, 12, 14], [16, 18, 24, 26], [20, 22, 28, 30]],
    )


def test_patch_embedding_is_a_convolution_with_stride_and_window_of_a_patch():
    images, module = some_images(2, 8, 12, 3), PatchEmbedding(4, 16, jnp.float32)
    params = some_params_of(module, images)
    convolved = jax.lax.conv_general_dilated(
        images, params["kernel"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = np.asarray(convolved).reshape(2, 2 * 3, 16) + params["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, images), expected, atol=1e-5)


def some_params_of(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    random = np.random.default_rng(2)
    return jax.tree.map(lambda s: random.normal(0, 0.3, s.shape).astype(np.float32), shapes)


def test_a_block_does_not_know_the_order_of_tokens():
    block = Block(Size(1, 32, 64, 4), Layers(0.0, 0.0, "tanh", 1e-6, jnp.float32), drop_path=0.0)
    z = jax.random.normal(jax.random.key(0), (2, 5, 32))
    variables = jax.jit(lambda: block.init(jax.random.key(1), z, train=False))()
    apply = jax.jit(lambda z: block.apply(variables, z, train=False))
    order = np.array([3, 1, 4, 0, 2])
    np.testing.assert_allclose(apply(z[:, order]), apply(z)[:, order], atol=1e-5)


def test_the_whole_model_does_know_the_order_of_patches():
    model = tiny()
    params, images = some_params(model), some_images(1, 8, 12, 3)
    swapped = np.concatenate([images[:, 4:], images[:, :4]], axis=1)
    assert np.abs(forward(model, params, images) - forward(model, params, swapped)).max() > 0.1


def test_images_of_another_size_are_refused():
    model = tiny()
    params, turned = some_params(model), some_images(1, 12, 8, 3)
    with pytest.raises(ConfigError, match=r"images are 12x8, .* 8x12"):
        model.apply({"params": params}, turned)


# bfloat16


def in_bfloat16(model):
    return model.clone(layers=dataclasses.replace(model.layers, dtype=jnp.bfloat16))


@pytest.mark.parametrize("pool", ["token", "gap", "map"])
def test_bfloat16_stays_close_and_answers_in_float32(pool):
    model = tiny(pool=pool, pre_logits=True, num_layers=1)
    params, images = some_params(model), some_images(4, 8, 12, 3)
    exact, rounded = (forward(m, params, images) for m in (model, in_bfloat16(model)))
    assert rounded.dtype == jnp.float32
    # Logits reach 5 here; bfloat16 has 8 bits.
    np.testing.assert_allclose(rounded, exact, atol=0.15)
    assert np.abs(rounded - exact).max() > 1e-4, "nothing was computed in bfloat16"


def test_bfloat16_is_for_activations_and_float32_for_parameters_and_features():
    model = create_model("vit_ti16", **TINY | {"dtype": "bfloat16", "num_classes": 0})
    shapes = jax.eval_shape(make_init(model), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    features, seen = jax.eval_shape(
        lambda p, x: model.apply({"params": p}, x, capture_intermediates=True),
        shapes,
        jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32),
    )
    assert features.dtype == jnp.float32
    block = seen["intermediates"]["Transformer"]["encoderblock_0"]
    for name in ("MultiHeadDotProductAttention_0", "MlpBlock_0", "LayerNorm_0", "__call__"):
        leaf = jax.tree.leaves(block[name])[-1]
        assert leaf.dtype == jnp.bfloat16, name


def equations(jaxpr):
    """All equations of a jaxpr, inner ones too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_softmax_and_layer_norm_statistics_stay_float32_in_bfloat16():
    model = tiny(dtype="bfloat16", pool="map")
    jaxpr = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(
        some_params(model), some_images(1, 8, 12, 3)
    )
    dtypes = {"exp": [], "rsqrt": []}
    for eqn in equations(jaxpr.jaxpr):
        if eqn.primitive.name in dtypes:
            dtypes[eqn.primitive.name].append(str(eqn.outvars[0].aval.dtype))
    assert dtypes == {"exp": ["float32"] * 3, "rsqrt": ["float32"] * 6}


def test_attention_over_many_keys_keeps_its_small_probabilities_in_bfloat16():
    # Logits of 0 and 8 times one: a bfloat16 sum of 4096 equal terms would stop at 256.
    attention = Attention(num_heads=1, dtype=jnp.bfloat16)
    one = np.ones((1, 1), np.float32)
    dense = {"kernel": one[:, None], "bias": one * 0}
    params = dict.fromkeys(("query", "key", "value"), dense)
    params["out"] = {"kernel": one[None], "bias": np.zeros(1, np.float32)}
    y = np.zeros((1, 4096, 1), np.float32)
    y[:, 0] = 8.0
    actual = attention.apply({"params": params}, np.ones((1, 1, 1), np.float32), y)
    expected = 8 * np.exp(8) / (np.exp(8) + 4095)
    np.testing.assert_allclose(np.float32(actual), expected, rtol=0.01)


# Initial values


@pytest.fixture(scope="module")
def born():
    """Name -> initial array, wide enough for statistics."""
    wide = {"image_size": 64, "hidden_size": 64, "mlp_size": 192, "pre_logits": True}
    model = tiny(**wide)
    return trees.flatten(jax.jit(make_init(model))(jax.random.key(0)))


def test_the_head_starts_at_zero_and_so_does_the_class_token(born):
    for name in ("head/kernel", "head/bias", "cls"):
        assert not np.any(born[name]), name


def test_positions_start_normal_with_deviation_two_hundredths(born):
    positions = np.asarray(born["Transformer/posembed_input/pos_embedding"])  # 16 448 numbers.
    assert positions.shape == (1, 257, 64)
    assert positions.std() == pytest.approx(0.02, rel=0.03)
    assert abs(positions.mean()) < 0.001
    assert np.abs(positions).max() > 0.06  # Not cut off at two deviations.


@pytest.mark.parametrize(
    ("name", "fans"),
    [
        ("MultiHeadDotProductAttention_0/query", 64 + 64),
        ("MultiHeadDotProductAttention_0/key", 64 + 64),
        ("MultiHeadDotProductAttention_0/value", 64 + 64),
        ("MultiHeadDotProductAttention_0/out", 64 + 64),
        ("MlpBlock_0/Dense_0", 64 + 192),
        ("MlpBlock_0/Dense_1", 192 + 64),
    ],
)
def test_encoder_kernels_start_xavier_uniform(born, name, fans):
    kernel = np.asarray(born[f"Transformer/encoderblock_1/{name}/kernel"])
    bound = np.sqrt(6 / fans)
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)


@pytest.mark.parametrize(("name", "fan_in"), [("embedding", 4 * 4 * 3), ("pre_logits", 64)])
def test_patches_and_pre_logits_start_lecun_normal(born, name, fan_in):
    kernel = np.asarray(born[f"{name}/kernel"])
    assert kernel.std() == pytest.approx(np.sqrt(1 / fan_in), rel=0.05)
    # Truncated at two deviations of the normal that has deviation 0.88 once truncated.
    assert np.abs(kernel).max() <= 2 * np.sqrt(1 / fan_in) / 0.8796
    assert np.abs(kernel).max() > 1.8 * np.sqrt(1 / fan_in)


def test_biases_start_at_zero_but_those_of_the_mlp_at_a_millionth(born):
    for name, array in born.items():
        if "MlpBlock_0" in name and name.endswith("bias"):
            assert np.std(array) == pytest.approx(1e-6, rel=0.3), name
        elif name.endswith("bias"):
            assert not np.any(array), name
        elif name.endswith("scale"):
            assert np.all(array == 1), name


def test_no_two_layers_start_alike(born):
    kernel = "MlpBlock_0/Dense_0/kernel"
    first, second = (born[f"Transformer/encoderblock_{i}/{kernel}"] for i in (0, 1))
    assert np.mean(np.abs(first - second) < 1e-6) < 0.01


# Dropout and stochastic depth


def run_with_key(model, params, images, seed, **kwargs):
    rngs = {"dropout": jax.random.key(seed)}
    return model.apply({"params": params}, images, train=True, rngs=rngs, **kwargs)


def test_dropout_follows_positions_attention_gelu_and_mlp_and_nothing_else():
    model = tiny(dropout=0.25, pre_logits=True)
    params, images = some_params(model), some_images(16, 8, 12, 3)
    _, seen = jax.jit(
        lambda p, x: run_with_key(model, p, x, 0, capture_intermediates=True, mutable=True)
    )(params, images)
    seen = trees.flatten(seen["intermediates"])
    seen = {name.removesuffix("/__call__/0"): np.asarray(leaf) for name, leaf in seen.items()}
    sources = {"Transformer/Dropout_0": seen["Transformer/posembed_input"]}
    for i in (0, 1):
        block = f"Transformer/encoderblock_{i}"
        attention = seen[f"{block}/MultiHeadDotProductAttention_0"]
        sources[f"{block}/Dropout_0"] = attention
        hidden = seen[f"{block}/MlpBlock_0/Dense_0"]
        sources[f"{block}/MlpBlock_0/Dropout_0"] = paper_gelu(hidden, "tanh")
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
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return drop_path(self, x, 0.2, train)

    branch = jnp.ones((2000, 2, 3))
    rngs = {"dropout": jax.random.key(0)}
    out = np.asarray(Dropped().apply({}, branch, True, rngs=rngs))
    np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1, :1], out.shape))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.8])
    assert np.mean(out == 0) == pytest.approx(0.2, abs=0.03)
    np.testing.assert_array_equal(Dropped().apply({}, branch, False), branch)


@pytest.mark.parametrize("branch", ["MultiHeadDotProductAttention_0/out", "MlpBlock_0/Dense_1"])
def test_drop_path_grows_linearly_with_depth_on_both_branches(branch):
    # One branch adds exactly 1 and the other 0, so a block adds 0 or 1 / (1 - its rate).
    model = tiny(drop_path=0.5, num_layers=3, image_size=4)
    shapes = jax.eval_shape(make_init(model), jax.random.key(0))
    params = trees.map_with_names(
        lambda name, leaf: np.full(leaf.shape, name.endswith(f"{branch}/bias"), np.float32), shapes
    )
    _, seen = jax.jit(
        lambda p, x: run_with_key(model, p, x, 0, capture_intermediates=True, mutable=True)
    )(params, np.zeros((1000, 4, 4, 3), np.float32))
    seen = seen["intermediates"]["Transformer"]
    z = [np.zeros((1000, 2, 32))]
    z += [np.asarray(seen[f"encoderblock_{i}"]["__call__"][0]) for i in range(3)]
    for i, rate in enumerate([0.0, 0.25, 0.5]):
        added = z[i + 1] - z[i]
        np.testing.assert_allclose(added[added > 0.5], 1 / (1 - rate), rtol=1e-5)
        assert np.mean(added < 0.5) == pytest.approx(rate, abs=0.05)
        assert added.std(axis=(1, 2)).max() < 1e-5, "an example is dropped whole or not at all"
    both = (z[2] - z[1])[:, 0, 0] < 0.5, (z[3] - z[2])[:, 0, 0] < 0.5
    assert np.mean(both[0] & both[1]) == pytest.approx(0.125, abs=0.04), "layers draw apart"
