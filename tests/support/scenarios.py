"""Tiny planning scenarios for tests."""

import dataclasses

from vit_jax.config.schema import Config, Data, Model
from vit_jax.planning.accelerators import ACCELERATORS
from vit_jax.planning.scenario import Scenario

TINY = Model(name="vit_ti16", patch=8, num_layers=2, hidden_size=32, mlp_size=64, num_heads=2)
H100 = ACCELERATORS["h100"]


def make_config(**fields) -> Config:
    fields = {"model": TINY, "data": Data(image_size=32), "batch_size": 64, "epochs": 2} | fields
    return Config(**fields)


def make_scenario(memory: float = H100.memory, num_devices: int = 8, **fields) -> Scenario:
    device = dataclasses.replace(H100, memory=memory, kind="")  # All of it is usable.
    return Scenario(make_config(**fields), device, num_devices, num_classes=10)
