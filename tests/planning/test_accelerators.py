"""Tests of the accelerator table: units, consistent figures and names."""

import pytest

from vit_jax.errors import ConfigError
from vit_jax.planning.accelerators import (
    ACCELERATORS,
    find_by_device_kind,
    get_accelerator,
    gpu_share,
)

# All accelerators have a ratio of 130 to 600 FLOPs per byte of memory bandwidth. A figure in bits
# or for sparse matrices is outside this range.
FLOPS_PER_BYTE = (130, 600)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_accelerator_figures_are_consistent(name):
    device = ACCELERATORS[name]
    assert FLOPS_PER_BYTE[0] < device.bf16_flops / device.memory_bandwidth < FLOPS_PER_BYTE[1]
    assert device.float32_flops <= device.bf16_flops
    assert 16e9 <= device.memory < 200e9
    assert device.link_bandwidth < device.memory_bandwidth
    assert device.network_bandwidth is None or device.network_bandwidth < device.link_bandwidth
    assert device.source


@pytest.mark.parametrize(
    ("name", "chips", "all_reduce"),
    [("v3", 1024, 340e12), ("v4", 4096, 1.1e15), ("v5e", 256, 51.2e12), ("v6e", 256, 102.4e12)],
)
def test_tpu_link_bandwidth_matches_the_all_reduce_bandwidth_of_a_pod(name, chips, all_reduce):
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
def test_find_by_device_kind_returns_the_accelerator(kind, name):
    assert find_by_device_kind(kind) is ACCELERATORS[name]


def test_find_by_device_kind_of_unknown_devices_is_none():
    assert find_by_device_kind("cpu") is None
    assert find_by_device_kind("NVIDIA H100 PCIe") is None


def test_get_accelerator_with_an_unknown_name_lists_the_valid_names():
    with pytest.raises(
        ConfigError, match=r"--accelerator=H10 is unknown; .*b200\. Did you mean h100"
    ):
        get_accelerator("H10")


@pytest.mark.parametrize(("text", "share"), [("", 0.75), (".9", 0.9), ("0.5", 0.5), ("x", 0.75)])
def test_gpu_share_is_that_of_the_environment(text, share, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", text)
    assert gpu_share() == share


def test_usable_memory_is_the_part_of_a_gpu_and_all_of_a_tpu():
    gpu, tpu = ACCELERATORS["h100"], ACCELERATORS["v4"]
    assert (gpu.usable, tpu.usable) == (0.75 * gpu.memory, tpu.memory)
