"""Models small enough to read, with parameters of which each shows in the output."""

import dataclasses
import functools
from dataclasses import fields

import jax
import numpy as np

from vit_jax import create_model
from vit_jax.config.schema import Model
from vit_jax.models import trees
from vit_jax.models.bit_resnet import BitResNet
from vit_jax.models.encoders import ENCODERS
from vit_jax.models.registry import make_init
from vit_jax.models.size_table import Size
from vit_jax.models.sizes import shape_of

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


def tiny_encoder(family, **changes):
    """A model with all options of a family of published encoders."""
    name = next(f"{family}_{size}" for size in ENCODERS[family].published)
    return create_model(name, **TINY | changes)


def assert_same_model(actual, expected):
    """Compares two models whose shapes may be named differently."""
    shape = {"name": "", "patch": None, **dict.fromkeys(field.name for field in fields(Size))}
    configs = [dataclasses.replace(model.config, **shape) for model in (actual, expected)]
    assert configs[0] == configs[1]
    assert shape_of(actual.config) == shape_of(expected.config)
    assert (actual.num_classes, actual.image_size) == (expected.num_classes, expected.image_size)


def small_bit(units, width=1, image_size=(32, 32), num_classes=0, pixel_stats="half"):
    """A BiT ResNet with any number of blocks and units."""
    cls = type("SmallBitResNet", (BitResNet,), {"units": units, "width": width})
    return cls(Model(name="bit_r50x1", pixel_stats=pixel_stats), num_classes, image_size)


def some_images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def some_params(model, seed=1):
    """No array is zero or one."""
    return some_like(jax.eval_shape(make_init(model), jax.random.key(0)), seed)


def some_like(shapes, seed=1):
    random = np.random.default_rng(seed)
    return trees.map_with_names(
        lambda name, leaf: random.normal(float(name.endswith("scale")), 0.3, leaf.shape).astype(
            np.float32
        ),
        shapes,
    )


def some_resnet_params(shapes, seed=1):
    """Kernels whose deviations differ and are about as small as what is added to them."""
    random = np.random.default_rng(seed)

    def value(name, leaf):
        if not name.startswith(("conv_root", "block")) or not name.endswith("kernel"):
            return leaf
        return leaf * 10 ** random.uniform(-6, -3, leaf.shape[-1]).astype(np.float32)

    return trees.map_with_names(value, some_like(shapes, seed))


@functools.cache
def compiled(model):
    return jax.jit(lambda p, x: model.apply({"params": p}, x))


def forward(model, params, images):
    return compiled(model)(params, images)


def named(model, params, images, **kwargs):
    """Name of a submodule -> what it returned; "" for the whole model."""
    seen = {"capture_intermediates": True, "mutable": True}
    run = jax.jit(lambda p, x: model.apply({"params": p}, x, **seen, **kwargs))
    _, seen = run(params, images)
    seen = trees.flatten(seen["intermediates"])
    return {name.removesuffix("__call__/0").strip("/"): np.array(a) for name, a in seen.items()}


def assert_close(actual, expected, tolerance=1e-3):
    """Equal, but for a part of the deviation of what is expected."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * expected.std())


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
