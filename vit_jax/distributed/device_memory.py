"""Memory of a device that a run can use."""

import os
import pathlib

import jax

CPU_SHARE = 0.75  # Part of a machine's memory for arrays; the rest is for images and the system.
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # Of control groups, versions 2 and 1.


def memory_limit(devices=None) -> int | None:
    """Returns the bytes that arrays can take on each device of this process; None if unknown.

    This is the limit that JAX reports. CPU devices share three quarters of the machine's memory.
    """
    devices = jax.local_devices() if devices is None else devices
    limits = [_limit(device, len(devices)) for device in devices]
    return None if None in limits else min(limits)


def _limit(device, num_devices: int) -> int | None:
    if device.platform == "cpu":
        return round(CPU_SHARE * machine_memory() / num_devices)
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # This kind of device does not count its memory.
        return None


def machine_memory(groups: str = "/sys/fs/cgroup") -> int:
    """Returns the bytes of this machine's memory, or of the container that this process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in LIMITS:
        path = pathlib.Path(groups, name)
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        total = min(total, int(text)) if text.isdecimal() else total
    return total
