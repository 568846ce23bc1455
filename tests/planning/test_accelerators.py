"""The table of accelerators: units, doubled figures, and names."""

import pytest

from vit_jax.errors import ConfigError
from vit_jax.planning.accelerators import ACCELERATORS, accelerator, of_device_kind

# Bytes of memory traffic and FLOPs come in a ratio that generations hardly change: 130 to 600
# FLOPs a byte. A figure in bits, or for sparse matrices, falls out of it.
BALANCE = (130, 600)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_the_figures_of_an_accelerator_are_of_one_kind(name):
    device = ACCELERATORS[name]
    assert BALANCE[0] < device.bf16_flops / device.memory_bandwidth < BALANCE[1]
    assert device.float32_flops <= device.bf16_flops
    assert 16e9 <= device.memory < 200e9
    assert device.link_bandwidth < device.memory_bandwidth
    assert device.network_bandwidth is None or device.network_bandwidth < device.link_bandwidth
    assert device.source


@pytest.mark.parametrize(
    ("name", "chips", "all_reduce"),
    [("v3", 1024, 340e12), ("v4", 4096, 1.1e15), ("v5e", 256, 51.2e12), ("v6e", 256, 102.4e12)],
)
def test_links_of_a_tpu_carry_the_all_reduce_bandwidth_of_its_pod(name, chips, all_reduce):
    device = ACCELERATORS[name]
    per_chip = device.link_bandwidth * (2 if name == "v3" else 1)
    assert per_chip == pytest.approx(all_reduce / chips, rel=0.12)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v3", "v3"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_a_device_is_found_by_what_jax_calls_it(kind, name):
    assert of_device_kind(kind) is ACCELERATORS[name]


def test_a_cpu_and_another_card_of_the_same_name_are_no_accelerator_here():
    assert of_device_kind("cpu") is None
    assert of_device_kind("NVIDIA H100 PCIe") is None


def test_a_wrong_name_is_answered_with_the_right_ones():
    with pytest.raises(
        ConfigError, match=r"--accelerator=H10 is unknown; .*b200\. Did you mean h100"
    ):
        accelerator("H10")
