"""Multiply-accumulates against published tables and against what JAX would compute."""

import math

import jax
import jax.numpy as jnp
import pytest

from vit_jax import create_model, list_models
from vit_jax.flops import forward_macs, training_flops
from vit_jax.models import make_init

GMACS = {  # 1000 classes: at 224 px, and at the larger size.
    "vit_ti16": (1.254, 384, 4.682),
    "vit_s32": (1.143, 384, 3.443),
    "vit_s16": (4.599, 384, 15.490),
    "vit_b32": (4.409, 384, 13.044),
    "vit_b16": (17.564, 384, 55.484),
    "vit_b8": (78.148, 384, 294.045),
    "vit_l32": (15.378, 384, 45.276),
    "vit_l16": (61.555, 384, 191.066),
    "vit_h14": (167.295, 518, 1016.717),
}


def test_every_listed_model_has_its_published_cost_here():
    assert sorted(GMACS) == sorted(list_models())


@pytest.mark.parametrize("name", list_models())
def test_models_cost_the_published_multiply_accumulates(name):
    at_224, larger, at_larger = GMACS[name]
    assert forward_macs(create_model(name)) / 1e9 == pytest.approx(at_224, abs=6e-4)
    cost = forward_macs(create_model(name, image_size=larger)) / 1e9
    assert cost == pytest.approx(at_larger, abs=6e-4)


def test_l16_at_512_costs_its_published_multiply_accumulates():
    cost = forward_macs(create_model("vit_l16", image_size=512)) / 1e9
    assert cost == pytest.approx(361.986, abs=6e-4)


def matrix_products(jaxpr):
    """Multiply-accumulates of every dot product in a jaxpr."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += matrix_products(inner)
    return total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "gap", "pre_logits": True},
        {"pool": "map", "num_classes": 0},
        {"pool": "map", "pre_logits": True},
    ],
    ids=str,
)
def test_the_formula_counts_the_matrix_products_of_the_model(options):
    tiny = {"patch": 4, "image_size": (8, 20), "num_layers": 2, "hidden_size": 32}
    tiny |= {"mlp_size": 48, "num_heads": 2, "num_classes": 5}
    model = create_model("vit_ti16", **tiny | options)
    params = jax.eval_shape(make_init(model), jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 8, 20, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(params, image)
    assert forward_macs(model) == matrix_products(jaxpr.jaxpr)


@pytest.mark.parametrize(
    ("name", "epochs", "exaflops"),
    [("vit_l32", 7, 196), ("vit_b16", 7, 224), ("vit_l16", 14, 1567), ("vit_h14", 14, 4262)],
)
def test_training_costs_the_exaflops_of_table_6(name, epochs, exaflops):
    # JFT-300M: 303 million images of 18 291 classes.
    model = create_model(name, num_classes=18_291, pre_logits=True)
    flops = training_flops(model, examples=303_000_000 * epochs)
    assert flops / 1e18 == pytest.approx(exaflops, rel=0.005)
