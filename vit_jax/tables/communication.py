"""What devices send each other as they grow in number: by theory, and as XLA compiles it.

Bytes are of a training step in float32 on a batch of 4,096 (Table 3) at 224 px with 1,000
classes. Where communication takes longer than computing is told for bfloat16, in which
accelerators train.
"""

import json
import math

from vit_jax.config.schema import Config, Mesh, Model
from vit_jax.markdown import markdown
from vit_jax.planning import communication
from vit_jax.planning.accelerators import ACCELERATORS, Accelerator
from vit_jax.planning.scenario import Scenario
from vit_jax.tables.compiled import COMPILED

MODELS = ("vit_b16", "vit_l16")
LAYOUTS = {  # Fields of config.mesh; -1 takes the devices that are left.
    "data": {"data": -1},
    "fsdp": {"data": 1, "fsdp": -1},
    "fsdp, tensor 2": {"data": 1, "fsdp": -1, "tensor": 2},
}
THEORY = ("all-reduce", "all-gather", "reduce-scatter")
XLA = ("all-reduce", "all-gather", communication.ALL_REDUCE_SLICE)  # What XLA makes of it on a CPU.
DEVICES = tuple(2**i for i in range(1, 10))
BATCH_SIZE = 4096
MFU = 0.4  # Of the computing that communication is compared with: as in `plan`.
MB = 1e6


def scenario(
    model: str, layout: str, num_devices: int, device: Accelerator, dtype: str = "float32"
) -> Scenario:
    """The step that a row of the table is about."""
    config = Config(
        batch_size=BATCH_SIZE,
        steps=1,
        model=Model(name=model, dtype=dtype, pre_logits=True),
        mesh=Mesh(**LAYOUTS[layout]),
    )
    return Scenario(config, device, num_devices, num_classes=1000)


def rows() -> list[dict]:
    """MB that a device sends in a step, by kind, beside the compiled module's."""
    any_device, found = next(iter(ACCELERATORS.values())), []
    for model in MODELS:
        for layout in LAYOUTS:
            for num in DEVICES:
                collectives = scenario(model, layout, num, any_device).collectives()
                theory = communication.bytes_sent_by_kind(collectives)
                compiled = COMPILED.get((model, layout, num), {})
                found.append(
                    {"model": model, "mesh": layout, "devices": num}
                    | {kind: _megabytes(theory, kind) for kind in THEORY}
                    | {f"XLA: {kind}": _megabytes(compiled, kind) for kind in XLA}
                )
    return found


def _megabytes(sent: dict[str, float], kind: str) -> str:
    if not sent:
        return ""
    return f"{sent.get(kind, 0) / MB:.1f}"


def bounds() -> list[dict]:
    """The fewest devices on which a step sends for longer than it computes, per accelerator."""
    found = []
    for device in ACCELERATORS.values():
        row = {"accelerator": device.title}
        for model in MODELS:
            row |= {f"{model}, {layout}": _first_bound(model, layout, device) for layout in LAYOUTS}
        found.append(row)
    return found


def _first_bound(model: str, layout: str, device: Accelerator) -> str:
    for power in range(1, int(math.log2(BATCH_SIZE)) + 1):
        step = scenario(model, layout, 2**power, device, "bfloat16")
        computing = step.flops() / (2**power * device.bf16_flops * MFU)
        if 2**power > device.link_devices and device.network_bandwidth is None:
            return f"> {device.link_devices:,}"
        if communication.total_seconds(step.collectives(), device) > computing:
            return f"{2**power:,}"
    return f"> {BATCH_SIZE:,}"  # An example for each device.


def render(as_json: bool = False) -> str:
    """Both tables, as Markdown or JSON."""
    if as_json:
        return json.dumps({"sent": rows(), "bound": bounds()}, indent=2)
    return "\n\n".join(
        [
            "MB that a device sends in a step of float32, batch 4,096: by theory, and in modules "
            "that XLA compiled for CPUs, where a sum is scattered by all-reduce + slice, twice "
            "the bytes of the reduce-scatter of accelerators.",
            markdown(rows()),
            "Devices from which on a step of bfloat16, batch 4,096, sends for longer than it "
            f"computes at an MFU of {MFU:g}, with links at their peak.",
            markdown(bounds()),
        ]
    )
