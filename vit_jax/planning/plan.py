"""What a run needs before it is run: memory, FLOPs, bytes between devices, and time."""

import dataclasses
import json
import math
from collections.abc import Iterable

import jax

from vit_jax import trees
from vit_jax.config.schema import Config, Mesh
from vit_jax.data import dataset_info
from vit_jax.data.sources import PACKAGED, open_training
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import ConfigError, DataError
from vit_jax.markdown import markdown
from vit_jax.models.registry import ViT
from vit_jax.planning import accelerators, communication, memory
from vit_jax.planning.accelerators import ACCELERATORS, Accelerator, of_device_kind
from vit_jax.planning.scenario import Setting, advise, largest_batch
from vit_jax.training import build, sweep_runs

# Between the paper's own on TPUv3: L/16 0.43, H/14 0.32, L/16 on ImageNet-21k 0.39 (exaFLOPs of
# Table 6 over core-days of Table 2 at 61.5 TFLOP/s).
MFU = 0.4
ACCELERATOR = "h100"  # Where none is named and none is here.
MOST_COMPILED = 64  # Devices that --compile makes believe in.
MOST_LAYERS, DEPTHS = 24, (4, 8)  # Compiled at once; of deeper models, these two depths.
GPU_SHARE = 0.75  # Of a GPU's memory, JAX takes so much unless told otherwise (its documentation).
MEMORY = [field.name for field in dataclasses.fields(memory.Memory)]


def data_of(config: Config, file: str, classes: int | None, examples: int | None) -> dict:
    """Classes and training examples, and where the numbers come from.

    From the flags; from packaged or fake data; from the name of a data set that is known, as the
    config or the `:data=` behind its file has it; from the data, where it can be read; and else
    those of ImageNet are assumed.
    """
    data = config.data
    arguments = dict(item.partition("=")[::2] for item in file.partition(":")[2].split(","))
    given = [arguments.get(key, "") for key in ("data", "dataset", "task")]
    name = dataset_info.find(data.dataset, *given, data.dir.rstrip("/").rpartition("/")[2])
    if data.source != "fake" and data.source not in PACKAGED and name and not data.mix:
        found, source = dataset_info.KNOWN[name], f"known data set {name}"
        share = dataset_info.share_of(data.split)
        count = share if isinstance(share, int) else found.num_examples * share
        count = data.count or count * (data.fraction or 1)
        count = data.per_class * found.num_classes if data.per_class else count
        numbers = [found.num_classes, round(count)]
    else:
        try:
            records = open_training(data)
            numbers, source = [len(records.classes), len(records)], "read from the data"
        except (DataError, ConfigError, OSError):
            numbers, source = (
                list(dataset_info.KNOWN["imagenet"]),
                "assumed, as of ImageNet: no data here",
            )
    numbers = [flag or number for flag, number in zip((classes, examples), numbers)]
    given = [flag for flag in (classes, examples) if flag]
    source = "given" if len(given) == 2 else f"given, and {source}" if given else source
    return {"num_classes": numbers[0], "num_examples": numbers[1], "from": source}


def plan(
    config: Config,
    *,
    file: str = "",
    num_devices: int | None = None,
    accelerator: str | None = None,
    mfu: float = MFU,
    num_classes: int | None = None,
    num_examples: int | None = None,
    largest: bool = False,
    compiles: bool = False,
    layout: bool = False,
) -> dict:
    """What one stage needs, as a tree of plain numbers and words.

    Args:
      file: FILE:ARGS of the config, whose `data=` may name a known data set.
      num_devices: None for those of the mesh, or those that are here.
      mfu: model FLOPs of a second, of what the device can do.
      largest: take the largest batch that fits in place of the config's.
      compiles: compile the step for as many pretended CPU devices, too.
      layout: list where parameters lie, too.
    """
    data = data_of(config, file, num_classes, num_examples)
    name, device = _device(accelerator)
    num_devices = num_devices or _num_devices(config.mesh)
    setting = Setting(config, device, num_devices, data["num_classes"])
    most = largest_batch(setting)
    if largest:
        if most is None:
            raise ConfigError(f"--largest_batch: no batch fits {num_devices} {device.title}.")
        setting = setting.change(batch_size=most)
    found = setting.memory()
    changes, changed = ([], setting) if setting.fits() else advise(setting)
    steps = build.num_steps(setting.config, data["num_examples"])
    result = {
        "model": config.model.name,
        "parameters": trees.count(setting.state.params),
        "batch_size": setting.config.batch_size,
        "dtype": config.model.dtype,
        "mesh": dict(setting.mesh.shape),
        "devices": num_devices,
        "accelerator": name,
        "data": data,
        "memory": {**vars(found), "peak": found.peak, "of": round(device.memory)},
        "fits": setting.fits(),
        "changes": changes,
        "fits_then": changed.fits(),
        "peak_then": changed.memory().peak,
        "whole_though_fsdp": mesh_lib.unsharded_parameters(setting.state.params),
        "largest_batch": most,
        **_costs(setting, steps, data["num_examples"], mfu),
    }
    if layout:
        result["layout"] = mesh_lib.sharding_table(setting.state.params)
    return result | ({"compiled": _compiled(setting)} if compiles else {})


