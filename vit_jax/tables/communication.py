"""Bytes sent between devices by number of devices: calculated, and as compiled by XLA.

Bytes are per training step in float32 at batch size 4,096 (Table 3), 224 px and 1,000 classes.
Communication time is compared with compute time in bfloat16, which accelerators train in.
"""

import math
import pathlib

from vit_jax.atomic_io import to_json
from vit_jax.config.schema import Config, Mesh, Model
from vit_jax.planning import communication
from vit_jax.planning.accelerators import ACCELERATORS, Accelerator
from vit_jax.planning.scenario import Scenario
from vit_jax.tables.compiled_bytes import COMPILED_BYTES
from vit_jax.text import markdown_table

MODELS = ("vit_b16", "vit_l16")
MESHES = {  # Fields of config.mesh; -1 stands for all remaining devices.
    "data": {"data": -1},
    "fsdp": {"data": 1, "fsdp": -1},
    "fsdp, tensor 2": {"data": 1, "fsdp": -1, "tensor": 2},
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter")
XLA_COLLECTIVES = ("all-reduce", "all-gather", communication.ALL_REDUCE_SLICE)  # On a CPU.
DEVICE_COUNTS = tuple(2**i for i in range(1, 10))
BATCH_SIZE = 4096
MFU = 0.4  # Model FLOPs utilization assumed for compute time, as in `plan`.
MB = 1e6


def _scenario(
    model: str, mesh: str, num_devices: int, device: Accelerator, dtype: str = "float32"
) -> Scenario:
    config = Config(
        batch_size=BATCH_SIZE,
        steps=1,
        model=Model(name=model, dtype=dtype, pre_logits=True),
        mesh=Mesh(**MESHES[mesh]),
    )
    return Scenario(config, device, num_devices, num_classes=1000)


def traffic_rows() -> list[dict]:
    """Returns MB sent per device and step, by kind of collective; calculated and compiled."""
    any_device = next(iter(ACCELERATORS.values()))  # Bytes do not depend on the accelerator.
    rows = []
    for model in MODELS:
        for mesh in MESHES:
            for num_devices in DEVICE_COUNTS:
                collectives = _scenario(model, mesh, num_devices, any_device).collectives()
                calculated = communication.bytes_sent_by_kind(collectives)
                compiled = COMPILED_BYTES.get((model, mesh, num_devices), {})
                rows.append(
                    {"model": model, "mesh": mesh, "devices": num_devices}
                    | {kind: _megabytes(calculated, kind) for kind in COLLECTIVES}
                    | {f"XLA: {kind}": _megabytes(compiled, kind) for kind in XLA_COLLECTIVES}
                )
    return rows


def _megabytes(sent: dict[str, float], kind: str) -> str:
    if not sent:
        return ""
    return f"{sent.get(kind, 0) / MB:.1f}"


def bound_rows() -> list[dict]:
    """Returns, per accelerator, the fewest devices with communication time above compute time."""
    rows = []
    for device in ACCELERATORS.values():
        row = {"accelerator": device.title}
        for model in MODELS:
            row |= {f"{model}, {mesh}": _fewest_devices(model, mesh, device) for mesh in MESHES}
        rows.append(row)
    return rows


def _fewest_devices(model: str, mesh: str, device: Accelerator) -> str:
    for power in range(1, int(math.log2(BATCH_SIZE)) + 1):
        scenario = _scenario(model, mesh, 2**power, device, "bfloat16")
        compute_seconds = scenario.flops() / (2**power * device.bf16_flops * MFU)
        if 2**power > device.link_devices and device.network_bandwidth is None:
            return f"> {device.link_devices:,}"
        if communication.total_seconds(scenario.collectives(), device) > compute_seconds:
            return f"{2**power:,}"
    return f"> {BATCH_SIZE:,}"  # One example per device.


def format_communication(as_json: bool = False) -> str:
    """Returns both tables as Markdown or JSON."""
    if as_json:
        return to_json({"sent": traffic_rows(), "bound": bound_rows()}, indent=2)
    return "\n\n".join(
        [
            "MB sent per device and training step in float32 at batch size 4,096. Columns with "
            "`XLA:` are of modules that XLA compiled for CPUs, which replace a reduce-scatter by "
            "all-reduce + slice, twice the bytes.",
            markdown_table(traffic_rows()),
            "Fewest devices on which a training step in bfloat16 at batch size 4,096 spends more "
            f"time on communication, at peak bandwidth, than on computing, at an MFU of {MFU:g}.",
            markdown_table(bound_rows()),
        ]
    )


def plot_communication(folder: str) -> None:
    """Writes `communication.png` and `.svg`: MB sent per device over the number of devices."""
    from vit_jax.figures import style  # Imports matplotlib, which takes half a second.

    rows, xla_columns = traffic_rows(), tuple(f"XLA: {kind}" for kind in XLA_COLLECTIVES)
    figure = style.make_figure(10, 4.2)
    panels = figure.subplots(1, len(MODELS), sharey=True)
    for panel, model in zip(panels, MODELS):
        for color, mesh in zip(("C0", "C1", "C2"), MESHES):
            line = [row for row in rows if (row["model"], row["mesh"]) == (model, mesh)]
            points = [(row["devices"], _total_megabytes(row, COLLECTIVES)) for row in line]
            panel.plot(*zip(*points), color=color, label=f"{mesh}, calculated")
            points = [(row["devices"], _total_megabytes(row, xla_columns)) for row in line]
            points = [(devices, sent) for devices, sent in points if sent]
            if points:
                panel.plot(*zip(*points), "o", color=color, label=f"{mesh}, XLA on CPU")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set(title=model, xlabel="number of devices")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("MB sent per device and step")
    panels[0].legend(fontsize="small")
    figure.suptitle(f"float32, batch size {BATCH_SIZE:,}, 224 px, 1,000 classes")
    style.save_figure(figure, pathlib.Path(folder), "communication")


def _total_megabytes(row: dict, columns: tuple[str, ...]) -> float:
    """Returns the sum of some columns; 0 if no bytes are recorded."""
    return sum(float(row[column]) for column in columns if row[column])
