"""Memory of devices: limits of JAX, of the machine and of its containers."""

import os
import types

from vit_jax.distributed import device_memory
from vit_jax.distributed.device_memory import machine_memory, memory_limit
from vit_jax.models.registry import supports_bfloat16

TOTAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device(platform="gpu", **stats):
    return types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)


def test_machine_memory_is_that_of_the_container(tmp_path):
    assert machine_memory(tmp_path) == TOTAL
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_memory(tmp_path) == TOTAL
    (tmp_path / "memory.max").write_text("1000000\n")
    assert machine_memory(tmp_path) == 1_000_000


def test_memory_limit_is_the_smallest_that_jax_reports():
    assert memory_limit([device(bytes_limit=7), device(bytes_limit=5)]) == 5
    assert memory_limit([device(bytes_limit=7), device()]) is None


def test_cpu_devices_share_three_quarters_of_the_machine(monkeypatch):
    monkeypatch.setattr(device_memory, "machine_memory", lambda: 800)
    assert memory_limit([device("cpu")] * 2) == 300


def test_old_gpus_and_cpus_do_not_compute_in_bfloat16():
    gpus = {"7.0": False, "7.5": False, "8.0": True, "9.0": True, "10.0": True, "gfx90a": True}
    for capability, expected in gpus.items():
        gpu = types.SimpleNamespace(platform="gpu", compute_capability=capability)
        assert supports_bfloat16(gpu) == expected
    assert supports_bfloat16(types.SimpleNamespace(platform="tpu"))
    assert not supports_bfloat16(types.SimpleNamespace(platform="cpu"))