def _device(name: str | None) -> tuple[str, Accelerator]:
    here = of_device_kind(jax.devices()[0].device_kind) if name is None else None
    name = name or next((key for key, each in ACCELERATORS.items() if each is here), ACCELERATOR)
    return name, accelerators.accelerator(name)


def _num_devices(mesh: Mesh) -> int:
    sizes = dataclasses.astuple(mesh)
    return len(jax.devices()) if -1 in sizes else math.prod(sizes)


def _costs(setting: Setting, steps: int, num_examples: int, mfu: float) -> dict:
    """FLOPs, bytes sent and time; model FLOPs leave out what is computed again."""
    config, device, num = setting.config, setting.device, setting.num_devices
    per_step, traffic = setting.flops(), setting.traffic()
    computing = per_step / (num * device.flops(config.model.dtype) * mfu)
    sending = communication.seconds(traffic, device)
    step_seconds = max(computing, sending)
    return {
        "flops": {
            "per_step": per_step,
            "of_hardware_per_step": per_step + setting.recomputed_flops(),
            "exaflops": steps * per_step / 1e18,
        },
        "communication": {
            "bytes_sent": communication.sent_by_kind(traffic),
            "seconds": sending,
        },
        "steps": steps,
        "runs": sweep_runs.count(config),
        "epochs": steps * config.batch_size / num_examples,
        "time": {
            "mfu": mfu,
            "seconds_computing": computing,
            "bound_by": "communication" if sending > computing else "compute",
            "step_seconds": step_seconds,
            "hours": steps * step_seconds / 3600,
            "device_days": steps * step_seconds * num / 86400,
        },
    }


def pretend(num_devices: int | None, stages: Iterable[Config]) -> None:
    """Makes JAX believe in as many CPU devices as are planned for, before it looks for any.

    Raises ConfigError for more than it can compile for in reasonable time.
    """
    meshes = [dataclasses.astuple(config.mesh) for config in stages]
    full = [math.prod(sizes) for sizes in meshes if -1 not in sizes]
    num = num_devices or max(full, default=1)
    if num > MOST_COMPILED:
        raise ConfigError(
            f"--compile pretends to have at most {MOST_COMPILED} devices, not {num}; "
            "without it, a plan takes any number."
        )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num)


def _compiled(setting: Setting) -> dict:
    """XLA's own figures for pretended CPU devices, beside the formula as a CPU has it."""
    looped = setting.change("model", scan=setting.config.model.pos_embed_at != "layers")
    formula, depths = looped.memory(widened=True).peak, _depths(looped)
    found = [_measured(looped.change("model", num_layers=depth)) for depth in depths]
    if not depths:
        whole = _measured(looped)
    else:
        times = (looped.model.size.num_layers - depths[0]) / (depths[1] - depths[0])
        whole = jax.tree.map(lambda few, more: few + times * (more - few), *found)
        whole["seconds"] = sum(each["seconds"] for each in found)
    difference = 100 * (formula / whole["peak"] - 1)
    return whole | {"formula": formula, "difference_percent": difference, "depths": depths}


def _depths(setting: Setting) -> tuple[int, ...]:
    """Depths to compile in place of a great one: all layers of a loop cost the same.

    None where few enough layers are compiled as they are, or where what binds a shallow model,
    its update or its backward pass, is not what binds the deep one.
    """
    if not isinstance(setting.model, ViT) or not setting.model.config.scan:
        return ()
    if setting.model.size.num_layers <= MOST_LAYERS:
        return ()
    shallow = [setting.change("model", num_layers=depth) for depth in DEPTHS]
    bounds = {each.memory(widened=True).is_bound_by_update for each in (*shallow, setting)}
    return DEPTHS if len(bounds) == 1 else ()


