"""Text of a plan for the command line."""

import dataclasses

from vit_jax.atomic_io import to_json
from vit_jax.distributed.progress import format_duration
from vit_jax.text import format_bytes, markdown_table
from vit_jax.training.memory import Memory

MEMORY = [field.name for field in dataclasses.fields(Memory)]
LARGEST_SHARE = 0.95  # Largest fraction of a GPU's memory for JAX.


def format_plans(plans: dict[str, dict], as_json: bool = False) -> str:
    """Returns the plans of all stages as text or JSON.

    Args:
      plans: {name of the stage: result of `plan_run`}; the name is '' without stages.
      as_json: return JSON.
    """
    if as_json:
        return to_json(plans.get("", plans), indent=2)
    return "\n\n".join(_format_plan(name, plan) for name, plan in plans.items())


def _format_plan(stage: str, plan: dict) -> str:
    memory, time = plan["memory"], plan["time"]
    flops, communication = plan["flops"], plan["communication"]
    mesh = ",".join(f"{axis}:{size}" for axis, size in plan["mesh"].items())
    num_classes = plan["data"]["num_classes"]
    classes = f"{num_classes:,} classes" if num_classes else "no classes"
    data = "{num_examples:,} examples, {} ({from})".format(classes, **plan["data"])
    batch = plan["largest_batch"]
    bytes_sent = communication["bytes_sent"]
    rows = [
        (f"stage {stage}" if stage else "model", plan["model"]),
        ("parameters", f"{plan['parameters']:,}"),
        ("data", data),
        ("devices", f"{plan['devices']} {plan['device']}, mesh {mesh}"),
        ("batch", f"{plan['batch_size']:,} in {plan['dtype']}"),
        ("accumulate", f"{plan['accumulate']:,}"),
        ("", ""),
        ("peak memory per device", f"{format_bytes(memory['peak'])} of {_usable(memory)}"),
        *((f"  {name}", format_bytes(memory[name])) for name in MEMORY),
        ("  result", _verdict(plan)),
        *(("  not sharded by fsdp", name) for name in plan["whole_though_fsdp"]),
        ("largest batch", f"{batch:,}" if batch else "none fits"),
        ("", ""),
        ("FLOPs per step", f"{flops['per_step']:.4g}"),
        ("  with recomputation", f"{flops['of_hardware_per_step']:.4g}"),
        ("bytes sent per step and device", format_bytes(sum(bytes_sent.values()))),
        *((f"  {kind}", format_bytes(sent)) for kind, sent in bytes_sent.items()),
        ("time per step", f"{time['step_seconds']:.4g} s, bound by {time['bound_by']}"),
        ("  compute", f"{time['seconds_computing']:.4g} s at MFU {time['mfu']:g}"),
        ("  communication", f"{communication['seconds']:.4g} s at peak bandwidth"),
        ("run", f"{plan['steps']:,} steps, {plan['epochs']:.4g} epochs"),
        ("  exaFLOPs", f"{flops['exaflops']:.4g}"),
        ("  time", f"{time['hours']:.4g} hours, {time['device_days']:.4g} device-days"),
        *([("sweep", f"{plan['runs']} runs like this one")] if plan["runs"] > 1 else []),
    ]
    if "goodput" in plan:
        rows += [("", ""), *_goodput_rows(plan["goodput"], time["step_seconds"])]
    if "compiled" in plan:
        rows += [("", ""), *_compiled_rows(plan["compiled"])]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}".rstrip() for name, text in rows]
    if "layout" in plan:
        lines += ["", markdown_table(plan["layout"])]
    return "\n".join(lines)


def _verdict(plan: dict) -> str:
    peak, usable = plan["memory"]["peak"], plan["memory"]["of"]
    if plan["fits"]:
        return f"fits, {100 * (1 - peak / usable):.0f} % free"
    flags = " ".join(f"--config.{change}" for change in plan["changes"])
    share = ""
    if usable < peak <= LARGEST_SHARE * plan["memory"]["of_device"]:
        share = f"; or XLA_PYTHON_CLIENT_MEM_FRACTION={LARGEST_SHARE}"
    if plan["fits_then"]:
        return f"does not fit; {flags} needs {format_bytes(plan['peak_then'])}{share}"
    tried = f", also not with {flags}" if flags else ""
    return f"does not fit{tried}; use more devices, a smaller model or a smaller image_size{share}"


def _usable(memory: dict) -> str:
    """Returns the memory that JAX preallocates, and its fraction of the device if not all."""
    part = memory["of"] / memory["of_device"]
    note = f", {100 * part:.0f} % of {format_bytes(memory['of_device'])}" if part < 1 else ""
    return f"{format_bytes(memory['of'])}{note}"


def _goodput_rows(goodput: dict, step_seconds: float) -> list[tuple[str, str]]:
    def row(name: str, plan: dict) -> tuple[str, str]:
        every = plan["checkpoint_every"]
        hours = "never ends" if plan["hours"] is None else f"{plan['hours']:.4g} hours"
        text = f"{plan['goodput']:.1%}, {hours} with checkpoint_every={every}"
        return name, f"{text} ({format_duration(every * step_seconds)})"

    size = format_bytes(goodput["checkpoint_bytes"])
    return [
        ("mean time between failures", format_duration(goodput["mtbf_seconds"])),
        ("  checkpoint", f"{goodput['checkpoint_seconds']:.4g} s, {size}"),
        ("  restart", f"{goodput['restart_seconds']:.4g} s"),
        row("expected goodput", goodput["config"]),
        row("  best interval, Daly", goodput["daly"]),
        row("  best interval, Young", goodput["young"]),
    ]


def _compiled_rows(compiled: dict) -> list[tuple[str, str]]:
    depths = " and ".join(map(str, compiled["depths"]))
    note = f", extrapolated from {depths} layers" if depths else ""
    peak = f"{format_bytes(compiled['peak'])}, compiled in {compiled['seconds']:.0f} s{note}"
    formula = f"{format_bytes(compiled['formula'])} ({compiled['difference_percent']:+.1f} %)"
    return [
        ("XLA on CPU devices", peak),
        ("  formula for CPU devices", formula),
        *((f"  {kind}", format_bytes(sent)) for kind, sent in compiled["bytes_sent"].items()),
    ]
