"""Table of accelerators: peak FLOP/s, memory and bandwidths, as stated by their vendors.

Peaks are for dense matrices (GPU vendors also print twice as much, for sparse ones). A device is
what JAX counts as one: a chip, or one of the two cores of a TPU v3 chip. Link bandwidths are in
one direction, summed over all links of a device; vendors often print the sum of both directions.
The figures were compared with the cited pages on 2026-11-21.
"""

import dataclasses
import os
import re

from vit_jax.errors import ConfigError, nearest

GiB = 2**30
GPU_SHARE = 0.75  # Part of a GPU's memory that JAX takes by default (see its documentation).


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device; units are FLOP/s, bytes and bytes per second."""

    title: str
    kind: str  # Regular expression that matches JAX's `device_kind`.
    bf16_flops: float
    float32_flops: float  # Of float32 products at JAX's default precision, see below.
    memory: float
    memory_bandwidth: float
    link_bandwidth: float  # ICI, or NVLink.
    link_devices: int  # Number of devices that links connect: a pod, or the GPUs of a machine.
    network_bandwidth: float | None  # Between pods or machines; None if unknown.
    source: str  # Where the figures are from.

    @property
    def usable(self) -> float:
        """Bytes of memory that JAX preallocates: a fraction on a GPU, all on a TPU."""
        return self.memory * (gpu_share() if self.kind.startswith("NVIDIA") else 1.0)

    def with_memory(self, memory: float) -> "Accelerator":
        """Returns a device with the same speeds and other bytes of memory."""
        title = f"device(s) of {memory / 1e9:g} GB with the speed of {self.title}"
        return dataclasses.replace(self, title=title, memory=memory)

    def flops(self, dtype: str) -> float:
        """Returns the peak FLOP/s of matrix products in a `config.model.dtype`."""
        return self.bf16_flops if dtype == "bfloat16" else self.float32_flops


# By default (`jax_default_matmul_precision=None`), JAX multiplies float32 matrices in one pass of
# bfloat16 on TPUs, and in TF32 on NVIDIA GPUs.
ACCELERATORS = {
    "v3": Accelerator(
        title="TPU v3, one core",
        kind="TPU v3",
        bf16_flops=61.5e12,
        float32_flops=61.5e12,
        memory=16 * GiB,
        memory_bandwidth=450e9,
        link_bandwidth=164e9,
        link_devices=2048,
        network_bandwidth=None,
        source="cloud.google.com/tpu/docs/v3: a chip has 123 TFLOP/s, 32 GiB, 900 GB/s; links "
        "4 x 656 Gbit/s a chip (doi:10.1145/3360307), which is its all-reduce of 340 TB/s a pod",
    ),
    "v4": Accelerator(
        title="TPU v4",
        kind="TPU v4",
        bf16_flops=275e12,
        float32_flops=275e12,
        memory=32 * GiB,
        memory_bandwidth=1200e9,
        link_bandwidth=300e9,
        link_devices=4096,
        network_bandwidth=None,
        source="cloud.google.com/tpu/docs/v4; links 6 x 50 GB/s (arXiv:2304.01433), of which its "
        "all-reduce of 1.1 PB/s a pod is 0.9",
    ),
    "v5e": Accelerator(
        title="TPU v5e",
        kind="TPU v5( lite|e)",
        bf16_flops=197e12,
        float32_flops=197e12,
        memory=16e9,
        memory_bandwidth=819e9,
        link_bandwidth=200e9,
        link_devices=256,
        network_bandwidth=3.1e9,
        source="cloud.google.com/tpu/docs/v5e: ICI 400 GB/s both ways; 2 x 100 Gbit/s for 8 chips",
    ),
    "v5p": Accelerator(
        title="TPU v5p",
        kind="TPU v5p?",
        bf16_flops=459e12,
        float32_flops=459e12,
        memory=95e9,
        memory_bandwidth=2765e9,
        link_bandwidth=600e9,
        link_devices=6144,
        network_bandwidth=6.2e9,
        source="cloud.google.com/tpu/docs/v5p: ICI 1,200 GB/s both ways; 50 Gbit/s a chip; "
        "largest slice 6,144",
    ),
    "v6e": Accelerator(
        title="TPU v6e",
        kind="TPU v6( lite|e)",
        bf16_flops=918e12,
        float32_flops=918e12,
        memory=32e9,
        memory_bandwidth=1638e9,
        link_bandwidth=400e9,
        link_devices=256,
        network_bandwidth=12.5e9,
        source="cloud.google.com/tpu/docs/v6e: ICI 800 GB/s both ways; 4 x 200 Gbit/s for 8 chips",
    ),
    "a100": Accelerator(
        title="A100 SXM 80 GB",
        kind="NVIDIA A100-SXM4-80GB",
        bf16_flops=312e12,
        float32_flops=156e12,
        memory=80 * GiB,
        memory_bandwidth=2039e9,
        link_bandwidth=300e9,
        link_devices=8,
        network_bandwidth=25e9,
        source="NVIDIA A100 datasheet (NVLink 600 GB/s both ways); DGX A100: 200 Gbit/s a GPU",
    ),
    "a100-40gb": Accelerator(
        title="A100 SXM 40 GB",
        kind="NVIDIA A100-SXM4-40GB",
        bf16_flops=312e12,
        float32_flops=156e12,
        memory=40 * GiB,
        memory_bandwidth=1555e9,
        link_bandwidth=300e9,
        link_devices=8,
        network_bandwidth=25e9,
        source="NVIDIA A100 datasheet (NVLink 600 GB/s both ways); DGX A100: 200 Gbit/s a GPU",
    ),
    "h100": Accelerator(
        title="H100 SXM",
        kind="NVIDIA H100 80GB HBM3",
        bf16_flops=989e12,
        float32_flops=494e12,
        memory=80 * GiB,
        memory_bandwidth=3350e9,
        link_bandwidth=450e9,
        link_devices=8,
        network_bandwidth=50e9,
        source="NVIDIA H100 datasheet: 1,979 and 989 TFLOP/s sparse, NVLink 900 GB/s both ways; "
        "DGX H100: 400 Gbit/s a GPU",
    ),
    "h200": Accelerator(
        title="H200 SXM",
        kind="NVIDIA H200",
        bf16_flops=989e12,
        float32_flops=494e12,
        memory=141e9,
        memory_bandwidth=4800e9,
        link_bandwidth=450e9,
        link_devices=8,
        network_bandwidth=50e9,
        source="NVIDIA H200 datasheet: as H100, with 141 GB; DGX H200: 400 Gbit/s a GPU",
    ),
    "b200": Accelerator(
        title="B200 SXM",
        kind="NVIDIA B200",
        bf16_flops=2250e12,
        float32_flops=1100e12,
        memory=180e9,
        memory_bandwidth=8000e9,
        link_bandwidth=900e9,
        link_devices=8,
        network_bandwidth=50e9,
        source="NVIDIA Blackwell architecture brief, HGX B200: 4.5 and 2.2 PFLOP/s sparse, NVLink "
        "1,800 GB/s both ways; DGX B200: 1,440 GB for 8 GPUs, 400 Gbit/s a GPU",
    ),
}


def get_accelerator(name: str) -> Accelerator:
    """Returns the accelerator with a name; raises ConfigError for an unknown name."""
    if name not in ACCELERATORS:
        hint = nearest(name.lower(), ACCELERATORS)
        raise ConfigError(
            f"--accelerator={name} is unknown; choose from {', '.join(ACCELERATORS)}.{hint}"
        )
    return ACCELERATORS[name]


def find_by_device_kind(device_kind: str) -> Accelerator | None:
    """Returns the accelerator with JAX's `device_kind`, or None if it is not in the table."""
    for accelerator in ACCELERATORS.values():
        if re.fullmatch(accelerator.kind, device_kind):
            return accelerator
    return None


def gpu_share() -> float:
    """Returns the fraction of a GPU's memory that JAX preallocates, 0.75 by default."""
    text = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "")
    return float(text) if re.fullmatch(r"0?\.\d+|1(\.0*)?", text) else GPU_SHARE