def _measured(setting: Setting) -> dict:
    devices = jax.devices("cpu")[: setting.num_devices]
    found = memory.compile_step(setting.config, setting.model, devices)
    sent = communication.sent_by_kind(communication.read(found.text))
    return {"peak": found.peak, "bytes_sent": sent, "seconds": found.seconds}


def render(plans: dict[str, dict], as_json: bool = False) -> str:
    """The plans of all stages, by name, as text or JSON."""
    if as_json:
        return json.dumps(plans.get("", plans), indent=2)
    return "\n\n".join(_page(name, found) for name, found in plans.items())


def _page(stage: str, p: dict) -> str:
    device, m, time = ACCELERATORS[p["accelerator"]], p["memory"], p["time"]
    mesh = ",".join(f"{axis}:{size}" for axis, size in p["mesh"].items())
    rows = [
        (f"stage {stage}" if stage else "model", p["model"]),
        ("parameters", f"{p['parameters']:,}"),
        ("data", "{num_examples:,} examples, {num_classes:,} classes ({from})".format(**p["data"])),
        ("devices", f"{p['devices']} {device.title}, mesh {mesh}"),
        ("batch", f"{p['batch_size']:,} in {p['dtype']}"),
        ("", ""),
        ("memory per device", f"{_size(m['peak'])} at most, of {_size(m['of'])}"),
        *((f"  {name}", _size(m[name])) for name in MEMORY),
        ("  verdict", _verdict(p, device)),
        *(("  whole on each device", name) for name in p["whole_though_fsdp"]),
        ("largest batch", f"{p['largest_batch']:,}" if p["largest_batch"] else "none fits"),
        ("", ""),
        ("FLOPs per step", f"{p['flops']['per_step']:.4g}"),
        ("  with what is recomputed", f"{p['flops']['of_hardware_per_step']:.4g}"),
        (
            "sent per step and device",
            _size(sum(p["communication"]["bytes_sent"].values())),
        ),
        *((f"  {kind}", _size(sent)) for kind, sent in p["communication"]["bytes_sent"].items()),
        ("step", f"{time['step_seconds']:.4g} s, bound by {time['bound_by']}"),
        ("  computing", f"{time['seconds_computing']:.4g} s at MFU {time['mfu']:g}"),
        ("  sending", f"{p['communication']['seconds']:.4g} s on the links, at their peak"),
        ("run", f"{p['steps']:,} steps, {p['epochs']:.4g} epochs"),
        ("  exaFLOPs", f"{p['flops']['exaflops']:.4g}"),
        ("  time", f"{time['hours']:.4g} hours, {time['device_days']:.4g} device-days"),
        *([("sweep", f"{p['runs']} such runs")] if p["runs"] > 1 else []),
    ]
    if "compiled" in p:
        rows += [("", ""), *_compiled_rows(p["compiled"])]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {words}".rstrip() for name, words in rows]
    if "layout" in p:
        lines += ["", markdown(p["layout"])]
    return "\n".join(lines)


def _size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _verdict(p: dict, device: Accelerator) -> str:
    share = p["memory"]["peak"] / p["memory"]["of"]
    if p["fits"]:
        takes_less = not device.title.startswith("TPU") and share > GPU_SHARE
        note = "; set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" if takes_less else ""
        return f"fits, with {100 * (1 - share):.0f} % to spare{note}"
    flags = " ".join(f"--config.{change}" for change in p["changes"])
    if not p["fits_then"]:
        tried = f", nor with {flags}" if flags else ""
        return f"does not fit{tried}: take more devices, or a smaller model or image_size"
    return f"does not fit; {flags} needs {_size(p['peak_then'])}"


def _compiled_rows(found: dict) -> list[tuple[str, str]]:
    depths = " and ".join(map(str, found["depths"]))
    drawn_on = f", from {depths} layers" if depths else ""
    return [
        (
            "XLA on CPU devices",
            f"{_size(found['peak'])}, compiled in {found['seconds']:.0f} s{drawn_on}",
        ),
        (
            "  the formula for it",
            f"{_size(found['formula'])} ({found['difference_percent']:+.1f} %)",
        ),
        *((f"  sent by {kind}", _size(sent)) for kind, sent in found["bytes_sent"].items()),
    ]
