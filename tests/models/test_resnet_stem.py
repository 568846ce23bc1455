"""The ResNet before a hybrid, in plain numpy, and the names under which it was published."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import reference_vit
from tests.support.tiny import (
    assert_close,
    equations,
    forward,
    named,
    some_images,
    some_params,
    some_resnet_params,
)
from vit_jax import create_model
from vit_jax.models import resnet_stem
from vit_jax.models.registry import param_shapes
from vit_jax.models.resnet_blocks import StdConv
from vit_jax.models.resnet_stem import Stem, Unit


class Root(nn.Module):
    """The stem without an encoder."""

    units: tuple[int, ...]

    def setup(self):
        for name, module in resnet_stem.modules(Stem(self.units), jnp.float32).items():
            setattr(self, name, module)

    def __call__(self, images):
        return resnet_stem.apply(self, Stem(self.units), images)


def shapes_of(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize(
    ("units", "size", "grid"),
    [
        ((), (13, 18), (4, 5)),
        ((1, 1), (16, 32), (2, 4)),
        ((2, 1, 1), (21, 27), (2, 2)),
    ],
)
def test_the_resnet_is_that_of_numpy_at_even_and_odd_sizes(units, size, grid):
    # The first image is faint: its variance is near what GroupNorm adds to it.
    images = some_images(2, *size, 3) * np.float32([1e-4, 1])[:, None, None, None]
    params = some_resnet_params(shapes_of(Root(units), images))
    maps = reference_vit.hybrid_resnet(params, images)
    seen = named(Root(units), params, images)
    for name in list(maps)[1:]:
        assert_close(seen[name][0], maps[name][0])
        assert_close(seen[name][1], maps[name][1])
    assert seen[""].shape == (2, *grid, Stem(units).features)
    assert_close(seen[""], list(maps.values())[-1])


def test_a_hybrid_takes_its_patches_of_the_features():
    shape = {"hidden_size": 32, "mlp_size": 64, "num_heads": 2, "num_layers": 1}
    model = create_model("r_ti16", image_size=(64, 32), num_classes=5, **shape)
    params, images = some_params(model), some_images(2, 64, 32, 3)
    resnet = {name: p for name, p in params.items() if name.endswith("root")}
    features = reference_vit.hybrid_resnet(resnet, images)["pool"]
    assert features.shape == (2, 16, 8, 64)
    expected = reference_vit.vit(params, features)
    np.testing.assert_allclose(forward(model, params, images), expected, rtol=1e-3, atol=1e-3)


def weights_of(kernel, **options):
    """What a convolution multiplies with: its answers to images of a single one."""
    size, _, C, F = kernel.shape
    conv = StdConv(F, size, jnp.float32, padding="VALID", **options)
    ones = np.eye(size * size * C, dtype=np.float32).reshape(-1, size, size, C)
    return np.asarray(conv.apply({"params": {"kernel": kernel}}, ones)).reshape(kernel.shape)


OUTSIDE = {"eps": 1e-5, "eps_outside_root": True}
INSIDE = {"eps": 1e-10, "eps_outside_root": False}


@pytest.mark.parametrize("options", [OUTSIDE, INSIDE], ids=["hybrid", "bit"])
def test_standardised_weights_have_mean_zero_and_deviation_one(options):
    kernel = np.random.default_rng(0).normal(3, 2, (3, 3, 4, 2)).astype(np.float32)
    weights = weights_of(kernel, **options)
    np.testing.assert_allclose(weights.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(weights.std((0, 1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(np.corrcoef(weights[..., 0].ravel(), kernel[..., 0].ravel()), 1)


@pytest.mark.parametrize(
    ("options", "deviation"), [(OUTSIDE, 0.5), (INSIDE, np.sqrt(0.5))], ids=["hybrid", "bit"]
)
def test_small_weights_stay_small_by_what_is_added(options, deviation):
    signs = np.float32([1, -1, 1, -1])[None, None, :, None]
    weights = weights_of(1e-5 * signs, **options)  # Of mean 0 and deviation 1e-5.
    np.testing.assert_allclose(weights, deviation * signs, rtol=1e-3)


@pytest.mark.parametrize(("channels", "stride"), [(256, 1), (64, 2)])
def test_a_fresh_unit_is_its_residual_activated(channels, stride):
    x = some_images(1, 5, 6, channels)
    unit = Unit(64, stride, jnp.float32)
    key = jax.random.key(0, impl="rbg")  # Quicker to compile.
    params = jax.jit(unit.init)(key, x)["params"]
    assert ("conv_proj" in params) == (channels != 256)
    np.testing.assert_array_equal(params["gn3"]["scale"], np.zeros(256))
    np.testing.assert_array_equal(params["gn1"]["scale"], np.ones(64))
    residual = x[0]
    if "conv_proj" in params:
        p = reference_vit.in_float64(params)
        residual = reference_vit.std_conv(
            np.float64(x[0]), p["conv_proj"], stride, reference_vit.SAME
        )
        residual = reference_vit.group_norm(residual, p["gn_proj"], 1e-6)
    actual = unit.apply({"params": params}, x)[0]
    np.testing.assert_allclose(actual, reference_vit.relu(residual), rtol=1e-4, atol=1e-4)


def published_resnet(units):
    """Names and shapes of the ResNet in the files of the hybrids; names count from 1."""
    arrays = {"conv_root/kernel": (7, 7, 3, 64), "gn_root/scale": (64,), "gn_root/bias": (64,)}
    inputs = 64
    for b, num_units in enumerate(units, start=1):
        F = 64 * 2 ** (b - 1)
        for u in range(1, num_units + 1):
            unit = f"block{b}/unit{u}"
            arrays[f"{unit}/conv1/kernel"] = (1, 1, inputs, F)
            arrays[f"{unit}/conv2/kernel"] = (3, 3, F, F)
            arrays[f"{unit}/conv3/kernel"] = (1, 1, F, 4 * F)
            widths = {"gn1": F, "gn2": F, "gn3": 4 * F}
            if u == 1:
                arrays[f"{unit}/conv_proj/kernel"] = (1, 1, inputs, 4 * F)
                widths["gn_proj"] = 4 * F
            for name, width in widths.items():
                arrays |= {f"{unit}/{name}/scale": (width,), f"{unit}/{name}/bias": (width,)}
            inputs = 4 * F
    return arrays


@pytest.mark.parametrize(
    ("name", "units", "patch"),
    [
        ("r_ti16", (), (8, 8, 64, 192)),
        ("r26_s32", (2, 2, 2, 2), (1, 1, 2048, 384)),
        ("r26_s16", (2, 2, 4), (1, 1, 1024, 384)),
        ("r50_b16", (3, 4, 9), (1, 1, 1024, 768)),
        ("r50_l32", (3, 4, 6, 3), (1, 1, 2048, 1024)),
        ("r101_b16", (3, 4, 26), (1, 1, 1024, 768)),
    ],
)
def test_the_names_of_the_resnet_are_those_of_the_published_files(name, units, patch):
    shapes = param_shapes(create_model(name, num_layers=1))
    parts = ("conv_root", "gn_root", "block")
    found = {array: shape for array, shape in shapes.items() if array.startswith(parts)}
    assert found == published_resnet(units)
    assert shapes["embedding/kernel"] == patch


def test_beside_its_resnet_and_its_patches_r50_b16_is_b16():
    options = {"num_classes": 21843, "pre_logits": True}
    r50_b16, b16 = (param_shapes(create_model(name, **options)) for name in ("r50_b16", "vit_b16"))
    expected = b16 | published_resnet((3, 4, 9)) | {"embedding/kernel": (1, 1, 1024, 768)}
    assert r50_b16 == expected
    assert len(r50_b16) == 358


@pytest.mark.parametrize(
    ("name", "grid"),
    [("r_ti16", (7, 7)), ("r26_s32", (7, 7)), ("r50_b16", (14, 14)), ("r50_l32", (7, 7))],
)
def test_hybrids_have_these_grids_at_224_pixels(name, grid):
    assert create_model(name).grid == grid


def test_convolutions_are_in_bfloat16_and_the_logits_in_float32():
    model = create_model("r26_ti32", num_layers=1, image_size=32, dtype="bfloat16")
    params = some_params(model)
    jaxpr = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(
        params, some_images(1, 32, 32, 3)
    )
    convs = [
        eqn.outvars[0].aval.dtype
        for eqn in equations(jaxpr.jaxpr)
        if eqn.primitive.name == "conv_general_dilated"
    ]
    assert convs == [jnp.bfloat16] * (1 + 8 * 3 + 4)
    assert jaxpr.out_avals[0].dtype == jnp.float32
