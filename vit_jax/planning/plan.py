"""Requirements of a run before it starts: memory, FLOPs, communication and time."""

import dataclasses
import math

import jax

from vit_jax.config.schema import Config, Mesh
from vit_jax.config.validate import import_user_code
from vit_jax.data import dataset_info
from vit_jax.data.sources import check_classes, find_kind, open_training
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import ConfigError, DataError
from vit_jax.models import trees
from vit_jax.planning.accelerators import (
    ACCELERATORS,
    Accelerator,
    find_by_device_kind,
    get_accelerator,
)
from vit_jax.planning.advice import advise, largest_batch
from vit_jax.planning.communication import bytes_sent_by_kind, total_seconds
from vit_jax.planning.compiled_step import compare_with_xla
from vit_jax.planning.goodput import Failures, plan_goodput
from vit_jax.planning.scenario import Scenario
from vit_jax.tasks.registry import find_task
from vit_jax.training import auto, build, sweep_runs

# The paper's own MFU on TPUv3 is 0.43 for L/16, 0.32 for H/14 and 0.39 for L/16 on ImageNet-21k:
# exaFLOPs of Table 6 divided by core-days of Table 2 at 61.5 TFLOP/s.
MFU = 0.4
DTYPE = "bfloat16"  # That a run chooses for 'auto' on every accelerator of the table.
DEFAULT_ACCELERATOR = "h100"  # If none is named and this machine has none of the table.


def plan_run(
    config: Config,
    *,
    file: str = "",
    num_devices: int | None = None,
    accelerator: str | None = None,
    memory_gb: float | None = None,
    mfu: float = MFU,
    num_classes: int | None = None,
    num_examples: int | None = None,
    largest: bool = False,
    compiles: bool = False,
    layout: bool = False,
    failures: Failures | None = None,
) -> dict:
    """Returns the requirements of one stage as a tree of numbers and strings.

    Args:
      config: config of the stage.
      file: FILE:ARGS of the config, whose `data=` may name a known data set.
      num_devices: number of devices; None for those of the mesh, or those of this machine.
      accelerator: name in ACCELERATORS; None for that of this machine, or else an H100.
      memory_gb: memory of a device in 10^9 bytes; None for that of the accelerator.
      mfu: model FLOPs utilization to compute the time with.
      num_classes: number of classes; None to infer it, see `infer_data_size`.
      num_examples: number of training examples; None to infer it.
      largest: replace the config's batch size by the largest that fits.
      compiles: compile the step for simulated CPU devices as well.
      layout: add the sharding of every parameter.
      failures: how often the run fails; adds the expected goodput.

    Raises:
      ConfigError: the mesh or the batch does not fit the devices, or an argument is invalid.
      DataError: the task needs classes, and the data has none.
    """
    config = import_user_code(config)
    if config.model.dtype == auto.AUTO:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=DTYPE))
    config = auto.with_model(config)
    data = infer_data_size(config, file, num_classes, num_examples)
    name, device = _find_accelerator(accelerator)
    if memory_gb is not None:
        device = device.with_memory(memory_gb * 1e9)
    num_devices = num_devices or _num_devices(config.mesh)
    scenario = _with_accumulate(Scenario(config, device, num_devices, data["num_classes"]))
    max_batch = largest_batch(scenario)
    if largest:
        if max_batch is None:
            raise ConfigError(
                f"--largest_batch: not even the smallest batch fits on {num_devices} "
                f"{device.title}; use more devices."
            )
        scenario = scenario.replace(batch_size=max_batch)
    memory = scenario.memory()
    changes, changed = ([], scenario) if scenario.fits() else advise(scenario)
    steps = build.num_steps(scenario.config, data["num_examples"])
    result = {
        "model": config.model.name,
        "parameters": trees.count(scenario.state.params),
        "batch_size": scenario.config.batch_size,
        "dtype": config.model.dtype,
        "mesh": dict(scenario.mesh.shape),
        "devices": num_devices,
        "accelerator": name,
        "device": device.title,
        "data": data,
        "accumulate": scenario.config.accumulate,
        "memory": {
            **vars(memory),
            "peak": memory.peak,
            "of": round(device.usable),
            "of_device": round(device.memory),
        },
        "fits": scenario.fits(),
        "changes": changes,
        "fits_then": changed.fits(),
        "peak_then": changed.memory().peak,
        "whole_though_fsdp": mesh_lib.unsharded_parameters(scenario.state.params),
        "largest_batch": max_batch,
        **_costs(scenario, steps, data["num_examples"], mfu),
    }
    if failures is not None:
        result["goodput"] = plan_goodput(
            failures,
            num_bytes=trees.num_bytes(scenario.state),
            num_devices=num_devices,
            step_seconds=result["time"]["step_seconds"],
            steps=steps,
            checkpoint_every=scenario.config.checkpoint_every,
        )
    if layout:
        result["layout"] = mesh_lib.sharding_table(scenario.state.params)
    return result | ({"compiled": compare_with_xla(scenario)} if compiles else {})


