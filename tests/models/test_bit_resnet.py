"""The BiT ResNet against a pre-activation ResNet in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import reference_vit
from tests.support.tiny import (
    assert_close,
    equations,
    named,
    small_bit,
    some_images,
    some_resnet_params,
)
from vit_jax import create_model
from vit_jax.errors import ConfigError
from vit_jax.models.registry import make_init, param_shapes

SIZE = (45, 38)  # Feature maps of 23x19, 12x10, 6x5 and 3x3.


def small(size=SIZE, units=(1, 1, 1), width=1, num_classes=0, pixel_stats="half"):
    return small_bit(units, width, size, num_classes, pixel_stats)


def bit_params(model):
    return some_resnet_params(jax.eval_shape(make_init(model), jax.random.key(0)))


def assert_all_close(model, params, images, pixels):
    seen, maps = named(model, params, images), reference_vit.bit_resnet(params, pixels)
    assert list(maps)[:-1] == [f"block{b + 1}" for b in range(len(model.units))]
    for name, expected in maps.items():
        for i in range(len(images)):
            assert_close(seen["" if name == "answer" else name][i], expected[i])


def test_the_model_is_that_of_numpy_at_odd_sizes():
    model = small()
    # The first image is faint: its variance is near what GroupNorm adds to it.
    images = some_images(2, *SIZE, 3) * np.float32([1e-4, 1])[:, None, None, None]
    assert_all_close(model, bit_params(model), images, images)


def test_the_model_is_that_of_numpy_with_more_units_a_head_and_other_pixels():
    model = small((32, 50), (1, 2), num_classes=5, pixel_stats="imagenet")
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = some_images(1, 32, 50, 3)
    pixels = ((np.float64(images) + 1) / 2 - mean) / deviation
    assert_all_close(model, bit_params(model), images, pixels)


def test_zeros_at_the_border_win_over_negative_values_in_the_max_pooling(monkeypatch):
    dark = np.full((4, 4, 1), -1.0)
    np.testing.assert_array_equal(
        reference_vit.max_pool(dark, reference_vit.EVEN)[..., 0], [[0, 0], [0, -1]]
    )
    model, images = small((10, 10), (1,)), some_images(1, 10, 10, 3)
    params = bit_params(model)
    assert_all_close(model, params, images, images)
    monkeypatch.setattr(
        reference_vit, "max_pool", lambda x, _: reference_vit.pooled(x, reference_vit.EVEN, -np.inf)
    )
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_all_close(model, params, images, images)


def names_of(units, width, num_classes):
    """A unit projects its residual without GroupNorm, and has one more at the end of all."""
    last = 64 * width * 2 ** (len(units) + 1)
    arrays = {"conv_root/kernel": (7, 7, 3, 64 * width)}
    arrays |= {"gn_final/scale": (last,), "gn_final/bias": (last,)}
    arrays |= {"head/kernel": (last, num_classes), "head/bias": (num_classes,)}
    inputs = 64 * width
    for b, num_units in enumerate(units, start=1):
        F = 64 * width * 2 ** (b - 1)
        for u in range(1, num_units + 1):
            unit = f"block{b}/unit{u}"
            if u == 1:
                arrays[f"{unit}/conv_proj/kernel"] = (1, 1, inputs, 4 * F)
            arrays[f"{unit}/conv1/kernel"] = (1, 1, inputs, F)
            arrays[f"{unit}/conv2/kernel"] = (3, 3, F, F)
            arrays[f"{unit}/conv3/kernel"] = (1, 1, F, 4 * F)
            for name, size in (("gn1", inputs), ("gn2", F), ("gn3", F)):
                arrays |= {f"{unit}/{name}/scale": (size,), f"{unit}/{name}/bias": (size,)}
            inputs = 4 * F
    return arrays


@pytest.mark.parametrize(
    ("name", "units", "width"),
    [("bit_r50x1", (3, 4, 6, 3), 1), ("bit_r26x4", (2, 2, 2, 2), 4)],
)
def test_names_and_shapes_follow_from_depth_and_width(name, units, width):
    assert param_shapes(create_model(name, num_classes=7)) == names_of(units, width, 7)


def test_the_features_are_2048_for_each_width():
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for width in (1, 3):
        model = small((32, 32), (1, 1, 1, 1), width)
        shapes = jax.eval_shape(make_init(model), jax.random.key(0))
        assert "head" not in shapes
        features = jax.eval_shape(lambda p, x, m=model: m.apply({"params": p}, x), shapes, image)
        assert features.shape == (1, 2048 * width)


def test_the_head_starts_at_zero():
    init = make_init(small(num_classes=5))
    head = jax.jit(lambda key: init(key)["head"])(jax.random.key(0))
    assert head["kernel"].shape == (1024, 5)
    assert not np.any(head["kernel"])


def test_convolutions_are_in_bfloat16_and_the_logits_in_float32():
    model = create_model("bit_r26x1", image_size=32, num_classes=5, dtype="bfloat16")
    shapes = jax.eval_shape(make_init(model), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(shapes, image)
    convs = [
        eqn.outvars[0].aval.dtype
        for eqn in equations(jaxpr.jaxpr)
        if eqn.primitive.name == "conv_general_dilated"
    ]
    assert convs == [jnp.bfloat16] * (1 + 8 * 3 + 4)
    assert jaxpr.out_avals[0].dtype == jnp.float32


def test_images_of_another_size_are_refused():
    model = small(size=(32, 32))
    with pytest.raises(ConfigError, match=r"images are 38x45; .* 32x32"):
        model.apply({"params": {}}, some_images(1, 38, 45, 3))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("patch", 16),
        ("num_layers", 2),
        ("pool", "gap"),
        ("pre_logits", True),
        ("dropout", 0.1),
        ("drop_path", 0.1),
        ("gelu", "erf"),
        ("norm_eps", 1e-5),
        ("pos_embed", "none"),
        ("pos_embed_at", "shared"),
        ("registers", 4),
        ("layer_scale", 0.0),
        ("qk_norm", True),
    ],
)
def test_an_option_that_a_resnet_has_not_is_refused(option, value):
    words = rf"^model\.{option} is {value!r}; bit_r50x1 does not have this option\.$"
    with pytest.raises(ConfigError, match=words):
        create_model("bit_r50x1", **{option: value})
