"""Tests of `Scenario`: FLOPs, memory and gradients of a config on given devices."""

import pytest

from tests.support.scenarios import make_scenario
from vit_jax import config as config_lib
from vit_jax.config.schema import Optimizer
from vit_jax.planning.accelerators import ACCELERATORS
from vit_jax.planning.plan import infer_data_size
from vit_jax.planning.scenario import Scenario


@pytest.mark.parametrize(
    ("file", "exaflops"),
    [  # Table 6.
        ("configs/pretrain.py:data=jft,model=vit_b16", 224),
        ("configs/pretrain.py:data=jft,model=vit_l16,epochs=14", 1567),
        ("configs/pretrain.py:data=jft,model=vit_h14", 4262),
        ("configs/pretrain.py:data=jft,model=r50_b32", 106),
        ("configs/pretrain.py:data=jft,model=bit_r50x1", 50),
    ],
)
def test_flops_of_pretraining_on_jft_are_the_exaflops_of_table_6(file, exaflops):
    config = config_lib.check(config_lib.load(file))[""]
    data = infer_data_size(config, file, None, None)
    scenario = Scenario(config, ACCELERATORS["v3"], 512, data["num_classes"])
    steps = round(config.epochs * data["num_examples"] / config.batch_size)
    assert steps * scenario.flops() / 1e18 == pytest.approx(exaflops, rel=0.03)


def test_scenario_with_sam_has_twice_the_flops_and_gradients():
    once, twice = make_scenario(), make_scenario(optimizer=Optimizer(sam_rho=0.1))
    assert twice.flops() == 2 * once.flops()
    assert twice.memory().gradients == 2 * once.memory().gradients