def _with_accumulate(scenario: Scenario) -> Scenario:
    """Returns the scenario with the number of micro-batches that a run would choose for 'auto'."""
    if scenario.config.accumulate != auto.AUTO:
        return scenario
    limit = auto.USABLE * scenario.device.usable
    found = auto.smallest_accumulate(
        scenario.config,
        scenario.mesh,
        lambda count: scenario.replace(accumulate=count).memory().peak <= limit,
    )
    return scenario.replace(accumulate=found or 1)


def infer_data_size(
    config: Config, file: str, num_classes: int | None, num_examples: int | None
) -> dict:
    """Returns the numbers of classes and training examples, and the source of these numbers.

    The first source that is available is used: the arguments; packaged or fake data; the name of
    a known data set in the config or in `:data=` of the config file; the data, if it can be
    read; else the numbers of ImageNet.
    """
    data = config.data
    arguments = dict(item.partition("=")[::2] for item in file.partition(":")[2].split(","))
    names = [arguments.get(key, "") for key in ("data", "dataset", "task")]
    name = dataset_info.find_dataset(data.dataset, *names, data.dir.rstrip("/").rpartition("/")[2])
    if find_kind(data).named_by and name and not data.mix:
        info, source = dataset_info.DATASETS[name], f"known data set {name}"
        share = dataset_info.slice_size(data.split)
        count = share if isinstance(share, int) else info.num_examples * share
        count = data.count or count * (data.fraction or 1)
        count = data.per_class * info.num_classes if data.per_class else count
        sizes = [info.num_classes, round(count)]
    else:
        try:
            records = open_training(data)
        except (DataError, ConfigError, OSError):
            sizes = list(dataset_info.DATASETS["imagenet"])
            source = "assumed as in ImageNet: the data cannot be read"
        else:
            sizes, source = [len(records.classes), len(records)], "read from the data"
            if num_classes is None and find_task(config.task).has_classes:
                check_classes(records, data, f"task.name={config.task.name!r}")
    arguments = (num_classes, num_examples)
    sizes = [argument or size for argument, size in zip(arguments, sizes)]
    num_given = sum(argument is not None for argument in arguments)
    source = {0: source, 1: f"given, and {source}", 2: "given"}[num_given]
    return {"num_classes": sizes[0], "num_examples": sizes[1], "from": source}


def _find_accelerator(name: str | None) -> tuple[str, Accelerator]:
    local = find_by_device_kind(jax.devices()[0].device_kind) if name is None else None
    local_name = next((key for key, value in ACCELERATORS.items() if value is local), None)
    name = name or local_name or DEFAULT_ACCELERATOR
    return name, get_accelerator(name)


def _num_devices(mesh: Mesh) -> int:
    sizes = dataclasses.astuple(mesh)
    return len(jax.devices()) if -1 in sizes else math.prod(sizes)


def _costs(scenario: Scenario, steps: int, num_examples: int, mfu: float) -> dict:
    """Returns FLOPs, bytes sent and time; the MFU does not count recomputed FLOPs."""
    config, device, num_devices = scenario.config, scenario.device, scenario.num_devices
    flops_per_step, collectives = scenario.flops(), scenario.collectives()
    compute_seconds = flops_per_step / (num_devices * device.flops(config.model.dtype) * mfu)
    communication_seconds = total_seconds(collectives, device)
    is_bound_by_communication = communication_seconds > compute_seconds
    step_seconds = max(compute_seconds, communication_seconds)
    return {
        "flops": {
            "per_step": flops_per_step,
            "of_hardware_per_step": flops_per_step + scenario.recomputed_flops(),
            "exaflops": steps * flops_per_step / 1e18,
        },
        "communication": {
            "bytes_sent": bytes_sent_by_kind(collectives),
            "seconds": communication_seconds,
        },
        "steps": steps,
        "runs": sweep_runs.count(config),
        "epochs": steps * config.batch_size / num_examples,
        "time": {
            "mfu": mfu,
            "seconds_computing": compute_seconds,
            "bound_by": "communication" if is_bound_by_communication else "compute",
            "step_seconds": step_seconds,
            "hours": steps * step_seconds / 3600,
            "device_days": steps * step_seconds * num_devices / 86400,
        },
    }
